"""The commands for a service's checkpoints: what they send, and what they print of real answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from tests.unit.rolling import Rolling, rolling
from vbon.distil.commands import distil_cli


async def run(service: Rolling, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    """Run a command against a service in this process."""
    loop = asyncio.get_running_loop()

    def send(request: httpx.Request) -> httpx.Response:
        answered = service.client.request(
            request.method,
            request.url.path,
            content=request.content,
            headers={"content-type": "application/json", "authorization": "", **keys(request)},
        )
        response = asyncio.run_coroutine_threadsafe(answered, loop).result(20)
        return httpx.Response(response.status_code, content=response.content)

    original = httpx.Client

    def client(**options: Any) -> httpx.Client:
        return original(transport=httpx.MockTransport(send), **options)

    with monkeypatch.context() as patched:
        patched.setattr(httpx, "Client", client)
        return await asyncio.to_thread(CliRunner().invoke, distil_cli, list(arguments))


def keys(request: httpx.Request) -> dict[str, str]:
    return {k: v for k, v in request.headers.items() if k == "authorization"}


async def test_checkpoints_are_shown_promoted_refused_and_rolled_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rolling(tmp_path, approve=True, shadow_share=1e-9) as service:
        token = service.client.headers["authorization"].removeprefix("Bearer ")
        monkeypatch.setenv("COLUMNS", "200")
        for name in ("0001", "0002"):
            await service.submit(name)
        monkeypatch.setenv("VBON_REMOTE_API_KEY", token)
        found = await run(service, monkeypatch, "promote", "0001")
        assert "checkpoint 0001 is rolling" in found.output
        await service.until(lambda: "0001" in service.live.served.alive)
        found = await run(service, monkeypatch, "promote", "0001")
        assert found.output == "checkpoint 0001 is live at 100% of mode auto\n"
        found = await run(service, monkeypatch, "refuse", "0002")
        assert found.output == "checkpoint 0002 is refused\n"
        found = await run(service, monkeypatch, "checkpoints")
        assert found.exit_code == 0, found.output
        lines = {line.split()[1]: line for line in found.output.splitlines() if "│ 000" in line}
        assert "live" in lines["0001"]
        assert "100%" in lines["0001"]
        assert "refused" in lines["0002"]
        assert "always best-of-4; training took 200" in found.output
        found = await run(service, monkeypatch, "refuse", "0001")
        assert (found.exit_code, "HTTP 422" in found.output) == (1, True)
        found = await run(service, monkeypatch, "rollback", "--to", "0002")
        assert "never been live" in found.output
        found = await run(service, monkeypatch, "rollback")
        assert found.output == "best-of-N answers mode auto\n"
        found = await run(service, monkeypatch, "rollback", "--to", "0001")
        assert found.output == "checkpoint 0001 answers mode auto\n"
        found = await run(service, monkeypatch, "rollback", "--key", "wrong")
        assert (found.exit_code, "HTTP 401" in found.output) == (1, True)


def test_a_service_that_does_not_answer_is_named() -> None:
    found = CliRunner().invoke(distil_cli, ["checkpoints", "--url", "http://127.0.0.1:9"])
    assert found.exit_code == 1
    assert "http://127.0.0.1:9 did not answer" in found.output
