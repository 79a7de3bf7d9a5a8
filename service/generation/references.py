"""References to the models behind an answer, and the check of a server's limits."""

from __future__ import annotations

from collections.abc import Sequence

from service.runtime.modes import Mode
from service.runtime.runtime import Runtime
from service.runtime.served_scorer import ServedScorer
from service.schemas import ModelRef
from vbon.engine import ModelInfo, Sampling
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


# Parameters whose values the training record is compared with.
_COMPARED = frozenset({"temperature", "top_p", "top_k"})


def sampling_differences(runtime: Runtime, policy: str, sampling: Sampling) -> list[str]:
    """The differences between a sampling and the one that a policy was trained with, in words.

    Empty for a policy without a training record.
    """
    record = runtime.training_records.get(policy)
    if record is None:
        return []
    ending = ("stop_token_ids",) if sampling.stop_token_ids else ()
    return record.sampling_differences(
        sampling.max_tokens,
        sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        stop=sampling.stop,
        ignore_eos=sampling.ignore_eos,
        others=[name for name in (*sampling.steering, *ending) if name not in _COMPARED],
    )


def policy_ref(runtime: Runtime, mode: Mode) -> ModelRef:
    """The identity of the policy a mode samples from."""
    return model_ref(mode.policy, runtime.policies[mode.policy].info)


def model_ref(name: str, info: ModelInfo, earlier: Sequence[str] = ()) -> ModelRef:
    """A policy's identity, with the revisions that it had earlier during the same request."""
    return ModelRef(
        name=name, path=info.path, revision=info.revision, earlier_revisions=list(earlier)
    )


def scorer_ref(
    name: str, scorer: ServedScorer | None, revision: str | None = None
) -> ModelRef | None:
    """A reward model's identity, by default with its revision now."""
    if scorer is None:
        return None
    return ModelRef(name=name, path=scorer.name, revision=revision or scorer.revision)
