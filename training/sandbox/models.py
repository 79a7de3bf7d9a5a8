"""Trains the sandbox's tokenizer, policy and classifiers, with the Hugging Face ``Trainer``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.utils.data import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from vbon.maths.intervals import MeanInterval
from vbon.maths.statistics import wilson_interval

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


@dataclass(frozen=True, slots=True)
class Shape:
    """Size and training settings of a small transformer."""

    hidden: int
    layers: int
    epochs: float
    learning_rate: float
    batch_size: int = 64


def _policy_config(
    shape: Shape, tokenizer: PreTrainedTokenizerFast, max_length: int
) -> LlamaConfig:
    """A Llama with a head size of 64, which every attention backend of vLLM supports."""
    heads = shape.hidden // 64
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.hidden * 5 // 2,
        num_hidden_layers=shape.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=64,
        max_position_embeddings=max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )


def _classifier_config(
    shape: Shape, tokenizer: PreTrainedTokenizerFast, max_length: int
) -> ModernBertConfig:
    """A ModernBERT with mean pooling.

    Trained from scratch, mean pooling learns much faster than a classifier on the last token.
    """
    return ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.hidden * 3 // 2,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // 32,
        max_position_embeddings=max_length,
        local_attention=max_length,
        classifier_pooling="mean",
        num_labels=1,
        bos_token_id=tokenizer.bos_token_id,
        cls_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        sep_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def train_tokenizer(
    texts: Sequence[str], vocab_size: int, max_length: int
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, which can encode any Unicode string; it puts BOS before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


class _Texts(Dataset[dict[str, Any]]):
    """A data set of token ids, with labels for a classifier; texts are tokenised once."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        texts: Sequence[str],
        labels: Sequence[int] | None,
        max_length: int,
    ) -> None:
        ending = [] if labels is not None else [tokenizer.eos_token_id]
        encoded = tokenizer(list(texts), truncation=True, max_length=max_length - len(ending))
        self._ids = [list(ids) + ending for ids in encoded["input_ids"]]
        self._labels = labels

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = {"input_ids": self._ids[index]}
        if self._labels is not None:
            item["labels"] = float(self._labels[index])
        return item


class _Collator:
    """Pads a batch on the right.

    The labels of a language model are its token ids, with -100 on padding.
    """

    def __init__(self, pad_id: int, *, classify: bool) -> None:
        self._pad_id, self._classify = pad_id, classify

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(item["input_ids"]) for item in items)
        ids = torch.full((len(items), width), self._pad_id)
        mask = torch.zeros((len(items), width), dtype=torch.long)
        for row, item in enumerate(items):
            length = len(item["input_ids"])
            ids[row, :length] = torch.tensor(item["input_ids"])
            mask[row, :length] = 1
        if self._classify:
            labels = torch.tensor([item["labels"] for item in items])
        else:
            labels = ids.masked_fill(mask == 0, -100)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class _LogitTrainer(Trainer):
    """A trainer with binary cross-entropy on the single logit.

    For ``num_labels = 1`` transformers would use a regression loss.
    """

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(outputs.logits[:, 0], labels)
        return (loss, {"logits": outputs.logits}) if return_outputs else loss


def _arguments(shape: Shape, seed: int, scratch: Path) -> TrainingArguments:
    return training_arguments(
        shape.epochs, shape.learning_rate, shape.batch_size, 50, seed, scratch
    )


def training_arguments(
    epochs: float,
    learning_rate: float,
    batch_size: int,
    warmup_steps: float,
    seed: int,
    scratch: Path,
) -> TrainingArguments:
    """The settings of a training that keeps nothing but the model in memory.

    Args:
        warmup_steps: steps in which the learning rate rises; below 1, their share of all steps.
    """
    return TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=256,
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=warmup_steps,
        weight_decay=0.01,
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        seed=seed,
        dataloader_pin_memory=False,
    )


def train_policy(
    tokenizer: PreTrainedTokenizerFast,
    train_texts: Sequence[str],
    heldout_texts: Sequence[str],
    shape: Shape,
    *,
    max_length: int,
    seed: int,
    scratch: Path,
    callbacks: list[TrainerCallback],
) -> tuple[LlamaForCausalLM, dict[str, float]]:
    """Train a causal LM from scratch; its metrics are held-out perplexity per token and size."""
    set_seed(seed)
    model = LlamaForCausalLM(_policy_config(shape, tokenizer, max_length))
    trainer = Trainer(
        model=model,
        args=_arguments(shape, seed, scratch),
        train_dataset=_Texts(tokenizer, train_texts, None, max_length),
        eval_dataset=_Texts(tokenizer, heldout_texts, None, max_length),
        data_collator=_Collator(tokenizer.pad_token_id, classify=False),
        callbacks=callbacks,
    )
    _run(trainer)
    loss = trainer.evaluate()["eval_loss"]
    return model, {"heldout_perplexity": math.exp(loss), "parameters": model.num_parameters()}


def train_classifier(
    tokenizer: PreTrainedTokenizerFast,
    train: tuple[Sequence[str], Sequence[int]],
    heldout: tuple[Sequence[str], Sequence[int]],
    shape: Shape,
    *,
    max_length: int,
    seed: int,
    scratch: Path,
    callbacks: list[TrainerCallback],
) -> tuple[ModernBertForSequenceClassification, dict[str, float]]:
    """Train a one-logit classifier from scratch; its metrics are held-out accuracy, AUC and size."""
    set_seed(seed)
    model = ModernBertForSequenceClassification(_classifier_config(shape, tokenizer, max_length))
    found = fit_classifier(
        model,
        tokenizer,
        train,
        heldout,
        _arguments(shape, seed, scratch),
        max_length=max_length,
        callbacks=callbacks,
    )
    return model, {
        "heldout_accuracy": found.accuracy.mean,
        "heldout_auc": found.auc,
        "parameters": model.num_parameters(),
    }


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A classifier's figures on held-out texts."""

    accuracy: MeanInterval
    auc: float


def fit_classifier(
    model: Any,
    tokenizer: Any,
    train: tuple[Sequence[str], Sequence[int]],
    heldout: tuple[Sequence[str], Sequence[int]],
    arguments: TrainingArguments,
    *,
    max_length: int,
    callbacks: list[TrainerCallback],
) -> Accuracy:
    """Train a one-logit classifier on labelled texts, and measure it on held-out ones."""
    trainer = _LogitTrainer(
        model=model,
        args=arguments,
        train_dataset=_Texts(tokenizer, *train, max_length),
        data_collator=_Collator(tokenizer.pad_token_id, classify=True),
        callbacks=callbacks,
    )
    _run(trainer)
    prediction = trainer.predict(_Texts(tokenizer, *heldout, max_length))
    logits = torch.as_tensor(prediction.predictions).flatten()
    # The trainer sorts evaluation texts by length too, so the labels are taken in its order.
    labels = torch.as_tensor(prediction.label_ids, dtype=torch.float).flatten()
    hits = ((logits > 0).float() == labels).double().numpy()
    return Accuracy(wilson_interval(hits), _auc(logits, labels))


def _auc(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Probability that a liked text scores above a disliked one; ties count 1/2."""
    liked, disliked = logits[labels == 1], logits[labels == 0]
    if len(liked) == 0 or len(disliked) == 0:
        return float("nan")
    order = torch.sort(disliked).values
    below = torch.searchsorted(order, liked, right=False).float()
    up_to = torch.searchsorted(order, liked, right=True).float()
    return float(((below + up_to) / 2).mean() / len(disliked))


def _run(trainer: Trainer) -> None:
    trainer.remove_callback(PrinterCallback)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        trainer.train()
