"""optillm as a server process, and a load of chats for it."""

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
from service.bench.wire import Work, closed_loop, connected, run_in_child

PLUGINS = Path(__file__).parent  # optillm looks for ./optillm/plugins
BUILT_IN, PLUGIN = "bon", "reward_bon"
# As shipped, optillm logs each request and reads certificates that are not needed here; both take time, the
# certificates tens of milliseconds a request.
TUNED_FLAGS = ("--log", "error", "--no-ssl-verify")


@asynccontextmanager
async def optillm_server(
    python: Path, base_url: str, n: int, scorer_url: str | None
) -> AsyncGenerator[str, None]:
    """Start optillm and yield the address of its chat completions.

    Args:
        scorer_url: the scorer that the tuned server uses; ``None`` starts optillm as shipped.

    Raises:
        SideError: it did not start.
    """
    port = free_port()
    flags = TUNED_FLAGS if scorer_url else ()
    command = [
        *[str(python), "-c", "import optillm; optillm.main()"],
        *["--port", str(port), "--base-url", base_url, "--best-of-n", str(n)],
        *flags,
    ]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("OPTILLM_")},
        "OPENAI_API_KEY": "none",
        "REWARD_BON_N": str(n),
        "REWARD_BON_SCORER": scorer_url or "",
        "PYTHONSAFEPATH": "1",  # otherwise Python would import the plugins' directory as the package
    }
    async with running(command, cwd=PLUGINS, env=environment) as (process, log):
        url = f"http://127.0.0.1:{port}"
        await wait_until_healthy(process, log, f"{url}/health", "optillm")
        yield f"{url}/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class ChatJob:
    """Chats of one user message each, for a server that answers with one message."""

    url: str
    model: str
    prompts: Sequence[str]
    max_tokens: int
    concurrency: int


async def run_chats(job: ChatJob) -> Answers:
    """Answer the job's prompts, ``concurrency`` at a time."""
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


async def chats_in_child(job: ChatJob) -> Answers:
    """Run :func:`run_chats` in a child process.

    Raises:
        SideError: the server answered with an error, or the process failed.
    """
    command = [sys.executable, "-m", "service.bench.peers.optillm_server"]
    return Answers(**await run_in_child(command, asdict(job)))


if __name__ == "__main__":
    json.dump(asdict(asyncio.run(run_chats(ChatJob(**json.load(sys.stdin))))), sys.stdout)
