"""Builds the directory of ``scripts/real-model``: policy, reward model, gold reward model and prompts.

The directory has this layout::

    policy/  reward/  gold/       Hugging Face directories (safetensors, tokenizer, licence, card)
    prompts/openings.jsonl        first words of held-out texts, to continue
    prompts/chats.jsonl           the same as chats
    real-model.json               resolved config, revision, versions, held-out metrics

Finished models of the same configuration are kept, so an interrupted build continues.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from training.outputs.model_card import write_card
from training.real_model.config import RealModelConfig
from training.real_model.convert import copy_licences, load_encoder, load_policy
from training.real_model.sources import Source, fetch_first
from training.sandbox.build import build_models
from training.sandbox.models import fit_classifier, training_arguments
from training.sandbox.parts import Part, scratch_directory
from training.sandbox.texts import Labelled, SandboxTexts, check_both_labels, corpus_texts
from training.sandbox.trainer_progress import TrainerProgress
from vbon.errors import DataError
from vbon.prompts import Message, Prompt
from vbon.storage.checkpoints import write_checksums

logger = logging.getLogger(__name__)

_PERPLEXITY_TEXTS = 64
# The reward model reads the review alone, its opening and its continuation, whether it was asked for as a
# text or as a chat; an instruction is not part of it. A chat's answer begins without a space.
REVIEW_TEMPLATE = (
    "{% for message in messages if message['role'] != 'system' %}"
    "{% if not loop.first and messages[0]['role'] == 'system' %} {% endif %}"
    "{{ message['content'] }}{% endfor %}"
)


def build_real_model(config: RealModelConfig) -> None:
    """Build the models and prompts, or those that are missing.

    Raises:
        DataError: the corpus cannot be used, or a model cannot be had.
        CheckpointError: a source does not hold a model of the kind it is for.
        ExportError: a file could not be written; finished models are kept.
    """
    transformers_logging.disable_progress_bar()

    def prepare() -> tuple[list[Part], dict[str, list[Prompt]]]:
        texts = corpus_texts(config.corpus, config.encoding, config.seed)
        check_both_labels(texts)
        openings = _openings(config, texts)
        prompts = {
            "openings": [Prompt(text=text) for text in openings],
            "chats": [chat(text, config.instruction) for text in openings],
        }
        return _parts(config, texts), prompts

    settings = config.model_dump(mode="json", exclude={"replace", "out", "jobs"})
    build_models(
        config.out, "real-model", settings, prepare, jobs=config.jobs, replace=config.replace
    )


def chat(opening: str, instruction: str) -> Prompt:
    """The chat that asks to continue an opening."""
    return Prompt(
        messages=(
            Message(role="system", content=instruction),
            Message(role="user", content=opening),
        )
    )


def _openings(config: RealModelConfig, texts: SandboxTexts) -> list[str]:
    found = texts.openings[: config.prompts]
    if len(found) < config.prompts:
        logger.info("%d prompts, as many as the held-out texts give", len(found))
    if len(found) < 6:  # a study needs two for each of its three parts
        raise DataError(
            f"the tenth of the corpus that is held out gives only {len(found)} prompts; give more texts"
        )
    return found


def _parts(config: RealModelConfig, texts: SandboxTexts) -> list[Part]:
    reward = partial(
        _build_reward,
        config,
        texts.reward,
        texts.heldout_reward,
        title="Reward model (used for selection and training)",
        seed=config.seed + 1,
    )
    gold = partial(
        _build_reward,
        config,
        texts.gold,
        texts.heldout_gold,
        title="Gold reward model (held out: used only for reporting)",
        seed=config.seed + 1001,
    )
    policy = partial(_build_policy, config, texts.heldout_reward[0][:_PERPLEXITY_TEXTS])
    return [("policy", "causal-lm", policy), ("reward", "reward", reward), ("gold", "reward", gold)]


def _build_policy(
    config: RealModelConfig, heldout: Sequence[str], directory: Path
) -> dict[str, float]:
    with _fetched(config.policy) as source:
        model, tokenizer = load_policy(source)
        if not tokenizer.chat_template:
            logger.warning(
                "the policy has no chat template: study prompts/openings.jsonl, not the chats"
            )
        metrics = {
            "heldout_perplexity": _perplexity(model, tokenizer, heldout),
            "parameters": model.num_parameters(),
        }
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        copy_licences(source, directory)
        write_checksums(directory, "causal-lm")
        converted = (
            " The quantised weights of its GGUF file were read as float32 values; they differ from the "
            "original's by the rounding."
            if source.gguf
            else ""
        )
        facts = {"source": source.origin, "file": source.gguf or "safetensors", **metrics}
        summary = f"Unchanged weights of {source.origin}.{converted}{_licence_words(source)}"
        write_card(directory, title="Reference policy", summary=summary, facts=facts)
    return metrics


def _build_reward(
    config: RealModelConfig,
    data: Labelled,
    heldout: Labelled,
    directory: Path,
    *,
    title: str,
    seed: int,
) -> dict[str, float]:
    with _fetched(config.encoder) as source:
        set_seed(seed)  # also that of the new logit's weights
        model, tokenizer = load_encoder(source)
        name = title.partition(" (")[0].lower()
        with scratch_directory() as scratch, TrainerProgress(name) as progress:
            found = fit_classifier(
                model,
                tokenizer,
                data,
                heldout,
                training_arguments(
                    config.epochs, config.learning_rate, config.batch_size, 0.1, seed, scratch
                ),
                max_length=config.max_length,
                callbacks=[progress.callback],
            )
        logger.info(
            "%s: accuracy %s on %d held-out texts", name, found.accuracy, found.accuracy.count
        )
        tokenizer.chat_template = REVIEW_TEMPLATE
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        copy_licences(source, directory)
        write_checksums(directory, "reward")
        metrics = {
            "heldout_accuracy": found.accuracy.mean,
            "heldout_accuracy_low": found.accuracy.low,
            "heldout_accuracy_high": found.accuracy.high,
            "heldout_auc": found.auc,
            "heldout_texts": found.accuracy.count,
            "training_texts": len(data[0]),
            "parameters": model.num_parameters(),
        }
        facts = {
            "encoder": source.origin,
            "corpus": ", ".join(config.corpus),
            "seed": seed,
            "epochs": config.epochs,
            **metrics,
        }
        summary = (
            f"The encoder of {source.origin} with one new logit, fine-tuned to tell liked from disliked "
            f"texts of one half of the corpus. Its chat template shows it the review without the "
            f"instruction.{_licence_words(source)}"
        )
        write_card(directory, title=title, summary=summary, facts=facts)
    return metrics


def _perplexity(model: Any, tokenizer: Any, texts: Sequence[str]) -> float:
    """Perplexity per token of texts; of a model that was read wrongly it is in the thousands."""
    loss, count = 0.0, 0
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            if ids.shape[1] < 2:
                continue
            loss += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
    return math.exp(loss / count)


def _licence_words(source: Source) -> str:
    return " Its licence is in the file LICENSE." if source.licences else ""


@contextmanager
def _fetched(specs: Sequence[str]) -> Iterator[Source]:
    with scratch_directory() as scratch:
        yield fetch_first(specs, scratch)
