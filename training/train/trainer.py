"""The training step: sample, score, compute the loss, update; independent of the objective.

A run may begin with a warm start that imitates cached bests of N. All randomness of a step comes from
(seed, step, prompt). So a resumed run takes exactly the steps of an uninterrupted one, and several
processes draw the samples that a single one would draw.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedType

from training.cache.reward_cache import RewardCache
from training.objectives.protocol import Objective, Samples, StepBatch
from training.rollouts.generator import Generator, TransformersGenerator
from training.rollouts.predictor import Predictor, logprobs_of, terms_of
from training.rollouts.rollout import Rollout
from training.train.options import TrainerOptions, scheduled_learning_rate
from training.train.step_metrics import Phase, StepMetrics, StepSeconds, StepTotals, step_metrics
from training.train.step_samples import SamplesBySource, StepSampler
from vbon.errors import DivergedError, InvalidInputError
from vbon.maths.seeds import seed_of
from vbon.rewards import RewardModel


class Trainer:
    """Tunes a policy against a frozen reference.

    Args:
        policy: the model to tune; may be a PEFT model.
        reference: the frozen reference policy.
        cache: prompts and reference samples; must know ``log p`` if the objective needs it stored
            (:attr:`SamplesNeeded.stored_ref_logprob`).
        warm_start: the objective of the first ``warm_start_steps``, instead of ``objective``.

    Raises:
        InvalidInputError: settings that do not fit the objective or the number of processes.
    """

    def __init__(
        self,
        policy: Any,
        reference: Any,
        tokenizer: Any,
        reward: RewardModel,
        cache: RewardCache,
        objective: Objective,
        options: TrainerOptions,
        generator: Generator,
        warm_start: Objective | None = None,
    ) -> None:
        self.options = options
        self.accelerator = Accelerator()
        self._cache, self._generator = cache, generator
        self._objective, self._warm_start = objective, warm_start
        self._sampler = StepSampler(
            tokenizer,
            reward,
            cache,
            generator,
            samples_per_prompt=options.samples_per_prompt,
            seed=options.seed,
            device=self.accelerator.device,
            missing_eos_reward=options.missing_eos_reward,
        )
        self._check()
        trainable = [p for p in policy.parameters() if p.requires_grad]
        # The rate of 1 is a placeholder: each step sets the scheduled rate for all of its updates.
        optimizer = torch.optim.AdamW(trainable, lr=1.0, betas=(0.9, 0.99), weight_decay=0.0)
        self._anchor = reference
        if objective.samples_needed.anchor == "moving":
            frozen = {id(one): one for one in policy.parameters() if not one.requires_grad}
            self._anchor = copy.deepcopy(policy, frozen).requires_grad_(False)
            self.accelerator.register_for_checkpointing(self._anchor)
        self.policy, self._optimizer = self.accelerator.prepare(policy, optimizer)
        self._reference = reference

    def _check(self) -> None:
        options, processes = self.options, self.accelerator.num_processes
        objective, needed = self._objective, self._objective.samples_needed
        if options.prompts_per_step % processes:
            raise InvalidInputError(
                f"prompts_per_step {options.prompts_per_step} must be a multiple of the "
                f"{processes} processes",
                field="prompts_per_step",
            )
        least = objective.least_samples()
        if options.samples_per_prompt < least:
            raise InvalidInputError(
                f"samples_per_prompt {options.samples_per_prompt} is too few for "
                f"{objective.title} with {objective.label}, which needs at least {least}",
                field="samples_per_prompt",
            )
        # Several processes would stop after different numbers of tokens, and wait for each other.
        own_generation = processes > 1 and isinstance(self._generator, TransformersGenerator)
        if self.sharded and (needed.anchor == "moving" or own_generation):
            raise InvalidInputError(
                "FSDP with several processes requires --generation vllm, and none supports j-bond's moving "
                "anchor; use DDP, or another objective",
                field="generation",
            )
        if needed.cached and needed.cached.kind == "best-worst" and options.samples_per_prompt % 2:
            raise InvalidInputError(
                f"samples_per_prompt {options.samples_per_prompt} must be even, because "
                f"{objective.title} trains on pairs",
                field="samples_per_prompt",
            )
        if options.prompts_per_step // processes % needed.updates:
            raise InvalidInputError(
                f"updates {needed.updates} must divide the {options.prompts_per_step // processes} "
                "prompts that each process has in a step",
                field="updates",
            )

    @property
    def total_steps(self) -> int:
        """Number of steps of warm start and main phase together."""
        return self.options.warm_start_steps + self.options.steps

    @property
    def sharded(self) -> bool:
        """True if FSDP spreads the weights over processes."""
        return bool(self.accelerator.distributed_type == DistributedType.FSDP)

    def gathered_weights(self) -> dict[str, torch.Tensor] | None:
        """The complete weights of a sharded policy, or ``None`` if it is not sharded.

        Only the main process gets them. Gathering is collective, though: every process must call this.
        """
        if not self.sharded:
            return None
        gathered = self.accelerator.get_state_dict(self.policy)
        # Gathered one by one, a weight with two names (a tied output layer) would be saved twice.
        kept = {name for name, _ in self.policy.named_parameters()}
        named = {name for name, _ in self.policy.named_parameters(remove_duplicate=False)}
        return {name: value for name, value in gathered.items() if name not in named - kept}

    @property
    def unwrapped(self) -> Any:
        """The policy without its DDP or FSDP wrapper."""
        return self.accelerator.unwrap_model(self.policy)

    def step(self, step: int) -> StepMetrics:
        """Draw one batch of samples, and make the optimizer updates from it.

        Raises:
            DivergedError: the loss or its gradient is not finite.
        """
        warm = step < self.options.warm_start_steps
        objective = self._warm_start if warm and self._warm_start else self._objective
        if step == self.options.warm_start_steps:
            self._optimizer.state.clear()  # its running averages are those of another loss
        needed, rows = objective.samples_needed, self._choose_prompts(step)
        begun = time.perf_counter()
        with self._autocast():
            rollouts = self._sampler.sample(step, needed, rows, self.unwrapped, self._anchor)
        sampled = time.perf_counter()
        sources = {name: self._sampler.score(rollout, rows) for name, rollout in rollouts.items()}
        if needed.cached is not None:
            sources["cached"] = self._sampler.from_cache(
                step, needed.cached, rows, ref_logprob=needed.stored_ref_logprob
            )
        scored = time.perf_counter()
        learning_rate = scheduled_learning_rate(step, self.options)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        totals = self._learn(step, objective, sources, len(rows))
        if needed.anchor == "moving":
            self._move_anchor(needed.anchor_rate)
        seconds = StepSeconds(sampled - begun, scored - sampled, time.perf_counter() - scored)
        phase: Phase = "warm-start" if warm else "main"
        return step_metrics(self.accelerator, step, phase, totals, sources, learning_rate, seconds)

    @torch.no_grad()
    def kl_from_reference(self, num_prompts: int = 16, num_samples: int = 4) -> float:
        """Rao-Blackwellised KL(q || p) in nats on a few training prompts, to detect divergence."""
        rows = list(range(min(num_prompts, len(self._cache))))
        rollout = self._generator.sample(
            self.unwrapped,
            [self._cache.prompt_ids(row) for row in rows],
            num_samples,
            [seed_of(f"probe:{self.options.seed}:{row}") for row in rows],
        )
        terms = terms_of(self._predictor(self.unwrapped), self._predictor(self._reference), rollout)
        return float(terms.kl_BT.sum(1).mean())

    def _choose_prompts(self, step: int) -> list[tuple[int, int]]:
        """This process's prompts as (place in the step, row of the cache).

        All processes choose the same prompts and each takes its share. A set of fewer prompts than a step
        needs is used more than once.
        """
        rng = np.random.default_rng([self.options.seed, step])
        count = self.options.prompts_per_step
        picks: list[int] = []
        while len(picks) < count:
            picks.extend(int(i) for i in rng.permutation(len(self._cache)))
        places = list(enumerate(picks[:count]))
        # Dealt out in turn, so that each of a step's updates has the prompts it has in one process.
        return places[self.accelerator.process_index :: self.accelerator.num_processes]

    def _learn(
        self, step: int, objective: Objective, sources: SamplesBySource, num_prompts: int
    ) -> StepTotals:
        """Make the step's updates, each from its own share of the prompts, in micro-batches."""
        totals = StepTotals()
        updates = objective.samples_needed.updates
        share = num_prompts // updates
        for update in range(updates):
            self._optimizer.zero_grad()
            loss = 0.0
            first = update * share
            for start, stop, last in self._micro_batches(sources, first, first + share):
                weight = (stop - start) / share
                with nullcontext() if last else self.accelerator.no_sync(self.policy):
                    part = {
                        name: samples.of_prompts(start, stop) for name, samples in sources.items()
                    }
                    batch = self._forward(objective, part)
                    value = objective.loss(batch)
                    self.accelerator.backward(value * weight)
                loss += float(value.detach()) * weight
                if batch.policy is not None and batch.policy.kl_BT is not None:
                    kl = float(batch.policy.kl_BT.detach().sum(1).mean())
                    totals.kl = (totals.kl or 0.0) + kl * weight / updates
            totals.grad_norm = self._update(step, loss)
            totals.loss += loss / updates
        return totals

    def _micro_batches(
        self, sources: SamplesBySource, first: int, end: int
    ) -> Iterator[tuple[int, int, bool]]:
        """Prompt ranges (start, stop, is the last) of at most ``micro_batch_size`` sequences."""
        rows_per_prompt = sum(samples.group_size for samples in sources.values())
        size = max(1, self.options.micro_batch_size // rows_per_prompt)
        for start in range(first, end, size):
            stop = min(start + size, end)
            yield start, stop, stop == end

    def _update(self, step: int, loss: float) -> float:
        """Clip the gradient and update the weights; return the gradient norm before clipping."""
        grad_norm = float(
            self.accelerator.clip_grad_norm_(self.policy.parameters(), self.options.max_grad_norm)
        )
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            raise DivergedError(f"step {step}: loss {loss}, gradient norm {grad_norm}")
        self._optimizer.step()
        return grad_norm

    def _autocast(self) -> AbstractContextManager[Any]:
        """Autocast to bfloat16 if the run asks for it; weights and optimizer stay float32.

        The ``Accelerator`` could do this too, but its precision holds for the whole process, in which a
        sweep trains cells of several precisions.
        """
        device = self.accelerator.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.options.dtype == "bfloat16")

    def _predictor(self, model: Any) -> Predictor:
        """A model to compute log-probabilities with; policy and anchor are rounded alike.

        So equal weights give a KL of zero.
        """
        return Predictor(model, self.options.temperature, autocast=self.options.dtype == "bfloat16")

    def _forward(self, objective: Objective, sources: SamplesBySource) -> StepBatch:
        """Compute ``log q`` of every sequence; for the policy's own samples the KL from the anchor too."""
        parts: dict[str, Samples] = {}
        moving = objective.samples_needed.anchor == "moving"
        for name, samples in sources.items():
            kl = reference = None
            if name == "policy":
                terms = terms_of(
                    self._predictor(self.policy), self._predictor(self._anchor), samples.rollout
                )
                logprob, kl = terms.logprob_BT, terms.kl_BT
                # With a moving anchor these are not log p of the reference, which nothing needs then.
                reference = None if moving else terms.ref_logprob_BT.sum(1)
            else:
                logprob = logprobs_of(self._predictor(self.policy), samples.rollout)
                reference = samples.ref_logprob_B
                choice = objective.samples_needed.cached
                if name == "cached" and choice and choice.ref_logprob and reference is None:
                    reference = self._reference_logprob(samples.rollout)
            sampled = samples.rollout.sampled_logprob_BT
            parts[name] = Samples(
                logprob_BT=logprob,
                mask_BT=samples.rollout.mask_BT,
                group_size=samples.group_size,
                reward_B=samples.reward_B,
                log_cdf_B=samples.log_cdf_B,
                log_cdf_le_B=samples.log_cdf_le_B,
                ref_logprob_B=reference,
                kl_BT=kl,
                sampled_logprob_B=None if sampled is None else sampled.sum(1),
                log_quantile_B=samples.log_quantile_B,
            )
        return StepBatch(**parts)

    @torch.no_grad()
    def _reference_logprob(self, rollout: Rollout) -> torch.Tensor:
        """``log p`` of cached samples whose values are not stored, shape ``(B,)``."""
        return logprobs_of(self._predictor(self._reference), rollout).sum(1)

    @torch.no_grad()
    def _move_anchor(self, rate: float) -> None:
        for anchor, current in zip(
            self._anchor.parameters(), self.unwrapped.parameters(), strict=True
        ):
            if current.requires_grad:
                anchor.lerp_(current.to(anchor), rate)
