"""Schemathesis over the OpenAPI document, and mutants of valid requests, on a server by its URL."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import httpx

from tests.fuzz.mutate import Sent, mutant
from tests.fuzz.verdict import may_be_400, wrong_with

ROOT = Path(__file__).resolve().parents[2]
AT_ONCE = 8
# Not positive_data_acceptance: what a schema cannot say (which modes there are, which settings go with
# which mode, this server's limits) is refused with 422 however well it fits the schema.
EXCLUDED_CHECKS = "positive_data_acceptance"


async def schemathesis(
    url: str, *, examples: int, seed: int, key: str | None = None
) -> tuple[int, str]:
    """Exit status and output of schemathesis with all its checks: generated, edge and broken data."""
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json",
        "--checks", "all", "--exclude-checks", EXCLUDED_CHECKS, "--continue-on-failure",
        "--max-examples", str(examples), "--seed", str(seed), "--request-timeout", "150",
        "--exclude-path", "/loadtests",  # what fits its schema starts a load test, one at a time
        # Without an admin's key, even a wrong method is only 403.
        *(() if key else ("--exclude-path", "/admin/reload")),
        "--phases", "examples,coverage,fuzzing,stateful", "--no-color",
        *(["--header", f"Authorization:Bearer {key}"] if key else []),
    ]  # fmt: skip
    paths = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.fuzz.hooks", "PYTHONPATH": paths}
    # It leaves files where it runs.
    with tempfile.TemporaryDirectory(prefix="schemathesis-") as scratch:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=scratch, env=environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    return process.returncode or 0, output.decode(errors="replace")


async def mutants(
    url: str, *, count: int, seed: int, key: str | None = None
) -> tuple[Counter[int], list[str]]:
    """How often each status came, and every answer that may not be, with the request to repeat."""
    statuses: Counter[int] = Counter()
    wrong: list[str] = []
    numbers = iter(range(count))
    keys = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=url, timeout=150) as client:

        async def send_on() -> None:
            for number in numbers:
                sent = mutant(random.Random(f"{seed}-{number}"))
                response = await _answer(client, sent, keys)
                if isinstance(response, str):
                    wrong.append(f"{number}: {sent}: {response}"[:2000])
                    continue
                statuses[response.status_code] += 1
                trouble = wrong_with(response, stated=may_be_400(sent.headers))
                if response.status_code == 504 and b"timeout" not in sent.content:
                    trouble = "504 without having asked for one"
                if trouble:
                    wrong.append(f"{number}: {trouble} for {sent}"[:2000])

        await asyncio.gather(*(send_on() for _ in range(AT_ONCE)))
    return statuses, wrong


async def _answer(
    client: httpx.AsyncClient, sent: Sent, keys: dict[str, str]
) -> httpx.Response | str:
    headers = [(name, value.encode()) for name, value in (keys | sent.headers).items()]
    try:
        return await client.request(sent.method, sent.target, content=sent.content, headers=headers)
    except httpx.HTTPError as error:
        return f"no answer: {type(error).__name__}: {error}"
