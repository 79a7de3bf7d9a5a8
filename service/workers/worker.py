"""A worker: the service's application, whose engines, scorers and limits are the parent's."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
from contextvars import Context
from functools import partial
from multiprocessing.connection import Connection
from uuid import uuid4

import uvicorn
from fastapi import FastAPI
from prometheus_client import Metric

from service.admission.shared import SharedAdmission
from service.app import create_app
from service.auto.table_in_use import TableState
from service.held.client import RemoteHolder
from service.held.hosted import HELD_REQUESTS, HeldRequests
from service.http.open_files import raise_open_files_limit
from service.observability.logs import set_up_logs
from service.runtime.build import RuntimeBuilder
from service.runtime.limits import open_admission
from service.runtime.runtime import Runtime
from service.runtime.served_scorer import ServedScorer
from service.server import DrainingServer, keep_for_good, server_config
from service.settings import ServiceSettings
from service.wire import WireClient, WireError, WireServer
from service.wire.engine import EngineStates, WireEngine
from service.wire.hosted import ENGINES, SCORER, MetricParts, ScorerState
from service.wire.limits import Place, limits_connector
from service.wire.replicas import FixedReplicas
from service.wire.scorer import WireScorer
from service.workers.pages import PAGES, PATIENCE_S
from service.workers.places import Places
from service.workers.reloads import ParentsReloads
from vbon.child_output import ensure_standard_files
from vbon.engine import Engine
from vbon.engine.remote.server import is_remote
from vbon.errors import NotReadyError

logger = logging.getLogger(__name__)

# The parent decides how long models may load, and ends its workers if they cannot be loaded.
_NO_LIMIT_S = 1e9
_AGAIN_S = 0.25
# Time for the end of a worker whose parent has died, of which it needs next to nothing.
_ORPHAN_S = 5.0
# Connections that wait to be accepted. A worker accepts one at a time, so that the others get theirs.
_BACKLOG = 2048


def run_worker(
    settings: ServiceSettings,
    sock: socket.socket,
    places: Places,
    lifeline: Connection,
    holds: bool = False,
) -> None:
    """Serve until the parent sends SIGTERM, or has ended.

    Args:
        lifeline: the end of a pipe that is closed when the parent ends.
        holds: whether this worker holds the load tests, pairs and tables of all workers.
    """
    # A Ctrl-C in the terminal reaches the parent alone, which lets its workers drain.
    os.setsid()
    ensure_standard_files()
    set_up_logs(settings)
    open_files = raise_open_files_limit(settings.limits)
    runtime = worker_runtime(settings, places)

    def stop_server() -> None:
        server.should_exit = True

    # Only models at URLs can fail here: the parent starts a worker again, which asks their servers again.
    app = create_app(
        runtime,
        on_ready=keep_for_good,
        on_failure=stop_server,
        holder=None if holds else _holder(places),
        reloads=ParentsReloads(places.reloads),
    )
    reports = Reports(runtime, places)
    runtime.all_metrics = reports.sum
    config = server_config(settings, app, open_files)
    config.backlog = 1
    held = _held_server(app, places) if holds else None
    server = _WorkerServer(config, runtime, reports, lifeline, places, held)
    server.run(sockets=[sock])


def _holder(places: Places) -> RemoteHolder:
    addresses = {"holder": places.holder}
    return RemoteHolder(
        FixedReplicas[TableState]("the worker that holds", HELD_REQUESTS, addresses)
    )


def _held_server(app: FastAPI, places: Places) -> WireServer:
    target = HeldRequests(app)
    return WireServer(places.holder.url, target, HELD_REQUESTS, secret=places.secret)


def worker_runtime(settings: ServiceSettings, places: Places) -> Runtime:
    """The runtime of one worker. Policies and reward models at URLs are its own."""
    builder = RuntimeBuilder(settings)
    options = {"capacity": settings.engine.max_num_seqs, "placement": settings.engine.placement}
    parent = FixedReplicas[EngineStates](
        "the engines", ENGINES, {"parent": places.engines}, **options
    )

    def engine(policy: str, path: str) -> Engine:
        if is_remote(path):
            return builder.engines(policy, {})[policy]
        continuations = settings.engine.continuations
        return WireEngine(parent, policy, path, _NO_LIMIT_S, continuations=continuations)

    def scorer(which: str, spec: str | None) -> ServedScorer | None:
        if spec is None or is_remote(spec):
            return None if spec is None else builder.scorer(which)
        address = {"parent": places.of(which)}
        replicas = FixedReplicas[ScorerState](f"the {which} model", SCORER, address)
        return WireScorer(replicas, spec, _NO_LIMIT_S)

    async def limits() -> Place:
        return places.limits.url, places.limits.secret

    return Runtime(
        settings,
        {policy: engine(policy, path) for policy, path in settings.policies.items()},
        scorer("reward", settings.reward),
        scorer("gold", settings.gold),
        admission=SharedAdmission(
            limits_connector(limits),
            partial(open_admission, settings.limits),
            front_ends=settings.workers,
        ),
    )


class Reports:
    """Reports this worker's metrics to the parent, and asks it for the sum over all workers."""

    def __init__(self, runtime: Runtime, places: Places) -> None:
        self._runtime = runtime
        address = places.metrics
        self._client = WireClient(address.url, PAGES, secret=address.secret)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to report."""
        self._task = asyncio.create_task(self._report(), name="report-metrics", context=Context())

    async def stop(self) -> None:
        """Stop reporting."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def sum(self) -> list[Metric]:
        """The metrics of all workers.

        Raises:
            NotReadyError: the parent does not answer in time.
        """
        try:
            async with asyncio.timeout(2 * PATIENCE_S):
                found: list[MetricParts] = await self._client.call("sum")
        except (TimeoutError, WireError) as error:
            # This worker's own would look as if all counters had been set back.
            raise NotReadyError(
                "the counts of the other workers cannot be had now; ask again in some seconds"
            ) from error
        return [one.metric for one in found]

    async def _report(self) -> None:
        name = uuid4().hex
        try:
            while True:
                try:
                    await self._client.connect()
                    async for number in self._client.stream("wanted", name):
                        page = self._runtime.metrics.registry.collect()
                        parts = [MetricParts.of(family) for family in page]
                        self._client.tell("report", name, number, parts)
                except WireError:
                    pass
                except (
                    Exception
                ):  # the next report may succeed, and without any there are no metrics
                    logger.exception("this worker's metrics cannot be reported")
                await asyncio.sleep(_AGAIN_S)
        finally:
            self._client.close()


class _WorkerServer(DrainingServer):
    """The server of one worker."""

    def __init__(
        self,
        config: uvicorn.Config,
        runtime: Runtime,
        reports: Reports,
        lifeline: Connection,
        places: Places,
        held: WireServer | None,
    ) -> None:
        super().__init__(config, runtime)
        self._held = held
        self._reports, self._lifeline, self._places = reports, lifeline, places

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to serve, and to watch the parent."""
        await super().startup(sockets)
        for sock in sockets or []:
            sock.listen(_BACKLOG)
        asyncio.get_running_loop().add_reader(self._lifeline.fileno(), self._be_orphaned)
        self._reports.start()
        if self._held is not None:
            await self._held.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down, and stop reporting at the end."""
        if self._held is not None:
            await self._held.drain(
                0.0 if self.force_exit else self._runtime.settings.limits.drain_s
            )
        await super().shutdown(sockets)
        if self._held is not None:
            await self._held.stop()
        await self._reports.stop()

    def _be_orphaned(self) -> None:
        """End at once: the engines have gone with the parent, which has left its sockets behind."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._lifeline.fileno())
        shutil.rmtree(self._places.directory, ignore_errors=True)
        self.should_exit = self.force_exit = True
        loop.call_later(_ORPHAN_S, os._exit, 1)
