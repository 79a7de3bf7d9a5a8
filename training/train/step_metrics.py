"""Metrics of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import Accelerator

from training.train.step_samples import SamplesBySource, StepSamples

Phase = Literal["warm-start", "main"]


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One row of the training history; means are over the step's samples in all processes.

    Attributes:
        reward: mean reward of the policy's own samples; ``None`` if the step draws none.
        log_cdf: mean ``log F^`` of the policy's own samples.
        truncated_share: share of the policy's own samples that the token limit cut off.
        kl_nats: exact per-token KL from the reference, or from the moving anchor for j-bond.
        response_tokens: mean length of the sequences trained on.
        samples_drawn: number of fresh samples, of the policy and its anchor.
        unscored: number of them that have no reward; another sample of the prompt stood in for each.
        tokens_drawn: number of tokens in the fresh samples.
        sequences_trained: number of sequences trained on, fresh and cached.
        sample_s: seconds spent drawing fresh samples.
        score_s: seconds spent scoring them and reading cached samples.
        learn_s: seconds spent on losses, gradients and optimizer updates.
    """

    step: int
    phase: Phase
    loss: float
    reward: float | None
    log_cdf: float | None
    truncated_share: float | None
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
    unscored: int = 0


@dataclass(slots=True)
class StepTotals:
    """Loss, KL and gradient norm of a step in this process, accumulated over its micro-batches."""

    loss: float = 0.0
    kl: float | None = None
    grad_norm: float = 0.0


@dataclass(frozen=True, slots=True)
class StepSeconds:
    """Durations of a step's three parts in this process."""

    sample: float
    score: float
    learn: float


def step_metrics(
    accelerator: Accelerator,
    step: int,
    phase: Phase,
    totals: StepTotals,
    sources: SamplesBySource,
    learning_rate: float,
    seconds: StepSeconds,
) -> StepMetrics:
    """Metrics of a step, averaged or summed over the processes; durations are those of this process."""
    own = sources.get("policy")
    fresh = [samples for name, samples in sources.items() if name != "cached"]
    every = list(sources.values())
    truncated = None if own is None or own.truncated_B is None else own.truncated_B.double()
    loss, kl, reward, log_cdf, cut_off, length = _reduced(
        accelerator,
        "mean",
        totals.loss,
        totals.kl,
        _mean(own and own.reward_B),
        _mean(own and own.log_cdf_B),
        _mean(truncated),
        _num_tokens(every) / _num_rows(every),
    )
    samples_drawn, tokens_drawn, sequences_trained, unscored = _reduced(
        accelerator,
        "sum",
        _num_rows(fresh),
        _num_tokens(fresh),
        _num_rows(every),
        float(sum(samples.unscored for samples in fresh)),
    )
    return StepMetrics(
        step=step,
        phase=phase,
        loss=float(loss or 0.0),
        reward=reward,
        log_cdf=log_cdf,
        truncated_share=cut_off,
        kl_nats=kl,
        response_tokens=float(length or 0.0),
        grad_norm=totals.grad_norm,
        learning_rate=learning_rate,
        samples_drawn=round(samples_drawn or 0),
        tokens_drawn=round(tokens_drawn or 0),
        sequences_trained=round(sequences_trained or 0),
        sample_s=seconds.sample,
        score_s=seconds.score,
        learn_s=seconds.learn,
        unscored=round(unscored or 0),
    )


def _num_tokens(sources: Sequence[StepSamples]) -> float:
    return float(sum(int(samples.rollout.mask_BT.sum()) for samples in sources))


def _num_rows(sources: Sequence[StepSamples]) -> float:
    return float(sum(len(samples.reward_B) for samples in sources))


def _mean(values: torch.Tensor | None) -> float | None:
    return None if values is None else float(values.mean())


def _reduced(accelerator: Accelerator, reduction: str, *values: float | None) -> list[float | None]:
    """Reduce each value over all processes; ``None`` stays ``None``."""
    known = torch.tensor(
        [0.0 if value is None else value for value in values],
        dtype=torch.float64 if accelerator.device.type != "mps" else torch.float32,
        device=accelerator.device,
    )
    together = accelerator.reduce(known, reduction=reduction).tolist()
    return [None if v is None else t for v, t in zip(values, together, strict=True)]
