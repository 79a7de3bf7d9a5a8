"""Clients and frameworks as their users run them, each in an environment of its own, on the fake engine.

They pin different versions of one another's dependencies, so none is installed beside the project:
``pyproject.toml`` names them in groups ``client-*``, and uv and npm keep them in their caches. A client that
cannot be installed here is skipped with the reason.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tomllib
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import pytest

from tests.unit.fakes import ChatEngine, make_runtime, on_a_port

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "clients"
CLIENTS = ("langchain", "litellm", "instructor", "llama_index")
INSTALLING_S, RUNNING_S = 240, 240
NODE_CLIENTS = {
    "openai_client.mjs": ["openai@6"],
    "ai_sdk_client.mjs": ["ai@6", "@ai-sdk/openai@3", "@ai-sdk/openai-compatible@2", "zod@4"],
}


@pytest.fixture(scope="module")
async def url() -> AsyncGenerator[str, None]:
    engines = {
        "ref": ChatEngine("ref", max_model_len=4000),
        "vbon": ChatEngine("vbon", max_model_len=4000),
        "long": ChatEngine("long", max_model_len=20_000),
    }
    async with on_a_port(make_runtime(engines=engines, limits={"max_tokens": 2000})) as url:
        yield url


async def run(command: Sequence[str | Path], seconds: float, **variables: str) -> tuple[int, str]:
    """Exit status and output of a command."""
    quiet = {
        "DO_NOT_TRACK": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LANGCHAIN_TRACING_V2": "false",
    }
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    process = await asyncio.create_subprocess_exec(
        *command, env=environment | quiet | variables,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(seconds):
            output, _ = await process.communicate()
    except TimeoutError:
        return 124, f"not finished within {seconds:g} s"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, output.decode(errors="replace")


def uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.is_file() else shutil.which("uv")
    if found is None:
        pytest.skip("uv is not installed")
    return found


@pytest.mark.parametrize("name", CLIENTS)
async def test_a_framework_works_as_it_is(url: str, name: str) -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "dependency-groups"
    ]
    packages = groups[f"client-{name.replace('_', '-')}"]
    command = [uv(), "run", "--no-project", "--quiet", "--python", sys.executable]
    command += [part for package in packages for part in ("--with", package)]
    status, output = await run([*command, "python", "-c", ""], INSTALLING_S)
    if status != 0:
        pytest.skip(f"{', '.join(packages)} cannot be installed here: {output[-300:]}")
    status, output = await run([*command, "python", SCRIPTS / f"{name}_client.py", url], RUNNING_S)
    assert status == 0, output[-4000:]


@pytest.mark.parametrize("script", NODE_CLIENTS)
async def test_a_client_for_node_works_as_it_is(url: str, tmp_path: Path, script: str) -> None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node or npm is not installed")
    packages = NODE_CLIENTS[script]
    install = [npm, "install", "--no-audit", "--no-fund", "--prefix", tmp_path, *packages]
    status, output = await run(install, INSTALLING_S)
    if status != 0:
        pytest.skip(f"{', '.join(packages)} cannot be installed here: {output[-300:]}")
    copied = shutil.copy(SCRIPTS / script, tmp_path)
    status, output = await run([node, copied, url], RUNNING_S)
    assert status == 0, output[-4000:]
