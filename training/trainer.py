"""The on-policy trainer: sample -> score -> weight -> loss -> step, blind to which objective.

It may begin with a warm start that imitates cached samples (``training.warm_start``). Every step
draws its randomness from (seed, step, process) alone, so a resumed run takes the very steps an
unbroken one would have taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from bestofn.errors import DataError, RewardError
from bestofn.prompts import Prompt
from bestofn.rewards import RewardModel, Scorable
from training.cache import RewardCache
from training.objectives import OnPolicyObjective, ScoredBatch
from training.policy_gradient import TokenTerms, policy_gradient_loss
from training.rollout import Rollout, response_logits, sample_responses, terms_of
from training.warm_start import Example, imitation_loss


@dataclass(frozen=True, slots=True)
class TrainerOptions:
    """What one step does; see ``VbonConfig`` for the meanings."""

    steps: int
    prompts_per_step: int
    samples_per_prompt: int
    micro_batch_size: int
    max_new_tokens: int
    temperature: float
    learning_rate: float
    warmup_steps: int
    warm_start_steps: int
    warm_start_learning_rate: float
    max_grad_norm: float
    seed: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's samples and what they are worth."""

    rollout: Rollout
    reward_B: torch.Tensor
    log_cdf_B: torch.Tensor


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One row of the training history; rewards and KL are means over the step's samples.

    The warm start draws nothing, so it has no rewards and no KL.
    """

    step: int
    phase: Literal["warm-start", "on-policy"]
    loss: float
    reward: float | None
    log_cdf: float | None
    kl_nats: float | None
    response_tokens: float
    grad_norm: float
    learning_rate: float
    sample_s: float
    score_s: float
    learn_s: float


def scheduled_learning_rate(step: int, options: TrainerOptions) -> float:
    """Linear warm-up and linear decay, once for the warm start and once for the on-policy steps."""
    if step < options.warm_start_steps:
        peak, at, length = options.warm_start_learning_rate, step, options.warm_start_steps
    else:
        peak, at, length = options.learning_rate, step - options.warm_start_steps, options.steps
    rising = (at + 1) / (options.warmup_steps + 1)
    falling = max(0.0, (length - at) / max(1, length))
    return peak * min(rising, falling)


class OnPolicyTrainer:
    """Tunes a policy against a frozen reference.

    Args:
        policy: the model to tune, maybe a PEFT model.
        reference: the frozen reference.
        prompts: what to draw from; each must be in the cache.
        examples: what the warm start imitates; needed if there are warm-start steps.
    """

    def __init__(
        self,
        policy: Any,
        reference: Any,
        tokenizer: Any,
        reward: RewardModel,
        cache: RewardCache,
        objective: OnPolicyObjective,
        prompts: Sequence[tuple[Prompt, list[int]]],
        options: TrainerOptions,
        examples: Sequence[Example] = (),
    ) -> None:
        self.options = options
        self.accelerator = Accelerator()
        self._tokenizer, self._reward, self._cache = tokenizer, reward, cache
        self._objective, self._prompts, self._examples = objective, prompts, examples
        for prompt, _ in prompts:
            cache.rewards(prompt.key)
        trainable = [p for p in policy.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=1.0, betas=(0.9, 0.99), weight_decay=0.0)
        # Base rate 1, so that what the schedule returns is the learning rate itself.
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: scheduled_learning_rate(step, options)
        )
        self.policy, self._optimizer = self.accelerator.prepare(policy, optimizer)
        self._schedule = schedule
        self._reference = reference
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self.accelerator.register_for_checkpointing(self._schedule)

    @property
    def total_steps(self) -> int:
        """Warm-start and on-policy steps."""
        return self.options.warm_start_steps + self.options.steps

    @property
    def _unwrapped(self) -> Any:
        return self.accelerator.unwrap_model(self.policy)

    def step(self, step: int) -> StepMetrics:
        """One optimizer step.

        Raises:
            DataError: the loss is no longer a number.
        """
        self._seed(step)
        if step < self.options.warm_start_steps:
            return self._imitate(step)
        if step == self.options.warm_start_steps:
            self._optimizer.state.clear()  # its averages are of another loss
        return self._explore(step)

    def _imitate(self, step: int) -> StepMetrics:
        begun = time.perf_counter()
        batch = self._choose_examples(step)
        self._optimizer.zero_grad()
        loss = imitation_loss(self.policy, batch, self.options.temperature)
        self.accelerator.backward(loss)
        learning_rate = self._schedule.get_last_lr()[0]
        grad_norm = self._update(step, float(loss.detach()))
        return StepMetrics(
            step=step,
            phase="warm-start",
            loss=float(loss.detach()),
            reward=None,
            log_cdf=None,
            kl_nats=None,
            response_tokens=sum(e.response_tokens for e in batch) / len(batch),
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            sample_s=0.0,
            score_s=0.0,
            learn_s=time.perf_counter() - begun,
        )

    def _explore(self, step: int) -> StepMetrics:
        begun = time.perf_counter()
        chosen = self._choose_prompts(step)
        rollout = self._sample(chosen)
        sampled = time.perf_counter()
        batch = self._weight(rollout, chosen, self._score(rollout, chosen))
        scored = time.perf_counter()
        loss, kl = self._learn(batch)
        learning_rate = self._schedule.get_last_lr()[0]
        grad_norm = self._update(step, loss)
        return StepMetrics(
            step=step,
            phase="on-policy",
            loss=loss,
            reward=float(batch.reward_B.mean()),
            log_cdf=float(batch.log_cdf_B.mean()),
            kl_nats=kl,
            response_tokens=float(rollout.mask_BT.sum(1).float().mean()),
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            sample_s=sampled - begun,
            score_s=scored - sampled,
            learn_s=time.perf_counter() - scored,
        )

    def _update(self, step: int, loss: float) -> float:
        """Clip, step and move the schedule; the gradient norm before clipping."""
        grad_norm = float(
            self.accelerator.clip_grad_norm_(self.policy.parameters(), self.options.max_grad_norm)
        )
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            raise DataError(
                f"step {step}: loss {loss}, gradient norm {grad_norm}: the run diverged; lower "
                "the learning rate"
            )
        self._optimizer.step()
        self._schedule.step()
        return grad_norm

    def _seed(self, step: int) -> None:
        process = self.accelerator.process_index
        torch.manual_seed(
            int(np.random.default_rng([self.options.seed, step, process]).integers(2**62))
        )

    def _choose_prompts(self, step: int) -> list[tuple[Prompt, list[int]]]:
        """This process's share of the step's prompts, the same draw on every process."""
        rng = np.random.default_rng([self.options.seed, step])
        count = self.options.prompts_per_step
        picks: list[int] = []
        while len(picks) < count:  # a small prompt set is gone through more than once
            picks.extend(int(i) for i in rng.permutation(len(self._prompts)))
        share = picks[:count][self.accelerator.process_index :: self.accelerator.num_processes]
        return [self._prompts[i] for i in share]

    def _choose_examples(self, step: int) -> list[Example]:
        """This process's share of a batch; every example once an epoch, in an order of its own."""
        size = self.options.prompts_per_step * self.options.samples_per_prompt
        count = len(self._examples)
        picks = []
        for position in range(step * size, (step + 1) * size):
            epoch, place = divmod(position, count)
            picks.append(self._examples[self._epoch_order(epoch)[place]])
        return picks[self.accelerator.process_index :: self.accelerator.num_processes]

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng([self.options.seed, epoch, len(self._examples)])
            self._order = (epoch, rng.permutation(len(self._examples)))
        return self._order[1]

    def _sample(self, chosen: list[tuple[Prompt, list[int]]]) -> Rollout:
        return sample_responses(
            self._unwrapped,
            self._tokenizer,
            [ids for _, ids in chosen],
            num_samples=self.options.samples_per_prompt,
            max_new_tokens=self.options.max_new_tokens,
            temperature=self.options.temperature,
        )

    def _score(self, rollout: Rollout, chosen: list[tuple[Prompt, list[int]]]) -> list[float]:
        group = self.options.samples_per_prompt
        texts = rollout.texts(self._tokenizer)
        items = [Scorable(chosen[i // group][0], text) for i, text in enumerate(texts)]
        rewards = self._reward.score(items)
        missing = [item.completion for item, r in zip(items, rewards, strict=True) if r is None]
        if missing:
            raise RewardError(
                f"{len(missing)} of {len(items)} samples have no finite reward, the first "
                f"{missing[0][:80]!r}; training cannot leave samples out without a bias"
            )
        return [float(r) for r in rewards if r is not None]

    def _weight(
        self, rollout: Rollout, chosen: list[tuple[Prompt, list[int]]], rewards: list[float]
    ) -> Batch:
        group = self.options.samples_per_prompt
        by_prompt = np.asarray(rewards).reshape(len(chosen), group)
        log_cdf = np.concatenate(
            [
                self._cache.log_cdf(prompt.key, row)
                for (prompt, _), row in zip(chosen, by_prompt, strict=True)
            ]
        )
        device = rollout.mask_BT.device
        return Batch(
            rollout,
            torch.tensor(rewards, dtype=torch.float32, device=device),
            torch.tensor(log_cdf, dtype=torch.float32, device=device),
        )

    def _learn(self, batch: Batch) -> tuple[float, float]:
        """Accumulate gradients over micro-batches of whole groups; mean loss and KL."""
        total, size = len(batch.reward_B), self.options.micro_batch_size
        self._optimizer.zero_grad()
        loss_sum = kl_sum = 0.0
        for start in range(0, total, size):
            rows = slice(start, min(start + size, total))
            last = rows.stop == total
            with nullcontext() if last else self.accelerator.no_sync(self.policy):
                terms = self._terms(batch.rollout.rows(rows))
                reward = self._objective.sequence_reward(
                    ScoredBatch(
                        log_cdf_B=batch.log_cdf_B[rows],
                        reward_B=batch.reward_B[rows],
                        ref_logprob_B=terms.ref_logprob_BT.sum(1),
                    )
                )
                loss = policy_gradient_loss(
                    terms, reward, self._objective.kl_coefficient, self.options.samples_per_prompt
                )
                share = (rows.stop - rows.start) / total
                self.accelerator.backward(loss * share)
            loss_sum += float(loss.detach()) * share
            kl_sum += float(terms.kl_BT.detach().sum(1).mean()) * share
        return loss_sum, kl_sum

    def _terms(self, rollout: Rollout) -> TokenTerms:
        temperature = self.options.temperature

        def policy(part: Rollout) -> torch.Tensor:
            return response_logits(self.policy, part, temperature)

        def reference(part: Rollout) -> torch.Tensor:
            return response_logits(self._reference, part, temperature)

        return terms_of(policy, reference, rollout)
