"""``/admin``: what only an admin's key may do."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from service.routes.dependencies import ReloaderDep
from service.schemas.admin import ReloadAnswer, ReloadRequest
from service.schemas.failure import WITH_BODY, errors

router = APIRouter(prefix="/admin", tags=["admin"])


@router.post("/reload", responses=WITH_BODY | errors(403, 404, 409, 500, 503))
async def post_reload(body: ReloadRequest, reloader: ReloaderDep) -> ReloadAnswer:
    """Serve what a model's configured path holds now, without failing a request.

    The new weights are loaded and warmed up beside the old ones, which requests under way finish with.
    What cannot be served is refused, and the old weights go on.
    """
    return ReloadAnswer(**asdict(await reloader.reload(body.model)))
