"""Gathers a step's sequences, fresh or cached, with their rewards and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any, Literal

import numpy as np
import torch

from training.cache.reward_cache import RewardCache
from training.objectives.protocol import CachedChoice, SamplesNeeded
from training.rollouts.generator import Generator
from training.rollouts.rollout import Rollout, rollout_of
from training.train.cached_choice import choose_indices
from vbon.errors import RewardError
from vbon.maths.seeds import seed_of
from vbon.rewards import RewardModel, Scorable
from vbon.rewards.truncation import with_missing_eos_reward

# The prompts of one process, each as (place in the step, row of the cache).
Rows = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class StepSamples:
    """A step's sequences from one source; :class:`Samples` describes the tensors."""

    rollout: Rollout
    group_size: int
    reward_B: torch.Tensor
    log_cdf_B: torch.Tensor
    log_cdf_le_B: torch.Tensor
    ref_logprob_B: torch.Tensor | None
    log_quantile_B: torch.Tensor | None = None
    truncated_B: torch.Tensor | None = None  # True for fresh samples that the token limit cut off
    unscored: int = 0  # number of fresh samples without a reward, in whose place are others

    def of_prompts(self, start: int, stop: int) -> StepSamples:
        """The samples of prompts ``start`` to ``stop - 1`` of the step."""
        rows = slice(start * self.group_size, stop * self.group_size)
        reference, quantile = self.ref_logprob_B, self.log_quantile_B
        return StepSamples(
            self.rollout.rows(rows),
            self.group_size,
            self.reward_B[rows],
            self.log_cdf_B[rows],
            self.log_cdf_le_B[rows],
            None if reference is None else reference[rows],
            None if quantile is None else quantile[rows],
        )


# The share of a step's samples that may lack a reward; one sample always may.
MOST_UNSCORED = 0.1


def _check_unscored(items: Sequence[Scorable], rewards: Sequence[float | None]) -> None:
    missing = [item.completion for item, r in zip(items, rewards, strict=True) if r is None]
    if len(missing) > max(1, MOST_UNSCORED * len(items)):
        raise RewardError(
            f"{len(missing)} of {len(items)} samples have no finite reward, the first is "
            f"{missing[0][:80]!r}; leaving out more than {MOST_UNSCORED:.0%} of a step's samples would bias "
            "the training, so check the reward model"
        )


def stand_ins(rewards: Sequence[float | None], group: int) -> list[int]:
    """The places of the samples to train on: its own for a scored sample, another's of its group otherwise.

    The scored samples of a group take turns.

    Raises:
        RewardError: a group has no scored sample.
    """
    found: list[int] = []
    for start in range(0, len(rewards), group):
        places = range(start, start + group)
        scored = [i for i in places if rewards[i] is not None]
        if not scored:
            raise RewardError(
                f"none of the {group} samples of a prompt has a finite reward; check the reward model"
            )
        turns = cycle(scored)
        found += [next(turns) if rewards[i] is None else i for i in places]
    return found


Source = Literal["policy", "cached", "anchor"]
SamplesBySource = dict[Source, StepSamples]


class StepSampler:
    """Samples and scores the prompts of a step.

    All randomness comes from the seed, the step, the prompt's place in the step and the source. So
    neither the number of processes nor an interruption changes a sample.
    """

    def __init__(
        self,
        tokenizer: Any,
        reward: RewardModel,
        cache: RewardCache,
        generator: Generator,
        *,
        samples_per_prompt: int,
        seed: int,
        device: torch.device,
        missing_eos_reward: float | None = None,
    ) -> None:
        self._tokenizer, self._reward, self._cache = tokenizer, reward, cache
        self._generator, self._device = generator, device
        self._samples_per_prompt, self._base_seed = samples_per_prompt, seed
        self._missing_eos_reward = missing_eos_reward

    def sample(
        self, step: int, needed: SamplesNeeded, rows: Rows, policy: Any, anchor: Any
    ) -> dict[Source, Rollout]:
        """Draw the fresh samples of policy and anchor that the objective needs."""
        rollouts: dict[Source, Rollout] = {}
        if needed.policy:
            rollouts["policy"] = self._generate(
                step, "policy", rows, policy, self._samples_per_prompt
            )
        if needed.anchor_samples:
            rollouts["anchor"] = self._generate(step, "anchor", rows, anchor, needed.anchor_samples)
        return rollouts

    def score(self, rollout: Rollout, rows: Rows) -> StepSamples:
        """Score fresh samples.

        A sample without a reward is left out, and another one of its prompt stands in its place too, so that
        groups keep their size. That biases the step towards texts that can be scored, so it must be rare.

        Raises:
            RewardError: too many samples have no finite reward, or all of a prompt.
        """
        group = len(rollout.mask_BT) // len(rows)
        texts = rollout.texts(self._tokenizer, self._generator.extra_stop_ids)
        prompts = [self._cache.prompt(row) for _, row in rows]
        items = [Scorable(prompts[i // group], text) for i, text in enumerate(texts)]
        reasons = rollout.finish_reasons(self._tokenizer, self._generator.extra_stop_ids)
        cut_off = [reason == "length" for reason in reasons]
        rewards = with_missing_eos_reward(
            self._reward.score(items), cut_off, self._missing_eos_reward
        )
        unscored = sum(reward is None for reward in rewards)
        if unscored:
            _check_unscored(items, rewards)
            places = stand_ins(rewards, group)
            rollout = rollout.rows(torch.tensor(places, device=rollout.mask_BT.device))
            rewards, cut_off = [rewards[i] for i in places], [cut_off[i] for i in places]
        ranked = self._with_ranks(rollout, rows, [float(r) for r in rewards if r is not None], None)
        truncated = torch.tensor(cut_off, device=self._device)
        return replace(ranked, truncated_B=truncated, unscored=unscored)

    def from_cache(
        self, step: int, choice: CachedChoice, rows: Rows, *, ref_logprob: bool
    ) -> StepSamples:
        """Take cached samples with their rewards, and the stored ``log p`` if asked for.

        Raises:
            DataError: a prompt has too few cached samples.
        """
        count = self._samples_per_prompt
        prompts, responses, rewards, reference, quantiles = [], [], [], [], []
        for place, row in rows:
            of_prompt = self._cache.rewards(row)
            rng = np.random.default_rng(self._seed(step, place, "cached"))
            picks = choose_indices(choice, of_prompt, count, rng)
            prompts += [self._cache.prompt_ids(row)] * count
            responses += [self._cache.response(row, index) for index in picks]
            rewards += [float(of_prompt[index]) for index in picks]
            quantiles += self._cache.log_quantile(row, of_prompt[picks]).tolist()
            if ref_logprob:
                known = self._cache.ref_logprob(row)
                assert known is not None, "the run computes log p before it trains"
                reference += [float(known[index]) for index in picks]
        device = self._device
        rollout = rollout_of(prompts, responses, self._tokenizer, device)
        logprob = torch.tensor(reference, device=device) if ref_logprob else None
        ranked = self._with_ranks(rollout, rows, rewards, logprob)
        return replace(ranked, log_quantile_B=torch.tensor(quantiles, device=device))

    def _generate(
        self, step: int, source: Source, rows: Rows, model: Any, num_samples: int
    ) -> Rollout:
        prompts = [self._cache.prompt_ids(row) for _, row in rows]
        seeds = [self._seed(step, place, source) for place, _ in rows]
        return self._generator.sample(model, prompts, num_samples, seeds)

    def _seed(self, step: int, place: int, source: Source) -> int:
        return seed_of(f"{self._base_seed}:{step}:{place}:{source}")

    def _with_ranks(
        self,
        rollout: Rollout,
        rows: Rows,
        rewards: list[float],
        ref_logprob: torch.Tensor | None,
    ) -> StepSamples:
        """Rank each reward among the cached rewards of its prompt, strictly and with ``<=``."""
        group = len(rewards) // len(rows)
        by_prompt = np.asarray(rewards).reshape(len(rows), group)
        device = rollout.mask_BT.device

        def log_cdf(inclusive: bool) -> torch.Tensor:
            values = [
                self._cache.log_cdf(row, of_prompt, inclusive=inclusive)
                for (_, row), of_prompt in zip(rows, by_prompt, strict=True)
            ]
            return torch.tensor(np.concatenate(values), dtype=torch.float32, device=device)

        reward = torch.tensor(rewards, dtype=torch.float32, device=device)
        return StepSamples(rollout, group, reward, log_cdf(False), log_cdf(True), ref_logprob)
