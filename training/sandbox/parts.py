"""The three models of the sandbox: how each is trained and saved."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from training.configs import SandboxConfig
from training.outputs.model_card import write_card
from training.sandbox.models import Shape, train_classifier, train_policy, train_tokenizer
from training.sandbox.texts import Labelled, SandboxTexts
from training.sandbox.trainer_progress import TrainerProgress
from vbon.storage.checkpoints import Kind, write_checksums

# Trains a model into a directory, and returns its metrics. A worker process may run it, so it can be pickled.
Build = Callable[[Path], dict[str, float]]
Part = tuple[str, Kind, Build]


def model_parts(config: SandboxConfig, texts: SandboxTexts) -> list[Part]:
    """Name, kind and builder of each model; all three share the policy's tokenizer."""
    reward = partial(
        _build_classifier,
        config,
        texts,
        name="reward model",
        title="Reward model (proxy: used for selection and training)",
        data=texts.reward,
        heldout=texts.heldout_reward,
        shape=Shape(64, 2, _classifier_epochs(texts.reward), 2e-3),
        seed=config.seed + 1,
    )
    gold = partial(
        _build_classifier,
        config,
        texts,
        name="gold reward model",
        title="Gold reward model (held out: used only for reporting)",
        data=texts.gold,
        heldout=texts.heldout_gold,
        shape=Shape(128, 3, _classifier_epochs(texts.gold), 1e-3),
        seed=config.seed + 1001,
    )
    return [
        ("policy", "causal-lm", partial(_build_policy, config, texts)),
        ("reward", "reward", reward),
        ("gold", "reward", gold),
    ]


def _build_policy(config: SandboxConfig, texts: SandboxTexts, directory: Path) -> dict[str, float]:
    read = _policy_texts(config, texts)
    epochs = config.policy_epochs or max(1.0, 1.5 * config.policy_texts / len(read))
    tokenizer = train_tokenizer(read, config.vocab_size, config.max_length)
    with scratch_directory() as scratch, TrainerProgress("policy") as progress:
        model, metrics = train_policy(
            tokenizer,
            read,
            texts.heldout_reward[0][:1000],
            Shape(config.policy_hidden, config.policy_layers, epochs, 2e-3),
            max_length=config.max_length,
            seed=config.seed,
            scratch=scratch,
            callbacks=[progress.callback],
        )
    _save(directory, model, tokenizer, "causal-lm", "Reference policy", config, metrics)
    return metrics


def _build_classifier(
    config: SandboxConfig,
    texts: SandboxTexts,
    directory: Path,
    *,
    name: str,
    title: str,
    data: Labelled,
    heldout: Labelled,
    shape: Shape,
    seed: int,
) -> dict[str, float]:
    tokenizer = _shared_tokenizer(config, texts)
    with scratch_directory() as scratch, TrainerProgress(name) as progress:
        model, metrics = train_classifier(
            tokenizer,
            data,
            heldout,
            shape,
            max_length=config.max_length,
            seed=seed,
            scratch=scratch,
            callbacks=[progress.callback],
        )
    _save(directory, model, tokenizer, "reward", title, config, metrics)
    return metrics


def _policy_texts(config: SandboxConfig, texts: SandboxTexts) -> list[str]:
    """The texts that the policy and its tokenizer learn from."""
    return texts.policy[: config.policy_texts]


def _shared_tokenizer(config: SandboxConfig, texts: SandboxTexts) -> Any:
    """The policy's tokenizer; trained again, with the same result, while the policy is being built."""
    if (config.out / "policy").exists():
        return AutoTokenizer.from_pretrained(config.out / "policy")
    return train_tokenizer(_policy_texts(config, texts), config.vocab_size, config.max_length)


def _classifier_epochs(data: Labelled) -> float:
    """Epochs of a classifier: with few texts it sees each of them more often, up to 4 times."""
    return float(np.clip(16_000 / len(data[0]), 1, 4))


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """An empty directory that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="vbon-") as name:
        yield Path(name)


def _save(
    directory: Path,
    model: Any,
    tokenizer: Any,
    kind: Kind,
    title: str,
    config: SandboxConfig,
    metrics: dict[str, float],
) -> None:
    source = ", ".join(config.corpus) or "the embedded synthetic movie reviews"
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    write_checksums(directory, kind)
    write_card(
        directory,
        title=f"{title} of the vbon sandbox",
        summary=f"Trained from scratch on {source}, seed {config.seed}. A toy model: it shows how "
        "best-of-N and its distillation behave, and has no other use.",
        facts={"seed": config.seed, "data": source, **metrics},
    )
