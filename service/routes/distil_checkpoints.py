"""``/distil/checkpoints``: submit, promote and refuse checkpoints; needs a key with the admin role."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path

from service.distil.live_rollout import LiveRollout, Seen
from service.routes.dependencies import RolloutDep
from service.schemas.distil_checkpoints import (
    ArmOut,
    CheckpointOut,
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
CheckpointId = Annotated[str, Path(min_length=1, max_length=64)]


@router.get("/checkpoints", responses=errors(404, 503))
async def get_checkpoints(rollout: RolloutDep) -> RolloutOut:
    """All checkpoints with their decisions and evidence, the shares of the arms, and what was saved."""
    return await _rollout(rollout)


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
        checkpoints=[_checkpoint_out(live, name, removed) for name in reversed(keeper.records)],
        events=[EventOut(**asdict(event)) for event in reversed(keeper.events)],
    )


async def _checkpoint(live: LiveRollout, name: str) -> CheckpointOut:
    return _checkpoint_out(live, name, await live.removed(name))


def _checkpoint_out(live: LiveRollout, name: str, removed: Collection[str]) -> CheckpointOut:
    record, rollout = live.keeper.record(name), live.keeper.rollout
    found = rollout.checkpoint(name)
    shares = {one.checkpoint: one.share for one in live.arms() if one.checkpoint is not None}
    return CheckpointOut(
        id=name,
        created=record.created,
        path=record.path,
        revision=record.revision,
        status=found.status,
        served=name in live.served.alive,
        policy=live.served.names.get(name),
        step=found.step,
        share=shares.get(name, 0.0),
        why=found.why,
        approved=found.approved,
        was_live=found.was_live,
        available=name not in removed,
        decision=Decision.model_validate(record.decision),
        evidence=EvidenceOut(**asdict(rollout.evidence(name))),
    )
