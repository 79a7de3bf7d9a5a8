"""``GET /healthz``, ``/readyz``, ``/health`` and ``/metrics``: health, readiness and metrics."""

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
    """Answers while the event loop runs, whatever the state of the models."""
    return {"status": "alive"}


@router.get("/readyz", responses=errors(503))
@router.get("/health", name="get_health", responses=errors(503))
async def get_readyz(runtime: RuntimeDep) -> dict[str, str]:
    """Answers 200 if every model is loaded and warmed up and every engine is alive, else 503.

    If some servers of a remote policy are unavailable while others answer, the status names them.
    `/health` is the name that `vllm serve`, load testers and gateways use for this route.
    """
    if not runtime.ready:
        raise NotReadyError(runtime.status())
    return {"status": runtime.status()}


# Gateways ask for these without a body.
for _path, _endpoint in (
    ("/healthz", get_healthz),
    ("/readyz", get_readyz),
    ("/health", get_readyz),
):
    router.add_api_route(_path, _endpoint, methods=["HEAD"], include_in_schema=False)


@router.get("/metrics", responses=errors(503), response_class=PlainTextResponse)
async def get_metrics(runtime: RuntimeDep) -> Response:
    """Prometheus metrics: the service's own (`vbon:`), and each engine's (`vllm:`) labelled by policy."""
    text = await expose(runtime.metrics, runtime.policies, runtime.all_metrics)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
