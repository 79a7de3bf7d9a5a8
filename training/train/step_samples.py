"""Draws a step's sequences, fresh or from the cache, and says what they are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from training.cache.reward_cache import RewardCache
from training.objectives.protocol import CachedDraw, Draws
from training.rollouts.generator import Generator
from training.rollouts.rollout import Rollout, rollout_of
from training.train.cached_choice import draw_indices
from vbon.errors import RewardError
from vbon.maths.seeds import seed_of
from vbon.rewards import RewardModel, Scorable

# (place in the step, row of the cache) of a process's prompts.
Rows = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Drawn:
    """One source's sequences for a step, and what they are worth; see :class:`Samples`."""

    rollout: Rollout
    group_size: int
    reward_B: torch.Tensor
    log_cdf_B: torch.Tensor
    log_cdf_le_B: torch.Tensor
    ref_logprob_B: torch.Tensor | None

    def of_prompts(self, start: int, stop: int) -> Drawn:
        """The rows of some of the step's prompts."""
        rows = slice(start * self.group_size, stop * self.group_size)
        reference = self.ref_logprob_B
        return Drawn(
            self.rollout.rows(rows),
            self.group_size,
            self.reward_B[rows],
            self.log_cdf_B[rows],
            self.log_cdf_le_B[rows],
            None if reference is None else reference[rows],
        )


Source = Literal["policy", "cached", "anchor"]
Sources = dict[Source, Drawn]


class Drawer:
    """Randomness is from (seed, step, place of the prompt in the step, source) alone."""

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
    ) -> None:
        self._tokenizer, self._reward, self._cache = tokenizer, reward, cache
        self._generator, self._device = generator, device
        self._samples_per_prompt, self._base_seed = samples_per_prompt, seed

    def _seed(self, step: int, place: int, source: Source) -> int:
        return seed_of(f"{self._base_seed}:{step}:{place}:{source}")

    def sample(
        self, step: int, draws: Draws, rows: Rows, policy: Any, anchor: Any
    ) -> dict[Source, Rollout]:
        """Fresh samples of the policy and its anchor, as the objective's draws say."""
        prompts = [self._cache.prompt_ids(row) for _, row in rows]
        rollouts: dict[Source, Rollout] = {}
        if draws.policy:
            rollouts["policy"] = self._generator.sample(
                policy,
                prompts,
                self._samples_per_prompt,
                [self._seed(step, place, "policy") for place, _ in rows],
            )
        if draws.anchor_samples:
            rollouts["anchor"] = self._generator.sample(
                anchor,
                prompts,
                draws.anchor_samples,
                [self._seed(step, place, "anchor") for place, _ in rows],
            )
        return rollouts

    def score(self, rollout: Rollout, rows: Rows) -> Drawn:
        """Fresh samples with their rewards.

        Raises:
            RewardError: a sample has none; leaving it out would bias the step.
        """
        group = len(rollout.mask_BT) // len(rows)
        texts = rollout.texts(self._tokenizer)
        prompts = [self._cache.prompt(row) for _, row in rows]
        items = [Scorable(prompts[i // group], text) for i, text in enumerate(texts)]
        rewards = self._reward.score(items)
        missing = [item.completion for item, r in zip(items, rewards, strict=True) if r is None]
        if missing:
            raise RewardError(
                f"{len(missing)} of {len(items)} samples have no finite reward, the first "
                f"{missing[0][:80]!r}; training cannot leave samples out without a bias"
            )
        return self._drawn(rollout, rows, [float(r) for r in rewards if r is not None], None)

    def from_cache(self, step: int, draw: CachedDraw, rows: Rows) -> Drawn:
        """Cached samples with their rewards, and ``log p`` if the draw asks for it.

        Raises:
            DataError: a prompt has too few.
        """
        count = self._samples_per_prompt
        prompts, responses, rewards, reference = [], [], [], []
        for place, row in rows:
            of_prompt = self._cache.rewards(row)
            rng = np.random.default_rng(self._seed(step, place, "cached"))
            picks = draw_indices(draw, of_prompt, count, rng)
            prompts += [self._cache.prompt_ids(row)] * count
            responses += [self._cache.response(row, index) for index in picks]
            rewards += [float(of_prompt[index]) for index in picks]
            if draw.ref_logprob:
                known = self._cache.ref_logprob(row)
                assert known is not None, "the run prepares log p before it trains"
                reference += [float(known[index]) for index in picks]
        device = self._device
        rollout = rollout_of(prompts, responses, self._tokenizer, device)
        return self._drawn(
            rollout, rows, rewards,
            torch.tensor(reference, device=device) if draw.ref_logprob else None,
        )  # fmt: skip

    def _drawn(
        self,
        rollout: Rollout,
        rows: Rows,
        rewards: list[float],
        reference: torch.Tensor | None,
    ) -> Drawn:
        group = len(rewards) // len(rows)
        by_prompt = np.asarray(rewards).reshape(len(rows), group)
        device = rollout.mask_BT.device

        def ranks(inclusive: bool) -> torch.Tensor:
            values = [
                self._cache.log_cdf(row, of_prompt, inclusive=inclusive)
                for (_, row), of_prompt in zip(rows, by_prompt, strict=True)
            ]
            return torch.tensor(np.concatenate(values), dtype=torch.float32, device=device)

        reward = torch.tensor(rewards, dtype=torch.float32, device=device)
        return Drawn(rollout, group, reward, ranks(False), ranks(True), reference)
