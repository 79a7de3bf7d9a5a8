"""Parts of a rollout: its settings, checkpoints, events and routes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vbon.errors import InvalidInputError
from vbon.maths.sequential import FallDetector, MeanEvidence

Status = Literal["waiting", "rolling", "live", "retired", "refused", "rolled_back"]
Arm = Literal["bon", "live", "next"]
Approval = Literal["decision", "person"]
EventKind = Literal[
    "submitted", "approved", "started", "advanced", "live", "retired", "refused", "rolled_back", "restarted",
    "verified",
]  # fmt: skip
# Why a checkpoint was rolled back: its evidence while it rolled, a later fall, a person, a failure to load.
RollbackReason = Literal["win_rate", "fall", "person", "failed"]

# The largest value of an observation: an answer that beats N tied candidates wins 1, and best-of-N gives up
# less than 1/2 to their ties.
MOST_JUDGED = 1.5


@dataclass(frozen=True, slots=True)
class Models:
    """Revisions of the models that all evidence depends on."""

    reference: str
    reward: str

    def changed_to(self, now: Models) -> str:
        """Name the models that have changed; empty if none has."""
        changed = {
            "the reference policy": self.reference != now.reference,
            "the reward model": self.reward != now.reward,
        }
        return " and ".join(name for name, differs in changed.items() if differs)


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """Settings of all rollouts.

    Attributes:
        n: N of best-of-N, and of the reference candidates that shadow an answer.
        margin: win rate over the reference policy that a checkpoint may lack to best-of-N.
        shares: of the traffic, one per step, rising; the last is 1.
        alpha: bound on both probabilities of error while a checkpoint rolls.
        run_length: mean number of shadowed answers between two false alarms of a live checkpoint, at least.
        approve: a person must promote.
    """

    n: int
    margin: float = 0.05
    shares: tuple[float, ...] = (0.05, 0.25, 1.0)
    alpha: float = 0.05
    run_length: float = 100_000.0
    approve: bool = False

    def __post_init__(self) -> None:
        rises = all(a < b for a, b in zip((0.0, *self.shares), self.shares, strict=False))
        if not self.shares or not rises or self.shares[-1] != 1:
            raise InvalidInputError(
                f"the shares of a rollout rise from above 0 to 1, such as .05 .25 1; got {self.shares}",
                field="distil.shares",
            )
        if not 0 < self.threshold < 1:
            raise InvalidInputError(
                f"the margin must be below the win rate {self.n / (self.n + 1):.3f} of best-of-{self.n}; "
                f"got {self.margin}",
                field="distil.margin",
            )

    @property
    def threshold(self) -> float:
        """The lowest acceptable win rate over the reference policy."""
        return self.n / (self.n + 1) - self.margin


@dataclass(frozen=True, slots=True)
class Evidence:
    """State of a checkpoint's tests, in natural logarithms of e-values.

    Attributes:
        shadows, win_rate: number and mean of the observations since it rolls, or since it is live; with what
            best-of-N gives up to ties, so where high rewards are rare, the mean may exceed 1.
        good, bad: evidence on the present step, and on all steps; ``None`` if it does not roll.
        needed: what ``good`` or ``bad`` must reach.
        fall: evidence of a fall since it is live, and ``fall_needed``; ``None`` if it is not live.
        verified: whether its tests have passed with the present models; ``None`` if it is not live.
    """

    shadows: int
    win_rate: float | None
    good: float | None = None
    bad: float | None = None
    needed: float | None = None
    fall: float | None = None
    fall_needed: float | None = None
    verified: bool | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint and how far it has come.

    Attributes:
        approved: who approved it; it starts as soon as no other checkpoint rolls, those of persons first.
        step: index of its share while it rolls.
        was_live: it has answered all traffic once, so a person may go back to it in one step.
        good, bad: evidence while it rolls; ``good`` begins anew at each step. A live checkpoint
            has ``good`` as long as it is not verified with models that have changed.
        fall: the watch while it is live.
        shadows, wins: number and sum of the observations since it rolls, or since it is live.
        why: reason of the last rollback.
    """

    id: str
    status: Status = "waiting"
    approved: Approval | None = None
    step: int | None = None
    was_live: bool = False
    good: MeanEvidence | None = None
    bad: MeanEvidence | None = None
    fall: FallDetector | None = None
    shadows: int = 0
    wins: float = 0.0
    why: RollbackReason | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Change of one checkpoint, for the store, the log and the metrics."""

    kind: EventKind
    checkpoint: str
    detail: Mapping[str, str | float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """Choice for one request.

    Attributes:
        checkpoint: id of the one that answers; ``None`` for best-of-N.
        share: of the traffic that this arm gets now.
        step: index of the rolling checkpoint's share; ``None`` if none rolls.
    """

    arm: Arm
    checkpoint: str | None
    share: float
    step: int | None
