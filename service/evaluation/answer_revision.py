"""The revision of the models behind an answer, by which verdicts on earlier checkpoints are told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.runtime.modes import Mode
from service.runtime.runtime import Runtime
from vbon.errors import VbonError

if TYPE_CHECKING:
    from service.store import HumanWinRate


def answer_revision(mode: Mode, policy: str, reward: str | None) -> str:
    """The revision of a mode's answers: the policy's, and the reward model's if it chooses the answer."""
    return f"{policy}+{reward}" if mode.strategy.needs_reward and reward else policy


def is_current(runtime: Runtime, line: HumanWinRate) -> bool:
    """True if the verdicts are on answers of the models that are served now."""
    return (line.revision, line.against_revision) == (
        _served(runtime, line.mode),
        _served(runtime, line.against),
    )


def _served(runtime: Runtime, name: str) -> str | None:
    """The revision of a mode now; ``None`` if the mode or its policy is not served."""
    try:
        mode = runtime.mode(name)
    except VbonError:
        return None
    engine = runtime.policies.get(mode.policy)
    if engine is None:
        return None
    reward = None if runtime.reward is None else runtime.reward.revision
    return answer_revision(mode, engine.info.revision, reward)
