"""The start of a server of several processes, as far as it needs none."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from pathlib import Path

import pytest
import uvicorn

from service.runtime.reload import Reloader
from service.settings import ServiceSettings
from service.workers.models import LocalModels
from service.workers.reloads import HostedReloads
from service.workers.serve import listening_socket, serve_with_workers
from tests.unit.fakes import make_runtime
from tests.unit.test_reload import Shelf
from vbon.errors import NotReadyError, VbonError


def test_a_long_path_of_temporary_files_is_told_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    settings = ServiceSettings(port=0, workers=2, policies={"ref": "fake"}, reward=None, store=None)
    with pytest.raises(VbonError, match="TMPDIR") as told:
        serve_with_workers(settings, lambda _: make_runtime())
    assert str(long) in str(told.value)
    assert not list(long.iterdir())


async def test_answers_leave_at_once() -> None:
    """As with one process, also on asyncio's own loop: with Nagle's algorithm a stream can wait for 40 ms."""
    accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    class Accepting(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            connection = transport.get_extra_info("socket")
            accepted.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            transport.close()

    with listening_socket(uvicorn.Config("", "127.0.0.1", 0, log_config=None)) as sock:
        server = await asyncio.get_running_loop().create_server(Accepting, sock=sock)
        _, writer = await asyncio.open_connection(*sock.getsockname()[:2])
        assert await asyncio.wait_for(accepted, 60)
        writer.close()
        server.close()


async def test_the_parent_reloads_nothing_before_its_models_are_loaded() -> None:
    runtime = make_runtime()
    models = LocalModels(runtime)
    hosted = HostedReloads(runtime, Reloader(runtime, Shelf(), loaded=lambda: models.loaded))
    with pytest.raises(NotReadyError, match="models are loading"):
        await hosted.reload("reward", False, "finish", None)
    await models.start()
    done = await hosted.reload("reward", False, "finish", None)
    assert done.now == "second"
    await models.stop()
    with pytest.raises(NotReadyError):
        await hosted.reload("reward", False, "finish", None)
