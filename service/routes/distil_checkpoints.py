"""``/distil/checkpoints``: submit, promote and refuse checkpoints; needs a key with the admin role."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from hashlib import sha256
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Response

from service.distil.live_rollout import LiveRollout, Seen
from service.routes.dependencies import RolloutDep
from service.schemas.distil_checkpoints import (
    ArmOut,
    CheckpointOut,
    CheckpointSummary,
    DecisionSummary,
    EventOut,
    EvidenceOut,
    PromoteRequest,
    RollbackRequest,
    RolloutOut,
    ShadowsOut,
    SubmitRequest,
)
from service.schemas.failure import WITH_BODY, errors
from vbon.distil.decision import Decision

router = APIRouter(prefix="/distil", tags=["distil"])

_STORE = errors(404, 422, 503)
# Figures of a decision that the list of checkpoints has.
_COMPARED = ("win_rate", "reward", "kl_nats")
CheckpointId = Annotated[str, Path(min_length=1, max_length=64)]


@router.get("/checkpoints", responses=errors(404, 503), response_model=RolloutOut)
async def get_checkpoints(
    rollout: RolloutDep,
    if_none_match: Annotated[str | None, Header(description="ETag of what you have")] = None,
) -> Response:
    """All checkpoints with their evidence, the shares of the arms, and what was saved.

    With the ETag of an earlier answer as If-None-Match, it answers 304 without a body if nothing has changed.
    """
    content = (await _rollout(rollout)).model_dump_json().encode()
    headers = {"etag": f'"{sha256(content).hexdigest()[:32]}"'}
    # Weak ones are of a proxy that compresses answers.
    known = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    if headers["etag"] in known:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="application/json", headers=headers)


@router.post("/checkpoints", responses=WITH_BODY | _STORE)
async def post_checkpoint(body: SubmitRequest, rollout: RolloutDep) -> CheckpointOut:
    """Submit a checkpoint. Its files are compared with their checksums; the same one again changes nothing.

    One whose verdict is `promote` is rolled out by itself, unless the server wants approval. Its engine is
    loaded after the answer. If that fails, it is rolled back with the reason.
    """
    return await _checkpoint(rollout, await rollout.submit(body.path, body.decision))


@router.get("/checkpoints/{checkpoint}", responses=_STORE)
async def get_checkpoint(checkpoint: CheckpointId, rollout: RolloutDep) -> CheckpointOut:
    """One checkpoint."""
    return await _checkpoint(rollout, checkpoint)


@router.post("/checkpoints/{checkpoint}/promote", responses=WITH_BODY | _STORE)
async def post_promote(
    checkpoint: CheckpointId, rollout: RolloutDep, body: PromoteRequest | None = None
) -> CheckpointOut:
    """Start the rollout of a checkpoint whatever its decision, or move it to its next step.

    With the status and step that you have seen, it changes nothing if they are not that any more. So the same
    request may be sent again. Without them, it starts a rollout, and never moves one to its next step.
    """
    seen = None if body is None else Seen(body.status, body.step)
    await rollout.promote(checkpoint, seen)
    return await _checkpoint(rollout, checkpoint)


@router.post("/checkpoints/{checkpoint}/refuse", responses=_STORE)
async def post_refuse(checkpoint: CheckpointId, rollout: RolloutDep) -> CheckpointOut:
    """Refuse a checkpoint that waits, or roll back one that is being rolled out."""
    await rollout.refuse(checkpoint)
    return await _checkpoint(rollout, checkpoint)


@router.post("/rollback", responses=WITH_BODY | _STORE)
async def post_rollback(body: RollbackRequest, rollout: RolloutDep) -> RolloutOut:
    """Give all requests of mode auto to an earlier checkpoint, or to best-of-N, at once.

    It takes effect even if the store cannot be written now; then `stored` is false.
    """
    await rollout.roll_back(body.to)
    return await _rollout(rollout)


async def _rollout(live: LiveRollout) -> RolloutOut:
    removed = await live.removed()
    keeper, plan, settings = live.keeper, live.plan, live.settings
    keeper.check_read()
    assert settings.policy is not None
    totals, spent, rollout = keeper.totals, live.spent, keeper.rollout
    return RolloutOut(
        policy=settings.policy,
        n=plan.n,
        margin=plan.margin,
        threshold=plan.threshold,
        alpha=plan.alpha,
        shares=list(plan.shares),
        approve=plan.approve,
        shadow_share=settings.shadow_share,
        lora_rank=live.lora_rank,
        live=None if rollout.live is None else rollout.live.id,
        next=None if rollout.rolling is None else rollout.rolling.id,
        stored=live.stored,
        arms=[
            ArmOut(
                arm=one.arm,
                checkpoint=one.checkpoint,
                share=one.share,
                requests=totals.requests[one.arm],
                tokens=totals.tokens[one.arm],
                shadows=totals.shadows[one.arm],
                failures=totals.failures[one.arm],
                win_rate=None
                if one.checkpoint is None
                else rollout.evidence(one.checkpoint).win_rate,
            )
            for one in live.arms()
        ],
        shadows=ShadowsOut(
            done=sum(totals.shadows.values()),
            flat=live.shadows.flat,
            tokens=totals.compared_tokens,
            skipped={reason: count for reason, count in live.shadows.skipped.items() if count},
        ),
        fallbacks=totals.fallbacks,
        saved_tokens=totals.saved,
        training_tokens=spent.tokens,
        training_s=spent.training_s,
        checkpoints=[_checkpoint_summary(live, name, removed) for name in reversed(keeper.records)],
        events=[EventOut(**asdict(event)) for event in reversed(keeper.events)],
    )


async def _checkpoint(live: LiveRollout, name: str) -> CheckpointOut:
    return _checkpoint_out(live, name, await live.removed(name))


def _checkpoint_out(live: LiveRollout, name: str, removed: Collection[str]) -> CheckpointOut:
    decision = Decision.model_validate(live.keeper.record(name).decision)
    return CheckpointOut(**_known(live, name, removed), decision=decision)


def _checkpoint_summary(
    live: LiveRollout, name: str, removed: Collection[str]
) -> CheckpointSummary:
    decision = live.keeper.record(name).decision
    figures = {
        policy: {figure: decision["figures"][policy][figure] for figure in _COMPARED}
        for policy in ("candidate", "bon")
    }
    summary = DecisionSummary(verdict=decision["verdict"], figures=figures)
    return CheckpointSummary(**_known(live, name, removed), decision=summary)


def _known(live: LiveRollout, name: str, removed: Collection[str]) -> dict[str, Any]:
    """The fields of a checkpoint without its decision."""
    record, rollout = live.keeper.record(name), live.keeper.rollout
    found = rollout.checkpoint(name)
    shares = {one.checkpoint: one.share for one in live.arms() if one.checkpoint is not None}
    return {
        "id": name,
        "created": record.created,
        "path": record.path,
        "revision": record.revision,
        "status": found.status,
        "served": name in live.served.alive,
        "policy": live.served.names.get(name),
        "step": found.step,
        "share": shares.get(name, 0.0),
        "why": found.why,
        "approved": found.approved,
        "was_live": found.was_live,
        "available": name not in removed,
        "evidence": EvidenceOut(**asdict(rollout.evidence(name))),
    }
