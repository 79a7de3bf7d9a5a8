"""Splits a corpus into the texts, labels and prompts of each part of the sandbox."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.configs import SandboxConfig
from training.sandbox.corpus import ReviewGrammar
from training.sandbox.labelled import read_labelled
from vbon.errors import DataError

Labelled = tuple[list[str], list[int]]

HELDOUT_SHARE = 0.1
# A prompt is the first 3 to 6 words of a review; the upper bound is exclusive.
PROMPT_WORDS = (3, 7)


@dataclass(frozen=True, slots=True)
class SandboxTexts:
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


def sandbox_texts(config: SandboxConfig) -> SandboxTexts:
    """Read the user's corpus, or generate the embedded one, and split it.

    Raises:
        DataError: the corpus cannot be used.
    """
    split = (
        corpus_texts(config.corpus, config.encoding, config.seed)
        if config.corpus
        else _from_grammar(config)
    )
    _check(split, config)
    return split


def _check(split: SandboxTexts, config: SandboxConfig) -> None:
    """Check what would otherwise fail only after minutes of training.

    Raises:
        DataError: there are too few openings, or all held-out reviews have the same label.
    """
    count = config.train_prompts + config.heldout_prompts
    if len(split.openings) < count:
        raise DataError(
            f"the corpus has {len(split.openings)} distinct held-out openings, fewer than "
            f"train_prompts + heldout_prompts = {count}; ask for fewer prompts"
        )
    check_both_labels(split)


def check_both_labels(split: SandboxTexts) -> None:
    """Check that the held-out texts have both labels, without which no accuracy says anything.

    Raises:
        DataError: all have the same.
    """
    for texts, labels in (split.heldout_reward, split.heldout_gold):
        if set(labels) != {0, 1}:
            raise DataError(
                f"the {len(texts)} texts held out to evaluate the reward models all have label "
                f"{labels[0]}; add texts of label {1 - labels[0]}, or try another --seed"
            )


def _from_grammar(config: SandboxConfig) -> SandboxTexts:
    reviews = ReviewGrammar(config.seed).reviews(config.num_reviews)
    heldout_size = int(config.num_reviews * HELDOUT_SHARE)
    heldout, rest = reviews[:heldout_size], reviews[heldout_size:]
    split, texts = len(rest) * 2 // 5, [review.text for review in rest]
    return SandboxTexts(
        policy=texts,
        reward=(texts[:split], [review.labels["proxy"] for review in rest[:split]]),
        gold=(texts[split:], [review.labels["gold"] for review in rest[split:]]),
        heldout_reward=([r.text for r in heldout], [r.labels["proxy"] for r in heldout]),
        heldout_gold=([r.text for r in heldout], [r.labels["gold"] for r in heldout]),
        openings=_openings([review.text for review in heldout], config.seed),
    )


def corpus_texts(corpus: list[str], encoding: str | None, seed: int) -> SandboxTexts:
    """Read labelled texts and split them: a tenth is held out, and the two reward models share the rest.

    Raises:
        DataError: the corpus cannot be used.
    """
    pairs = read_labelled(corpus, encoding)
    order = np.random.default_rng([seed, 1]).permutation(len(pairs))
    pairs = [pairs[int(i)] for i in order]
    size = int(len(pairs) * HELDOUT_SHARE)
    heldout, rest = pairs[:size], pairs[size:]
    half = len(rest) // 2

    def columns(rows: list[tuple[str, int]]) -> Labelled:
        return [text for text, _ in rows], [label for _, label in rows]

    return SandboxTexts(
        policy=[text for text, _ in rest],
        reward=columns(rest[:half]),
        gold=columns(rest[half:]),
        heldout_reward=columns(heldout),
        heldout_gold=columns(heldout),
        openings=_openings([text for text, _ in heldout], seed),
    )


def _openings(texts: list[str], seed: int) -> list[str]:
    rng = np.random.default_rng([seed, 3])
    cut = (" ".join(text.split()[: int(rng.integers(*PROMPT_WORDS))]) for text in texts)
    return list(dict.fromkeys(opening for opening in cut if len(opening) > 2))
