"""``GET /healthz``, ``/readyz``, ``/health`` and ``/metrics``."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from service.routes.dependencies import RuntimeDep
from service.runtime.metrics import expose
from service.schemas import errors
from vbon.errors import NotReadyError

router = APIRouter(tags=["server"])


@router.get("/healthz")
async def get_healthz() -> dict[str, str]:
    """Alive: the event loop turns. Says nothing of the models."""
    return {"status": "alive"}


@router.get("/readyz", responses=errors(503))
@router.get("/health", name="get_health", responses=errors(503))
async def get_readyz(runtime: RuntimeDep) -> dict[str, str]:
    """Ready: every model is loaded and warmed up, and every engine lives; else 503.

    The status says which server of a remote policy is left out while the others answer. `/health` is
    the name under which `vllm serve` has this, and which load testers and gateways ask for.
    """
    if not runtime.ready:
        raise NotReadyError(runtime.status())
    return {"status": runtime.status()}


@router.get("/metrics", response_class=PlainTextResponse)
async def get_metrics(runtime: RuntimeDep) -> Response:
    """Prometheus metrics: the service's own (`vbon:`) and each engine's (`vllm:`), by policy."""
    text = await expose(runtime.metrics, runtime.policies)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
