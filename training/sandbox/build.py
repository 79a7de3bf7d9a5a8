"""Builds the sandbox: tokenizer, reference policy, reward model, gold reward model and prompts.

The directory has this layout::

    policy/  reward/  gold/       Hugging Face directories (safetensors, tokenizer, config, card)
    prompts/train.jsonl           openings to fine-tune on
    prompts/heldout.jsonl         openings held out for evaluation
    sandbox.json                  resolved config, revision, seeds, versions, held-out metrics

Complete parts of the same configuration are kept, so an interrupted build continues.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from training.configs import SandboxConfig
from training.outputs.identity import is_same_output, read_json_record
from training.outputs.model_card import write_card
from training.sandbox.corpus import ReviewGrammar
from training.sandbox.labelled import read_labelled
from training.sandbox.models import Shape, train_classifier, train_policy, train_tokenizer
from training.sandbox.trainer_progress import TrainerProgress
from training.worker_pool import worker_pool
from vbon.errors import CheckpointError, DataError
from vbon.prompt_files import write_prompts
from vbon.storage.atomic import recover_directory, replacing_directory, write_json
from vbon.storage.checkpoints import Kind, check_checkpoint, write_checksums
from vbon.storage.locks import sole_writer
from vbon.storage.provenance import provenance

logger = logging.getLogger(__name__)

Labelled = tuple[list[str], list[int]]

HELDOUT_SHARE = 0.1
# A prompt is the first 3 to 6 words of a review; the upper bound is exclusive.
PROMPT_WORDS = (3, 7)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts and labels for each part of the sandbox.

    The training texts of the two reward models are disjoint from each other, and held-out texts are disjoint
    from all training texts.

    Attributes:
        policy: texts to train the tokenizer and the policy on.
        reward: texts to train the reward model on, with the proxy annotator's labels.
        gold: other texts to train the gold reward model on, with the gold annotator's labels if there are
            two annotators.
        heldout_reward: held-out texts, with labels to evaluate the reward model.
        heldout_gold: held-out texts, with labels to evaluate the gold reward model.
        openings: distinct prompts, from held-out texts.
    """

    policy: list[str]
    reward: Labelled
    gold: Labelled
    heldout_reward: Labelled
    heldout_gold: Labelled
    openings: list[str]


def build_sandbox(config: SandboxConfig) -> None:
    """Build the sandbox, or its missing parts.

    Raises:
        DataError: the corpus cannot be used.
        ExportError: a file could not be written; finished parts are kept.
    """
    with sole_writer(config.out):
        _build(config)


def _build(config: SandboxConfig) -> None:
    begun = time.perf_counter()
    out = config.out
    settings = config.model_dump(mode="json", exclude={"replace", "out", "jobs"})
    manifest = read_json_record(out / "sandbox.json") or {}
    recorded = manifest.get("config")
    if recorded is not None and not is_same_output(out, recorded, settings, replace=config.replace):
        logger.info("%s was made with other settings; building it again", out)
        manifest = {}
    # Checked before anything is written, so that an unusable corpus does not damage an existing sandbox.
    corpus = _user_corpus(config) if config.corpus else _synthetic_corpus(config)
    _check_corpus(corpus, config)
    metrics: dict[str, Any] = dict(manifest.get("metrics", {}))
    # A part without metrics is unfinished or was made with other settings, and is built again.
    write_json(out / "sandbox.json", {**provenance(settings), "metrics": metrics})
    prompts = out / "prompts"
    count = config.train_prompts + config.heldout_prompts
    write_prompts(prompts / "train.jsonl", corpus.openings[: config.train_prompts])
    write_prompts(prompts / "heldout.jsonl", corpus.openings[config.train_prompts : count])
    for part, found in _built(config, corpus, _missing(config, corpus, metrics)):
        metrics[part] = found
        write_json(out / "sandbox.json", {**provenance(settings), "metrics": metrics})
        logger.info("%s: %s", out / part, _shown(found))
    logger.info("sandbox in %s after %.0f s", out, time.perf_counter() - begun)


def _check_corpus(corpus: Corpus, config: SandboxConfig) -> None:
    """Check what would otherwise fail only after minutes of training.

    Raises:
        DataError: there are too few openings, or all held-out reviews have the same label.
    """
    count = config.train_prompts + config.heldout_prompts
    if len(corpus.openings) < count:
        raise DataError(
            f"the corpus has {len(corpus.openings)} distinct held-out openings, fewer than "
            f"train_prompts + heldout_prompts = {count}; ask for fewer prompts"
        )
    for texts, labels in (corpus.heldout_reward, corpus.heldout_gold):
        if set(labels) != {0, 1}:
            raise DataError(
                f"the {len(texts)} texts held out to evaluate the reward models all have label "
                f"{labels[0]}; add texts of label {1 - labels[0]}, or try another --seed"
            )


def _missing(config: SandboxConfig, corpus: Corpus, metrics: Mapping[str, object]) -> Iterator[str]:
    """Names of the parts that are not complete."""
    for part, kind, _ in _parts(config, corpus):
        target = config.out / part
        recover_directory(target)
        if part in metrics and _is_whole(target, kind):
            logger.info("%s: kept", target)
        else:
            yield part


def _built(
    config: SandboxConfig, corpus: Corpus, parts: Iterable[str]
) -> Iterator[tuple[str, dict[str, float]]]:
    """Build parts one after another, or side by side in processes, and yield each with its metrics."""
    if config.jobs == 1:
        for part in parts:
            yield part, _build_part(config, corpus, part)
        return
    with worker_pool(config.jobs, logging.INFO) as pool:
        futures = {pool.submit(_build_part, config, corpus, part): part for part in parts}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _build_part(config: SandboxConfig, corpus: Corpus, part: str) -> dict[str, float]:
    build = next(build for name, _, build in _parts(config, corpus) if name == part)
    started = time.perf_counter()
    with replacing_directory(config.out / part) as directory:
        metrics = build(directory)
    return {**metrics, "seconds": round(time.perf_counter() - started, 1)}


def _is_whole(path: Path, kind: Kind) -> bool:
    try:
        check_checkpoint(str(path.resolve()), kind)
    except CheckpointError:
        return False
    return True


def _shown(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _openings(texts: list[str], seed: int) -> list[str]:
    rng = np.random.default_rng([seed, 3])
    cut = (" ".join(text.split()[: int(rng.integers(*PROMPT_WORDS))]) for text in texts)
    return list(dict.fromkeys(opening for opening in cut if len(opening) > 2))


def _synthetic_corpus(config: SandboxConfig) -> Corpus:
    reviews = ReviewGrammar(config.seed).reviews(config.num_reviews)
    heldout_size = int(config.num_reviews * HELDOUT_SHARE)
    heldout, rest = reviews[:heldout_size], reviews[heldout_size:]
    split, texts = len(rest) * 2 // 5, [review.text for review in rest]
    return Corpus(
        policy=texts,
        reward=(texts[:split], [review.labels["proxy"] for review in rest[:split]]),
        gold=(texts[split:], [review.labels["gold"] for review in rest[split:]]),
        heldout_reward=([r.text for r in heldout], [r.labels["proxy"] for r in heldout]),
        heldout_gold=([r.text for r in heldout], [r.labels["gold"] for r in heldout]),
        openings=_openings([review.text for review in heldout], config.seed),
    )


def _user_corpus(config: SandboxConfig) -> Corpus:
    pairs = read_labelled(config.corpus, config.encoding)
    order = np.random.default_rng([config.seed, 1]).permutation(len(pairs))
    pairs = [pairs[int(i)] for i in order]
    size = int(len(pairs) * HELDOUT_SHARE)
    heldout, rest = pairs[:size], pairs[size:]
    half = len(rest) // 2

    def columns(rows: list[tuple[str, int]]) -> Labelled:
        return [text for text, _ in rows], [label for _, label in rows]

    return Corpus(
        policy=[text for text, _ in rest],
        reward=columns(rest[:half]),
        gold=columns(rest[half:]),
        heldout_reward=columns(heldout),
        heldout_gold=columns(heldout),
        openings=_openings([text for text, _ in heldout], config.seed),
    )


def _parts(
    config: SandboxConfig, corpus: Corpus
) -> list[tuple[str, Kind, Callable[[Path], dict[str, float]]]]:
    """Name, kind and builder of each model; all three share the policy's tokenizer."""
    texts = corpus.policy[: config.policy_texts]
    epochs = config.policy_epochs or max(1.0, 1.5 * config.policy_texts / len(texts))
    source = ", ".join(config.corpus) or "the embedded synthetic movie reviews"

    def shared_tokenizer() -> Any:
        """The policy's tokenizer; trained again, with the same result, while the policy is built."""
        if (config.out / "policy").exists():
            return AutoTokenizer.from_pretrained(config.out / "policy")
        return train_tokenizer(texts, config.vocab_size, config.max_length)

    def policy(directory: Path) -> dict[str, float]:
        tokenizer = train_tokenizer(texts, config.vocab_size, config.max_length)
        shape = Shape(config.policy_hidden, config.policy_layers, epochs, 2e-3)
        with _scratch() as scratch, TrainerProgress("policy") as progress:
            model, metrics = train_policy(
                tokenizer,
                texts,
                corpus.heldout_reward[0][:1000],
                shape,
                max_length=config.max_length,
                seed=config.seed,
                scratch=scratch,
                callbacks=[progress.callback],
            )
        _save(directory, model, tokenizer, "causal-lm", "Reference policy", source, config, metrics)
        return metrics

    def classifier(
        name: str, title: str, data: Labelled, heldout: Labelled, shape: Shape, seed: int
    ) -> Callable[[Path], dict[str, float]]:
        def build(directory: Path) -> dict[str, float]:
            tokenizer = shared_tokenizer()
            with _scratch() as scratch, TrainerProgress(name) as progress:
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
            _save(directory, model, tokenizer, "reward", title, source, config, metrics)
            return metrics

        return build

    # A classifier with few training texts sees each of them more often, up to 4 times.
    def classifier_epochs(data: Labelled) -> float:
        return float(np.clip(16_000 / len(data[0]), 1, 4))

    reward_shape = Shape(64, 2, classifier_epochs(corpus.reward), 2e-3)
    gold_shape = Shape(128, 3, classifier_epochs(corpus.gold), 1e-3)
    reward = classifier(
        "reward model",
        "Reward model (proxy: used for selection and training)",
        corpus.reward,
        corpus.heldout_reward,
        reward_shape,
        config.seed + 1,
    )
    gold = classifier(
        "gold reward model",
        "Gold reward model (held out: used only for reporting)",
        corpus.gold,
        corpus.heldout_gold,
        gold_shape,
        config.seed + 1001,
    )
    return [
        ("policy", "causal-lm", policy),
        ("reward", "reward", reward),
        ("gold", "reward", gold),
    ]


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vbon-") as name:
        yield Path(name)


def _save(
    directory: Path,
    model: Any,
    tokenizer: Any,
    kind: Kind,
    title: str,
    source: str,
    config: SandboxConfig,
    metrics: dict[str, float],
) -> None:
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
