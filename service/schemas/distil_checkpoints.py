"""``/distil/checkpoints`` and ``/distil/rollback``: checkpoints that take the place of best-of-N."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vbon.distil.decision import Decision, Estimate, Verdict

Status = Literal["waiting", "rolling", "live", "retired", "refused", "rolled_back"]


class SubmitRequest(BaseModel):
    """A new checkpoint, and the decision of the trainer on it."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(
        max_length=1024,
        description="its directory: `rounds/ID/...`, relative to the server's distil.dir; ID names it from "
        "now on",
    )
    decision: Decision


class PromoteRequest(BaseModel):
    """The checkpoint's state on which the decision to promote it is based."""

    model_config = ConfigDict(extra="forbid")

    status: Status = Field(description="its status as you have seen it")
    step: int | None = Field(None, ge=0, description="its step as you have seen it, if it had one")


class RollbackRequest(BaseModel):
    """The checkpoint that is to answer again."""

    model_config = ConfigDict(extra="forbid")

    to: str | None = Field(
        max_length=64, description="its id; it must have been live before; null means best-of-N"
    )


class EvidenceOut(BaseModel):
    """Results of a checkpoint's comparisons with best-of-N; natural logarithms of e-values."""

    shadows: int = Field(description="comparisons since it is rolled out, or since it is live")
    win_rate: float | None = Field(
        description="mean share of the reference policy's candidates that its answers beat"
    )
    good: float | None = Field(description="evidence that it is good enough for the next step")
    bad: float | None = Field(description="evidence that it is worse than required")
    needed: float | None = Field(description="what good or bad must reach")
    fall: float | None = Field(description="evidence that it has become worse since it is live")
    fall_needed: float | None
    verified: bool | None = Field(
        description="false: live, and not tested enough since the reward model or the reference policy has "
        "changed; null: not live"
    )


class DecisionSummary(BaseModel):
    """The part of a decision that is compared from checkpoint to checkpoint."""

    verdict: Verdict
    figures: dict[str, dict[str, Estimate]] = Field(
        description="win rate, reward and KL of the candidate and of best-of-N (`bon`) on held-out prompts"
    )


class CheckpointSummary(BaseModel):
    """A submitted checkpoint, without the reasons and figures of its decision."""

    id: str
    created: datetime
    path: str
    revision: str
    status: Status
    served: bool = Field(description="true if its engine can answer now")
    policy: str | None = Field(description="the name under which it is served")
    step: int | None = Field(description="place of its share among those of the rollout, from 0")
    share: float = Field(description="share of the requests of mode auto that it gets now")
    why: Literal["win_rate", "fall", "person", "failed"] | None = Field(
        description="reason of its last rollback"
    )
    approved: Literal["decision", "person"] | None
    was_live: bool = Field(description="true if it was live, so a rollback can go to it")
    available: bool = Field(
        description="false if its directory was removed, so that nothing can go to it"
    )
    decision: DecisionSummary
    evidence: EvidenceOut


class CheckpointOut(CheckpointSummary):
    """A submitted checkpoint."""

    decision: Decision  # type: ignore[assignment]


class EventOut(BaseModel):
    """A change of a checkpoint's status or share."""

    id: int = Field(description="0 while it is not stored yet")
    created: datetime
    checkpoint: str
    kind: str
    detail: dict[str, Any]


class ArmOut(BaseModel):
    """One of the ways in which mode auto answers."""

    arm: Literal["bon", "live", "next"]
    checkpoint: str | None
    share: float
    requests: int = Field(description="prompts answered, over the whole rollout")
    tokens: int = Field(description="tokens generated for them")
    shadows: int = Field(description="of these answers, compared with best-of-N")
    failures: int = Field(description="answers that its checkpoint's engine failed to give")
    win_rate: float | None = Field(description="of its present checkpoint, by its comparisons")


class ShadowsOut(BaseModel):
    """Comparisons with best-of-N."""

    done: int
    flat: int = Field(
        description="those in which all rewards were equal, since the server started; if most are, check the "
        "reward model"
    )
    tokens: int
    skipped: dict[str, int] = Field(
        description="answers that were to be compared and were not, by reason, since the server started"
    )


class RolloutOut(BaseModel):
    """The rollout: its settings, arms, checkpoints and events."""

    policy: str = Field(description="name under which the live checkpoint is served")
    n: int
    margin: float
    threshold: float = Field(description="win rate over the reference that a checkpoint must have")
    alpha: float
    shares: list[float]
    approve: bool
    shadow_share: float
    lora_rank: int | None = Field(
        description="highest rank of LoRA adapters that can be submitted; null: only whole models can"
    )
    live: str | None = Field(description="id of the live checkpoint")
    next: str | None = Field(description="id of the checkpoint that is being rolled out")
    stored: bool = Field(description="false: the store does not have every decision yet")
    arms: list[ArmOut]
    shadows: ShadowsOut
    fallbacks: int = Field(
        description="prompts answered by another arm because the engine of theirs had died or failed"
    )
    saved_tokens: float = Field(
        description="against always best-of-N; tokens of comparisons are subtracted, of training not"
    )
    training_tokens: int
    training_s: float
    checkpoints: list[CheckpointSummary] = Field(
        description="the newest first; GET /distil/checkpoints/ID has the whole decision"
    )
    events: list[EventOut] = Field(description="the newest first, at most 200")
