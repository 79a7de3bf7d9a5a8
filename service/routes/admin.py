"""``/admin``: operations that need a key with the admin role."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from service.routes.dependencies import ReloaderDep
from service.schemas.admin import ReloadAnswer, ReloadRequest
from service.schemas.failure import WITH_BODY, errors

router = APIRouter(prefix="/admin", tags=["admin"])


@router.post("/reload", responses=WITH_BODY | errors(403, 404, 409, 500, 503))
async def post_reload(body: ReloadRequest, reloader: ReloaderDep) -> ReloadAnswer:
    """Load a model again from its configured path, without interrupting any request.

    The new model is loaded and warmed up beside the old one; requests in flight finish with the old one.
    With `in_place`, the weights of the running engine are changed instead. If the new model cannot be served,
    the request is rejected and the old one stays.
    """
    done = await reloader.reload(
        body.model, in_place=body.in_place, in_flight=body.in_flight, limit_s=body.limit_s
    )
    return ReloadAnswer(**asdict(done))
