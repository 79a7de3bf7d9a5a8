"""``/distil``: what the server has collected for training; needs a key with the admin role."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path, Request

from service.distil.collector import Collector, collected_ids
from service.routes.dependencies import CollectorDep
from service.schemas.distil import CollectedIdentity, DeletionAnswer, DistilStatus, ProgressOut
from service.schemas.failure import WITH_BODY, errors
from vbon.distil.progress import LoopProgress

router = APIRouter(prefix="/distil", tags=["distil"])

_DISK = errors(404, 503)
RequestId = Annotated[str, Path(min_length=1, max_length=192)]


@router.get("", responses=_DISK)
async def get_distil(collector: CollectorDep) -> DistilStatus:
    """Count the answers that are kept, by what made them, and those that were dropped, by reason."""
    return await _status(collector)


@router.post("/seal", responses=_DISK)
async def post_seal(collector: CollectorDep) -> DistilStatus:
    """Seal all shards now, so that `vbon distil cache` can use every answer that is kept."""
    await collector.seal()
    return await _status(collector)


@router.get("/progress", responses=errors(404))
async def get_progress(collector: CollectorDep) -> ProgressOut:
    """The phase that the loop of `vbon distil run` is in."""
    return _progress(collector)


@router.put("/progress", responses=WITH_BODY | errors(404))
async def put_progress(body: LoopProgress, collector: CollectorDep) -> ProgressOut:
    """Report the phase of a loop, in the place of its last report. Nothing is stored."""
    collector.progress.report(body)
    return _progress(collector)


@router.delete("/requests/{request_id}", responses=_DISK | errors(422))
async def delete_request(
    request_id: RequestId, collector: CollectorDep, request: Request
) -> DeletionAnswer:
    """Remove every answer to a request from the directory; of caches made before, nothing is removed."""
    if (rollout := request.app.state.rollout) is not None:
        # A comparison of this answer would collect its prompt once more.
        await rollout.shadows.forget(collected_ids(request_id))
    return DeletionAnswer(**asdict(await collector.delete(request_id)))


def _progress(collector: Collector) -> ProgressOut:
    found = collector.progress
    age_s = None if found.latest is None else found.age_s
    return ProgressOut(progress=found.latest, age_s=age_s, stale=found.stale)


async def _status(collector: Collector) -> DistilStatus:
    summary, writer = await collector.summary(), collector.writer
    removed, largest = writer.directory.removed, summary.largest_key
    return DistilStatus(
        directory=str(writer.directory.path),
        lines=summary.lines,
        bytes=summary.size,
        max_bytes=writer.directory.bounds.max_bytes,
        open_shards=summary.open,
        sealed_shards=summary.sealed,
        waiting=writer.waiting,
        collected=writer.lines,
        dropped={reason: count for reason, count in writer.dropped.items() if count},
        removed=dict(removed.lines) | ({"deleted": removed.deleted} if removed.deleted else {}),
        keys=sum(bool(key) for key in summary.keys),
        largest_key_share=None if largest is None else largest[1],
        identities=[
            CollectedIdentity(
                identity=one.identity.digest,
                policy=one.identity.policy,
                policy_revision=one.identity.policy_revision,
                reward=one.identity.reward,
                reward_revision=one.identity.reward_revision,
                max_tokens=one.identity.max_new_tokens,
                temperature=one.identity.temperature,
                lines=one.lines,
                sealed_lines=one.sealed_lines,
                candidates=one.candidates,
                oldest=one.first_s,
                newest=one.last_s,
            )
            for one in summary.identities
        ],
    )
