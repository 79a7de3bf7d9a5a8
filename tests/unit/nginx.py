"""nginx in front of a server of a test, configured as docs/operations.md says."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.bench.processes import free_port

DOCS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
PROGRAM = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")

# One process that ends with its parent's signal; temporary files lie beside the configuration.
FRAME = """
daemon off;
master_process off;
pid nginx.pid;
events { worker_connections 512; }
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    %s
}
"""


def documented() -> str:
    """The configuration in docs/operations.md."""
    [block] = re.findall(r"```nginx\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert isinstance(block, str)
    return block


@asynccontextmanager
async def nginx_before(
    port: int, folder: Path, changes: Mapping[str, str] | None = None
) -> AsyncGenerator[int, None]:
    """nginx in front of a port; its own port.

    Args:
        changes: lines of the documented configuration, and those that take their place.
    """
    if PROGRAM is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    own = free_port()
    text = documented()
    for line, instead in {
        "server 127.0.0.1:8000;": f"server 127.0.0.1:{port};",
        "listen 443 ssl;": f"listen 127.0.0.1:{own};",
        "ssl_certificate /etc/ssl/vbon.pem;": "",
        "ssl_certificate_key /etc/ssl/vbon.key;": "",
        **(changes or {}),
    }.items():
        assert text.count(line) == 1, line
        text = text.replace(line, instead)
    (folder / "nginx.conf").write_text(FRAME % text, encoding="utf-8")
    process = _started(PROGRAM, folder)
    try:
        await _listening(own, process)
        yield own
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 10)


def _started(program: str, folder: Path) -> subprocess.Popen[bytes]:
    command = [program, "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"]
    with (folder / "nginx.log").open("wb") as out:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)


async def _listening(port: int, process: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                assert process.poll() is None, "see nginx.log"
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return
