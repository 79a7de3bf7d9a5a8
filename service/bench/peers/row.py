"""The row: the service against each peer, as shipped and tuned."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from service.bench.answers import Answers
from service.bench.client import selecting
from service.bench.contest import Contender, contest, ours
from service.bench.harness import Bench, Figure
from service.bench.peers.optillm_server import (
    BUILT_IN,
    PLUGIN,
    Job,
    chats_elsewhere,
    optillm_server,
)
from service.bench.scorer_endpoint import scorer_endpoint
from service.bench.vllm_serve import MODEL, vllm_serve
from service.bench.wire import elsewhere
from vbon.errors import InvalidInputError

GOAL = 2.0
# optillm's judge is asked for up to 256 tokens after a prompt of some hundred.
JUDGE_CONTEXT = 1024
DRIVER = Path(__file__).parent / "its_hub_driver.py"
VERSIONS = {"optillm": "0.4.0", "its_hub": "1.2.0"}

Opened = AbstractAsyncContextManager[Contender]


async def peers(bench: Bench) -> list[Figure]:
    """A figure for each of ``--peer-sides``, all over one ``vllm serve`` like the service's engine.

    As shipped both peers judge with the policy itself, whatever that is worth; tuned they call the
    service's own scorer once a prompt. Chats are the same tokens as the service's text prompts,
    but for what a peer adds to them.

    Raises:
        InvalidInputError: no environment with the peers, or a context too short for judges.
    """
    check_sides(bench.settings.peer_sides, bench.engine.info.max_model_len)
    await asyncio.to_thread(check_environment, bench.settings.peers_python)
    contender = ours(bench)
    figures = []
    async with vllm_serve(bench.engine) as server, scorer_endpoint(selecting(bench)) as scorer:
        for side in bench.settings.peer_sides:
            async with SIDES[side](bench, server, scorer) as peer:
                figures.append(await contest(bench, contender, peer, GOAL))
    return figures


def check_sides(sides: Sequence[str], context: int) -> None:
    """Say which sides there are, and that judges need room.

    Args:
        context: of the policy, tokens.
    """
    for side in sides:
        if side not in SIDES:
            raise InvalidInputError(
                f"no side {side!r}; there are {', '.join(SIDES)}", field="peer_sides"
            )
    if context < JUDGE_CONTEXT and not all(side.endswith("-tuned") for side in sides):
        raise InvalidInputError(
            f"the peers' judges need a policy with a context of {JUDGE_CONTEXT} tokens, this one "
            f"has {context}; measure the tuned sides alone, or take another policy",
            field="peer_sides",
        )


def check_environment(python: Path) -> None:
    """Say how to make it where it is not there or holds other versions."""
    make = f"`scripts/peers {python.parent.parent}` makes it"
    if not python.is_file():
        raise InvalidInputError(f"{python} does not exist; {make}", field="peers_python")
    program = "from importlib.metadata import version as v; print(v('optillm'), v('its_hub'))"
    done = subprocess.run([str(python), "-c", program], capture_output=True, text=True, check=False)
    found = done.stdout.split()
    if found != list(VERSIONS.values()):
        raise InvalidInputError(
            f"{python} has {' and '.join(found) or 'none'} of optillm and its_hub where "
            f"{' and '.join(VERSIONS.values())} are measured; {make}",
            field="peers_python",
        )


def _optillm(tuned: bool) -> Callable[[Bench, str, str], Opened]:
    @asynccontextmanager
    async def opened(bench: Bench, engine: str, scorer: str) -> AsyncGenerator[Contender, None]:
        settings = bench.settings
        model = f"{PLUGIN if tuned else BUILT_IN}-{MODEL}"
        python = settings.peers_python
        async with optillm_server(python, engine, settings.n, scorer if tuned else None) as url:

            async def answer(prompts: Sequence[str], width: int) -> Answers:
                return await chats_elsewhere(Job(url, model, prompts, settings.max_tokens, width))

            yield Contender(_name("optillm", tuned), answer)

    return opened


def _its_hub(tuned: bool) -> Callable[[Bench, str, str], Opened]:
    @asynccontextmanager
    async def opened(bench: Bench, engine: str, scorer: str) -> AsyncGenerator[Contender, None]:
        settings = bench.settings
        job = {
            "base_url": engine, "model": MODEL, "scorer_url": scorer if tuned else None,
            "n": settings.n, "max_tokens": settings.max_tokens,
        }  # fmt: skip

        async def answer(prompts: Sequence[str], width: int) -> Answers:
            command = [str(settings.peers_python), str(DRIVER)]
            asked = {**job, "prompts": list(prompts), "concurrency": width}
            return Answers(**await elsewhere(command, asked))

        yield Contender(_name("its_hub", tuned), answer)

    return opened


def _name(peer: str, tuned: bool) -> str:
    return f"{peer} {VERSIONS[peer]} {'tuned' if tuned else 'as shipped'}"


SIDES: dict[str, Callable[[Bench, str, str], Opened]] = {
    "optillm": _optillm(tuned=False),
    "optillm-tuned": _optillm(tuned=True),
    "its-hub": _its_hub(tuned=False),
    "its-hub-tuned": _its_hub(tuned=True),
}
