"""The row ``peers``: the service compared with each peer, as shipped and tuned."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from service.bench.answers import Answers
from service.bench.client import selecting_scorer
from service.bench.contest import Contender, contest, service_contender
from service.bench.figures import Figure
from service.bench.harness import Bench
from service.bench.peers.optillm_server import (
    BUILT_IN,
    PLUGIN,
    ChatJob,
    chats_in_child,
    optillm_server,
)
from service.bench.scorer_endpoint import scorer_endpoint
from service.bench.vllm_serve import MODEL, vllm_serve
from service.bench.wire import run_in_child
from vbon.errors import InvalidInputError

GOAL = 2.0
# optillm's judge generates up to 256 tokens after a prompt of several hundred.
JUDGE_CONTEXT = 1024
DRIVER = Path(__file__).parent / "its_hub_driver.py"
VERSIONS = {"optillm": "0.4.0", "its_hub": "1.2.0"}

Opened = AbstractAsyncContextManager[Contender]


async def peers(bench: Bench) -> list[Figure]:
    """A figure for each of ``--peer-sides``, all over one ``vllm serve`` equal to the service's engine.

    As shipped, both peers judge with the policy itself, whatever the quality of its judgement. Tuned, they
    call the service's scorer once a prompt. Chats have the same tokens as the service's text prompts,
    apart from what a peer adds to them.

    Raises:
        InvalidInputError: the environment with the peers is missing, or the context is too short for judges.
    """
    check_sides(bench.settings.peer_sides, bench.engine.info.max_model_len)
    await asyncio.to_thread(check_environment, bench.settings.peers_python)
    contender = service_contender(bench)
    figures = []
    async with (
        vllm_serve(bench.engine) as server,
        scorer_endpoint(selecting_scorer(bench)) as scorer,
    ):
        for side in bench.settings.peer_sides:
            async with SIDES[side](bench, server, scorer) as peer:
                figures.append(await contest(bench, contender, peer, GOAL))
    return figures


def check_sides(sides: Sequence[str], context: int) -> None:
    """Check that the sides exist and that the context is long enough for their judges.

    Args:
        context: context length of the policy, in tokens.

    Raises:
        InvalidInputError: unknown side, or the context is too short.
    """
    for side in sides:
        if side not in SIDES:
            raise InvalidInputError(
                f"unknown side {side!r}; the sides are {', '.join(SIDES)}", field="peer_sides"
            )
    if context < JUDGE_CONTEXT and not all(side.endswith("-tuned") for side in sides):
        raise InvalidInputError(
            f"the peers' judges need a context of {JUDGE_CONTEXT} tokens, and this policy has {context}; "
            "measure only the tuned sides, or use another policy",
            field="peer_sides",
        )


def check_environment(python: Path) -> None:
    """Check that the peers are installed in the versions that are measured.

    Raises:
        InvalidInputError: they are not; the message has the command that installs them.
    """
    make = f"`scripts/peers {python.parent.parent}` creates it"
    if not python.is_file():
        raise InvalidInputError(f"{python} does not exist; {make}", field="peers_python")
    program = "from importlib.metadata import version as v; print(v('optillm'), v('its_hub'))"
    done = subprocess.run([str(python), "-c", program], capture_output=True, text=True, check=False)
    found = done.stdout.split()
    if found != list(VERSIONS.values()):
        raise InvalidInputError(
            f"{python} has versions {' and '.join(found) or 'none'} of optillm and its_hub, but the bench "
            f"measures {' and '.join(VERSIONS.values())}; {make}",
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
                return await chats_in_child(
                    ChatJob(url, model, prompts, settings.max_tokens, width)
                )

            yield Contender(_name("optillm", tuned), answer)

    return opened


def _its_hub(tuned: bool) -> Callable[[Bench, str, str], Opened]:
    @asynccontextmanager
    async def opened(bench: Bench, engine: str, scorer: str) -> AsyncGenerator[Contender, None]:
        settings = bench.settings
        job = {
            "base_url": engine,
            "model": MODEL,
            "scorer_url": scorer if tuned else None,
            "n": settings.n,
            "max_tokens": settings.max_tokens,
        }

        async def answer(prompts: Sequence[str], width: int) -> Answers:
            command = [str(settings.peers_python), str(DRIVER)]
            asked = {**job, "prompts": list(prompts), "concurrency": width}
            return Answers(**await run_in_child(command, asked))

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
