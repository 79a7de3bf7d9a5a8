"""References to the models behind an answer, and the check of a server's limits."""

from __future__ import annotations

from service.runtime.batching_scorer import BatchingScorer
from service.runtime.modes import Mode
from service.runtime.runtime import Runtime
from service.schemas import ModelRef
from vbon.engine import ModelInfo
from vbon.errors import InvalidInputError


def check_limit(field: str, value: float, limit: float) -> None:
    """Reject a value above one of the server's limits.

    Raises:
        InvalidInputError: names the field, the value and the limit.
    """
    if value > limit:
        raise InvalidInputError(
            f"{field} is {value}; this server allows at most {limit}", field=field
        )


def policy_ref(runtime: Runtime, mode: Mode) -> ModelRef:
    """The identity of the policy a mode samples from."""
    return model_ref(mode.policy, runtime.policies[mode.policy].info)


def model_ref(name: str, info: ModelInfo) -> ModelRef:
    """A policy's identity."""
    return ModelRef(name=name, path=info.path, revision=info.revision)


def scorer_ref(name: str, scorer: BatchingScorer | None) -> ModelRef | None:
    """A reward model's identity."""
    if scorer is None:
        return None
    return ModelRef(name=name, path=scorer.name, revision=scorer.revision)
