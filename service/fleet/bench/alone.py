"""The service in one process, as ``vbon serve`` runs it, over the engines of the bench.

``python -m service.fleet.bench.alone`` reads the service's settings as JSON from standard input.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys

import uvicorn

from service.app import create_app
from service.fleet.bench.models import IdleBuilder
from service.http.uvicorn_protocol import http_options
from service.observability.logs import set_up_logs
from service.runtime.runtime import Runtime
from service.server import DrainingServer, keep_for_good
from service.settings import ServiceSettings


async def serve(settings: ServiceSettings) -> None:
    """Serve until a signal comes."""
    builder = IdleBuilder(settings)
    engines = {name: builder.engines(name, {})[name] for name in settings.policies}
    runtime = Runtime(settings, engines, builder.scorer("reward"), None)
    app = create_app(runtime, on_ready=keep_for_good)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=math.ceil(settings.limits.drain_s) + 5,
        ws="none",
        server_header=False,
        **http_options(settings.limits, None, app.state.early_refusal),
    )
    await DrainingServer(config, runtime).serve()


def main() -> None:
    """Read the settings and serve."""
    settings = ServiceSettings(**json.load(sys.stdin))
    set_up_logs(settings)
    # The same event loop that uvicorn would choose for a server.
    loop_factory = uvicorn.Config("service.app:create_app").get_loop_factory()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(serve(settings))


if __name__ == "__main__":
    main()
