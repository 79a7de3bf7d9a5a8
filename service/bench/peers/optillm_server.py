"""optillm as a server of its own process, and a load of it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from service.bench.answers import Answers
from service.bench.processes import free_port, running, wait_until_healthy
from service.bench.wire import Work, closed_loop, connected, elsewhere

PLUGINS = Path(__file__).parent  # optillm looks for ./optillm/plugins
BUILT_IN, PLUGIN = "bon", "reward_bon"
# A log line per request costs it time; certificates are not needed here, and reading them takes it
# tens of milliseconds a request. As shipped it does both.
TUNED_FLAGS = ("--log", "error", "--no-ssl-verify")


@asynccontextmanager
async def optillm_server(
    python: Path, base_url: str, n: int, scorer_url: str | None
) -> AsyncGenerator[str, None]:
    """Its chat completions' URL; tuned if it is told of a scorer.

    Raises:
        SideError: it did not start.
    """
    port = free_port()
    flags = TUNED_FLAGS if scorer_url else ()
    command = [
        str(python), "-c", "import optillm; optillm.main()", "--port", str(port),
        "--base-url", base_url, "--best-of-n", str(n), *flags,
    ]  # fmt: skip
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("OPTILLM_")},
        "OPENAI_API_KEY": "none",
        "REWARD_BON_N": str(n),
        "REWARD_BON_SCORER": scorer_url or "",
        "PYTHONSAFEPATH": "1",  # or the plugins' directory would be taken for the package
    }
    async with running(command, cwd=PLUGINS, env=environment) as (process, log):
        url = f"http://127.0.0.1:{port}"
        await wait_until_healthy(process, log, f"{url}/health", "optillm")
        yield f"{url}/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Job:
    """Chats of one message to a server that answers each with one."""

    url: str
    model: str
    prompts: Sequence[str]
    max_tokens: int
    concurrency: int


async def run_chats(job: Job) -> Answers:
    """All prompts, so many in flight."""
    texts = [""] * len(job.prompts)
    body = {"model": job.model, "max_tokens": job.max_tokens, "temperature": 1.0}

    @asynccontextmanager
    async def worker() -> AsyncGenerator[Work[tuple[int, str]], None]:
        async with connected(job.url) as (server,):

            async def ask(entry: tuple[int, str]) -> None:
                index, prompt = entry
                messages = [{"role": "user", "content": prompt}]
                answer = await server.ask({**body, "messages": messages})
                texts[index] = answer["choices"][0]["message"]["content"]

            yield ask

    return Answers(await closed_loop(job.prompts, job.concurrency, worker), texts)


async def chats_elsewhere(job: Job) -> Answers:
    """:func:`run_chats` in a process of its own.

    Raises:
        SideError: the server refused, or the process failed.
    """
    command = [sys.executable, "-m", "service.bench.peers.optillm_server"]
    return Answers(**await elsewhere(command, asdict(job)))


if __name__ == "__main__":
    json.dump(asdict(asyncio.run(run_chats(Job(**json.load(sys.stdin))))), sys.stdout)
