"""Samples policies on held-out prompts and measures rewards and KL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.rollouts.predictor import Predictor, terms_of
from training.rollouts.rollout import Rollout, sample_responses
from vbon.maths.seeds import seed_of
from vbon.progress_bar import ProgressBar
from vbon.prompts import Prompt
from vbon.rewards import RewardModel, Scorable
from vbon.rewards.truncation import with_missing_eos_reward
from vbon.work_report import MEASURED_ANSWERS

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PromptSamples:
    """The samples of one policy for one prompt, without those that could not be scored.

    Attributes:
        rewards: shape ``(K,)``.
        gold: gold rewards, shape ``(K,)``; ``None`` without a gold reward model.
        ref_logprob: ``log p(y)`` in nats, shape ``(K,)``.
        kl_naive: ``log q(y) - log p(y)`` of each sample, in nats; may be negative.
        kl_rb: Rao-Blackwellised KL in nats: the exact KL per token, summed along each sample.
        tokens: response tokens per sample.
        unscored: number of samples left out, for lack of a finite reward or gold reward.
        truncated: number of samples that the token limit cut off, unscored ones included.
        responses: the token ids of each sample, EOS included.
        cut_off: 1 for each sample that the token limit cut off, shape ``(K,)``.
    """

    rewards: Float
    gold: Float | None
    ref_logprob: Float
    kl_naive: Float
    kl_rb: Float
    tokens: Float
    unscored: int
    truncated: int = 0
    responses: list[NDArray[np.int32]] = field(default_factory=list)
    cut_off: Float | None = None

    @property
    def kl_k3(self) -> Float:
        """The k3 estimator ``exp(d) - 1 - d``, ``d = log p - log q``: never negative, noisy far from p."""
        d = -self.kl_naive
        return np.exp(d) - 1 - d


@dataclass(frozen=True, slots=True)
class Measurer:
    """Samples and scores policies with fixed settings, so that all are measured alike."""

    tokenizer: Any
    reference: Any
    reward: RewardModel
    gold: RewardModel | None
    max_new_tokens: int
    temperature: float
    batch_size: int
    seed: int
    extra_stop_ids: tuple[int, ...] = ()
    missing_eos_reward: float | None = None

    def measure(
        self,
        policy: Any,
        prompts: Sequence[tuple[Prompt, list[int]]],
        num_samples: int,
        title: str,
        draw: str = "",
    ) -> list[PromptSamples]:
        """Draw and score ``num_samples`` responses to each prompt; one entry per prompt, in order.

        Args:
            title: shown with the progress; measurements with other titles have other samples.
            draw: measurements with other draws have other samples too.
        """
        parts: list[list[PromptSamples]] = [[] for _ in prompts]
        total = len(prompts) * num_samples
        with ProgressBar(title, total, work=MEASURED_ANSWERS) as progress:
            for places, first, count in self._batches(len(prompts), num_samples):
                part = [prompts[place] for place in places]
                seeds = [seed_of(f"measure:{self.seed}:{title}{draw}:{p.key}") for p, _ in part]
                found = self._measure_batch(policy, part, count, seeds, first)
                for place, samples in zip(places, found, strict=True):
                    parts[place].append(samples)
                progress.advance(len(part) * count)
        return [_joined(of_prompt) for of_prompt in parts]

    def _batches(self, num_prompts: int, num_samples: int) -> Iterator[tuple[range, int, int]]:
        """The places of a batch's prompts, the first sample of each, and the number of samples of each.

        A batch has several prompts with all of their samples, or a part of one prompt's samples.
        """
        per_batch = max(1, self.batch_size // num_samples)
        for start in range(0, num_prompts, per_batch):
            places = range(start, min(start + per_batch, num_prompts))
            for first in range(0, num_samples, self.batch_size if per_batch == 1 else num_samples):
                yield places, first, min(self.batch_size, num_samples - first)

    @torch.no_grad()
    def _measure_batch(
        self,
        policy: Any,
        prompts: Sequence[tuple[Prompt, list[int]]],
        num_samples: int,
        seeds: Sequence[int],
        skip: int,
    ) -> list[PromptSamples]:
        rollout = sample_responses(
            policy,
            self.tokenizer,
            [ids for _, ids in prompts],
            num_samples=num_samples,
            max_new_tokens=self.max_new_tokens,
            seeds=seeds,
            temperature=self.temperature,
            extra_stop_ids=self.extra_stop_ids,
            skip=skip,
        )
        terms = terms_of(
            Predictor(policy, self.temperature),
            Predictor(self.reference, self.temperature),
            rollout,
        )
        reasons = rollout.finish_reasons(self.tokenizer, self.extra_stop_ids)
        cut_off = np.array([reason == "length" for reason in reasons])
        rewards, gold = self._scores(rollout, prompts, num_samples, cut_off)
        logprob, ref_logprob = terms.logprob_BT.sum(1), terms.ref_logprob_BT.sum(1)
        columns = {
            "ref_logprob": ref_logprob,
            "kl_naive": logprob - ref_logprob,
            "kl_rb": terms.kl_BT.sum(1),
            "tokens": rollout.mask_BT.sum(1),
        }
        arrays = {name: value.double().cpu().numpy() for name, value in columns.items()}
        tokens = rollout.response_BT.int().cpu().numpy()
        mask = rollout.mask_BT.cpu().numpy()
        responses = [row[kept] for row, kept in zip(tokens, mask, strict=True)]
        return [
            _scored_samples(
                slice(i * num_samples, (i + 1) * num_samples),
                rewards,
                gold,
                cut_off,
                arrays,
                responses,
            )
            for i in range(len(prompts))
        ]

    def _scores(
        self,
        rollout: Rollout,
        prompts: Sequence[tuple[Prompt, list[int]]],
        num_samples: int,
        cut_off: NDArray[np.bool_],
    ) -> tuple[Float, Float | None]:
        texts = rollout.texts(self.tokenizer, self.extra_stop_ids)
        items = [Scorable(prompts[i // num_samples][0], text) for i, text in enumerate(texts)]

        def scores(model: RewardModel, missing_eos_reward: float | None) -> Float:
            rewards = with_missing_eos_reward(
                model.score(items), cut_off.tolist(), missing_eos_reward
            )
            return np.array([np.nan if r is None else r for r in rewards])

        # A gold model's rewards have another scale, so its own judgement of a cut-off sample stays.
        gold = None if self.gold is None else scores(self.gold, None)
        return scores(self.reward, self.missing_eos_reward), gold


def _scored_samples(
    rows: slice,
    rewards: Float,
    gold: Float | None,
    cut_off: NDArray[np.bool_],
    columns: Mapping[str, Float],
    responses: Sequence[NDArray[np.int32]],
) -> PromptSamples:
    """One prompt's rows of a batch, without those that lack a finite reward or gold reward."""
    scored = np.isfinite(rewards[rows])
    if gold is not None:
        scored &= np.isfinite(gold[rows])
    return PromptSamples(
        rewards=rewards[rows][scored],
        gold=None if gold is None else gold[rows][scored],
        unscored=int((~scored).sum()),
        truncated=int(cut_off[rows].sum()),
        cut_off=cut_off[rows][scored].astype(np.float64),
        responses=[ids for ids, kept in zip(responses[rows], scored, strict=True) if kept],
        **{name: values[rows][scored] for name, values in columns.items()},
    )


def _joined(parts: Sequence[PromptSamples]) -> PromptSamples:
    """All samples of a prompt that was measured in several batches."""
    if len(parts) == 1:
        return parts[0]
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("rewards", "ref_logprob", "kl_naive", "kl_rb", "tokens")
    }
    gold = [part.gold for part in parts if part.gold is not None]
    return PromptSamples(
        gold=np.concatenate(gold) if gold else None,
        unscored=sum(part.unscored for part in parts),
        truncated=sum(part.truncated for part in parts),
        responses=[response for part in parts for response in part.responses],
        **arrays,
    )
