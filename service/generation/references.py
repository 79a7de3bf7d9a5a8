"""References in an answer: the policies, models and sampling that made it."""

from __future__ import annotations

from service.runtime.batching_scorer import BatchingScorer
from service.runtime.modes import Mode
from service.runtime.runtime import Runtime
from service.schemas import (
    ModelRef,
    SamplingUsed,
)
from vbon.engine import ModelInfo, Sampling
from vbon.errors import InvalidInputError


def check_limit(field: str, value: float, limit: float) -> None:
    """Refuse a value over a limit of the server.

    Raises:
        InvalidInputError: with the field, the value and the limit.
    """
    if value > limit:
        raise InvalidInputError(
            f"{field} is {value}; this server allows at most {limit}", field=field
        )


def policy_ref(runtime: Runtime, mode: Mode) -> ModelRef:
    """The weights a mode samples from."""
    return model_ref(mode.policy, runtime.policies[mode.policy].info)


def model_ref(name: str, info: ModelInfo) -> ModelRef:
    """A policy's identity."""
    return ModelRef(name=name, path=info.path, revision=info.revision)


def scorer_ref(name: str, scorer: BatchingScorer | None) -> ModelRef | None:
    """A reward model's identity."""
    if scorer is None:
        return None
    return ModelRef(name=name, path=scorer.name, revision=scorer.revision)


def sampling_used(sampling: Sampling, num_samples: int) -> SamplingUsed:
    """What is echoed back."""
    return SamplingUsed(
        n=num_samples,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        stop=list(sampling.stop),
        ignore_eos=sampling.ignore_eos,
        priority=sampling.priority,
    )
