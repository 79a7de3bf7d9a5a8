"""The trainer: draw -> score -> weight -> loss -> step, blind to which objective.

It may begin with a warm start that imitates cached bests of N. Every step draws its randomness from
(seed, step, prompt) alone, so a resumed run takes the very steps an unbroken one would have taken, and
several processes draw the samples that one would have drawn.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator, DistributedType

from training.cache.reward_cache import RewardCache
from training.configs import TrainConfig
from training.objectives.protocol import Objective, Samples, StepBatch
from training.rollouts.generator import Generator, TransformersGenerator
from training.rollouts.rollout import Rollout, logprobs_of, response_logits, terms_of
from training.train.step_samples import Drawer, Drawn, Sources
from vbon.errors import DivergedError, InvalidInputError
from vbon.maths.seeds import seed_of
from vbon.rewards import RewardModel

Phase = Literal["warm-start", "main"]


@dataclass(frozen=True, slots=True)
class TrainerOptions:
    """What one step does; see ``TrainConfig`` for the meanings."""

    steps: int
    prompts_per_step: int
    samples_per_prompt: int
    micro_batch_size: int
    temperature: float
    learning_rate: float
    warmup_steps: int
    warm_start_steps: int
    warm_start_learning_rate: float
    max_grad_norm: float
    seed: int
    dtype: Literal["float32", "bfloat16"] = "float32"

    @classmethod
    def of(
        cls, config: TrainConfig, learning_rate: float, seed: int | None = None
    ) -> TrainerOptions:
        """A run's settings, which know the learning rate only once the objective is known."""
        shared = {field.name: getattr(config, field.name) for field in fields(cls)}
        shared["learning_rate"] = learning_rate
        if seed is not None:
            shared["seed"] = seed
        return cls(**shared)


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One row of the training history; means over the step's samples and processes.

    Attributes:
        reward: of the policy's own samples; ``None`` where a step draws none.
        log_cdf: ``log F^`` of them.
        kl_nats: exact per-token KL from the objective's anchor: the reference, but for j-bond.
        response_tokens: mean length of what was trained on.
        samples_drawn: fresh samples, of the policy or its anchor.
        tokens_drawn: their tokens.
    """

    step: int
    phase: Phase
    loss: float
    reward: float | None
    log_cdf: float | None
    kl_nats: float | None
    response_tokens: float
    grad_norm: float
    learning_rate: float
    samples_drawn: int
    tokens_drawn: int
    sequences_trained: int
    sample_s: float
    score_s: float
    learn_s: float


@dataclass(slots=True)
class _Totals:
    """What the micro-batches of a step add up to, on this process."""

    loss: float = 0.0
    kl: float | None = None
    grad_norm: float = 0.0


def scheduled_learning_rate(step: int, options: TrainerOptions) -> float:
    """Linear warm-up and linear decay, once for the warm start and once for the main steps."""
    if step < options.warm_start_steps:
        peak, at, length = options.warm_start_learning_rate, step, options.warm_start_steps
    else:
        peak, at, length = options.learning_rate, step - options.warm_start_steps, options.steps
    rising = (at + 1) / (options.warmup_steps + 1)
    falling = max(0.0, (length - at) / max(1, length))
    return peak * min(rising, falling)


class Trainer:
    """Tunes a policy against a frozen reference.

    Args:
        policy: the model to tune, maybe a PEFT model.
        reference: the frozen reference.
        cache: prompts and reference samples; must know ``log p`` if the objective needs it.
        warm_start: what the first ``warm_start_steps`` minimise instead of ``objective``.

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
        self._drawer = Drawer(
            tokenizer,
            reward,
            cache,
            generator,
            samples_per_prompt=options.samples_per_prompt,
            seed=options.seed,
            device=self.accelerator.device,
        )
        self._check()
        trainable = [p for p in policy.parameters() if p.requires_grad]
        # Base rate 1: the schedule sets the learning rate itself, the same for each of a step's updates.
        optimizer = torch.optim.AdamW(trainable, lr=1.0, betas=(0.9, 0.99), weight_decay=0.0)
        self._anchor = reference
        if objective.draws.anchor == "moving":
            self._anchor = copy.deepcopy(policy).requires_grad_(False)
            self.accelerator.register_for_checkpointing(self._anchor)
        self.policy, self._optimizer = self.accelerator.prepare(policy, optimizer)
        self._reference = reference

    def _check(self) -> None:
        options, processes = self.options, self.accelerator.num_processes
        if options.prompts_per_step % processes:
            raise InvalidInputError(
                f"prompts_per_step {options.prompts_per_step} must be a multiple of the "
                f"{processes} processes",
                field="prompts_per_step",
            )
        least = self._objective.least_samples()
        if options.samples_per_prompt < least:
            raise InvalidInputError(
                f"samples_per_prompt {options.samples_per_prompt} is too few for "
                f"{self._objective.title} with {self._objective.label}: at least {least}",
                field="samples_per_prompt",
            )
        draws = self._objective.draws
        if self.sharded and (
            draws.anchor == "moving" or isinstance(self._generator, TransformersGenerator)
        ):
            raise InvalidInputError(
                "under FSDP samples come from --generation vllm, and j-bond's moving anchor does not "
                "work on shards; use DDP, or another objective",
                field="generation",
            )
        if draws.cached and draws.cached.kind == "best-worst" and options.samples_per_prompt % 2:
            raise InvalidInputError(
                f"samples_per_prompt {options.samples_per_prompt} must be even: "
                f"{self._objective.title} trains on pairs",
                field="samples_per_prompt",
            )
        if options.prompts_per_step // processes % draws.updates:
            raise InvalidInputError(
                f"updates {draws.updates} must divide the {options.prompts_per_step // processes} "
                "prompts a process has in a step",
                field="updates",
            )

    @property
    def total_steps(self) -> int:
        """Warm-start and main steps."""
        return self.options.warm_start_steps + self.options.steps

    @property
    def sharded(self) -> bool:
        """Whether FSDP spreads the weights over processes."""
        return bool(self.accelerator.distributed_type == DistributedType.FSDP)

    def gathered_weights(self) -> dict[str, torch.Tensor] | None:
        """Whole weights of a sharded policy (every process must ask); ``None`` where they are whole."""
        return self.accelerator.get_state_dict(self.policy) if self.sharded else None

    @property
    def unwrapped(self) -> Any:
        """The policy without what spreads it over processes."""
        return self.accelerator.unwrap_model(self.policy)

    def step(self, step: int) -> StepMetrics:
        """One batch of samples and the optimizer updates made from it.

        Raises:
            DivergedError: the loss or its gradient is no longer a number.
        """
        warm = step < self.options.warm_start_steps
        objective = self._warm_start if warm and self._warm_start else self._objective
        if step == self.options.warm_start_steps:
            self._optimizer.state.clear()  # its averages are of another loss
        draws, rows = objective.draws, self._choose_prompts(step)
        begun = time.perf_counter()
        with self._rounding():
            rollouts = self._drawer.sample(step, draws, rows, self.unwrapped, self._anchor)
        sampled = time.perf_counter()
        sources = {name: self._drawer.score(rollout, rows) for name, rollout in rollouts.items()}
        if draws.cached is not None:
            sources["cached"] = self._drawer.from_cache(step, draws.cached, rows)
        scored = time.perf_counter()
        learning_rate = scheduled_learning_rate(step, self.options)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        totals = self._learn(step, objective, sources, len(rows))
        if draws.anchor == "moving":
            self._move_anchor(draws.anchor_rate)
        return self._metrics(
            step, "warm-start" if warm else "main", totals, sources, learning_rate,
            (sampled - begun, scored - sampled, time.perf_counter() - scored),
        )  # fmt: skip

    @torch.no_grad()
    def kl_from_reference(self, num_prompts: int = 16, num_samples: int = 4) -> float:
        """Rao-Blackwellised KL(q || p) in nats on a few training prompts: is the run still sane?"""
        rows = list(range(min(num_prompts, len(self._cache))))
        rollout = self._generator.sample(
            self.unwrapped,
            [self._cache.prompt_ids(row) for row in rows],
            num_samples,
            [seed_of(f"probe:{self.options.seed}:{row}") for row in rows],
        )
        terms = terms_of(self._logits(self.unwrapped), self._logits(self._reference), rollout)
        return float(terms.kl_BT.sum(1).mean())

    def _choose_prompts(self, step: int) -> list[tuple[int, int]]:
        """(place in the step, row of the cache) of this process's share; the draw is the same on all."""
        rng = np.random.default_rng([self.options.seed, step])
        count = self.options.prompts_per_step
        picks: list[int] = []
        while len(picks) < count:  # a small prompt set is gone through more than once
            picks.extend(int(i) for i in rng.permutation(len(self._cache)))
        places = list(enumerate(picks[:count]))
        # Dealt out in turn: each of a step's updates then has the prompts it has in one process.
        return places[self.accelerator.process_index :: self.accelerator.num_processes]

    def _learn(
        self, step: int, objective: Objective, sources: Sources, num_prompts: int
    ) -> _Totals:
        """The updates of a step, each on its own share of the prompts, by micro-batches."""
        totals = _Totals()
        updates = objective.draws.updates
        share = num_prompts // updates
        for update in range(updates):
            self._optimizer.zero_grad()
            loss = 0.0
            first = update * share
            for start, stop, last in self._micro_batches(sources, first, first + share):
                weight = (stop - start) / share
                with nullcontext() if last else self.accelerator.no_sync(self.policy):
                    part = {name: drawn.of_prompts(start, stop) for name, drawn in sources.items()}
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
        self, sources: Sources, first: int, end: int
    ) -> Iterator[tuple[int, int, bool]]:
        rows_per_prompt = sum(drawn.group_size for drawn in sources.values())
        size = max(1, self.options.micro_batch_size // rows_per_prompt)
        for start in range(first, end, size):
            stop = min(start + size, end)
            yield start, stop, stop == end

    def _update(self, step: int, loss: float) -> float:
        """Clip and step; the gradient norm before clipping."""
        grad_norm = float(
            self.accelerator.clip_grad_norm_(self.policy.parameters(), self.options.max_grad_norm)
        )
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            raise DivergedError(f"step {step}: loss {loss}, gradient norm {grad_norm}")
        self._optimizer.step()
        return grad_norm

    def _rounding(self) -> AbstractContextManager[Any]:
        """bfloat16 by autocast where asked for: master weights and optimizer stay float32.

        Not by the ``Accelerator``, whose precision is one for the whole process, sweeps included.
        """
        device = self.accelerator.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.options.dtype == "bfloat16")

    def _logits(self, model: Any) -> Any:
        def logits(part: Rollout) -> torch.Tensor:
            # Policy and anchor under the same rounding: equal weights must give a KL of zero.
            with self._rounding():
                return response_logits(model, part, self.options.temperature)

        return logits

    def _forward(self, objective: Objective, sources: Sources) -> StepBatch:
        """Run the models over the sequences; the policy's own samples against the anchor too."""
        parts: dict[str, Samples] = {}
        moving = objective.draws.anchor == "moving"
        for name, drawn in sources.items():
            kl = reference = None
            if name == "policy":
                terms = terms_of(
                    self._logits(self.policy), self._logits(self._anchor), drawn.rollout
                )
                logprob, kl = terms.logprob_BT, terms.kl_BT
                # Against a moving anchor log p of the reference is not computed: nothing uses it.
                reference = None if moving else terms.ref_logprob_BT.sum(1)
            else:
                logprob = logprobs_of(self._logits(self.policy), drawn.rollout)
                reference = drawn.ref_logprob_B
            sampled = drawn.rollout.sampled_logprob_BT
            parts[name] = Samples(
                logprob_BT=logprob,
                mask_BT=drawn.rollout.mask_BT,
                group_size=drawn.group_size,
                reward_B=drawn.reward_B,
                log_cdf_B=drawn.log_cdf_B,
                log_cdf_le_B=drawn.log_cdf_le_B,
                ref_logprob_B=reference,
                kl_BT=kl,
                sampled_logprob_B=None if sampled is None else sampled.sum(1),
            )
        return StepBatch(**parts)

    @torch.no_grad()
    def _move_anchor(self, rate: float) -> None:
        for anchor, current in zip(
            self._anchor.parameters(), self.unwrapped.parameters(), strict=True
        ):
            if current.requires_grad:
                anchor.lerp_(current.to(anchor), rate)

    def _metrics(
        self,
        step: int,
        phase: Phase,
        totals: _Totals,
        sources: Sources,
        learning_rate: float,
        seconds: tuple[float, float, float],
    ) -> StepMetrics:
        """Means and sums over processes."""
        own = sources.get("policy")
        fresh = [drawn for name, drawn in sources.items() if name != "cached"]
        every = list(sources.values())

        def tokens(drawn: list[Drawn]) -> float:
            return float(sum(int(d.rollout.mask_BT.sum()) for d in drawn))

        def rows(drawn: list[Drawn]) -> float:
            return float(sum(len(d.reward_B) for d in drawn))

        mean = self._reduced("mean", totals.loss, totals.kl, _mean(own and own.reward_B),
                             _mean(own and own.log_cdf_B), tokens(every) / rows(every))  # fmt: skip
        total = self._reduced("sum", rows(fresh), tokens(fresh), rows(every))
        loss, kl, reward, log_cdf, length = mean
        return StepMetrics(
            step=step,
            phase=phase,
            loss=float(loss or 0.0),
            reward=reward,
            log_cdf=log_cdf,
            kl_nats=kl,
            response_tokens=float(length or 0.0),
            grad_norm=totals.grad_norm,
            learning_rate=learning_rate,
            samples_drawn=round(total[0] or 0),
            tokens_drawn=round(total[1] or 0),
            sequences_trained=round(total[2] or 0),
            sample_s=seconds[0],
            score_s=seconds[1],
            learn_s=seconds[2],
        )

    def _reduced(self, how: str, *values: float | None) -> list[float | None]:
        """Each value over all processes; ``None`` stays ``None``."""
        known = torch.tensor(
            [0.0 if value is None else value for value in values],
            dtype=torch.float64 if self.accelerator.device.type != "mps" else torch.float32,
            device=self.accelerator.device,
        )
        together = self.accelerator.reduce(known, reduction=how).tolist()
        return [None if v is None else t for v, t in zip(values, together, strict=True)]


def _mean(values: torch.Tensor | None) -> float | None:
    return None if values is None else float(values.mean())
