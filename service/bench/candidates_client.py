"""The strong plain client of best-of-N: what someone writes who has vLLM and a scorer, and knows how.

For each prompt one completion request of ``n`` samples to ``vllm serve``, then one call with all of
them to the scorer, then the argmax. Connections are kept alive, requests are in flight side by side
(so that decoding of some hides the scoring of others), and the client is a process of its own:
``python -m service.bench.candidates_client`` reads one :class:`Job` as JSON and writes one
:class:`Answers`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass

from service.bench.answers import Answers
from service.bench.wire import SideError, Work, closed_loop, connected, elsewhere


@dataclass(frozen=True, slots=True)
class Job:
    """What to do.

    Attributes:
        completions_url: of an OpenAI-compatible server, to its ``/completions``.
        scorer_url: takes prompts and completions, answers with rewards.
        concurrency: prompts in work at once.
    """

    completions_url: str
    model: str
    scorer_url: str
    prompts: Sequence[str]
    n: int
    max_tokens: int
    concurrency: int


async def run_client(job: Job) -> Answers:
    """All prompts; the answer of each is its candidate of the highest reward, ties to the first."""
    texts = [""] * len(job.prompts)
    sampling = {"model": job.model, "n": job.n, "max_tokens": job.max_tokens, "temperature": 1.0}

    @asynccontextmanager
    async def worker() -> AsyncGenerator[Work[tuple[int, str]], None]:
        async with connected(job.completions_url, job.scorer_url) as (engine, scorer):

            async def choose(entry: tuple[int, str]) -> None:
                index, prompt = entry
                drawn = await engine.ask({"prompt": prompt, **sampling})
                candidates = [choice["text"] for choice in drawn["choices"]]
                if len(candidates) != job.n:
                    raise SideError(f"{len(candidates)} candidates came of {job.n}")
                body = {"prompts": [prompt] * job.n, "completions": candidates}
                rewards = (await scorer.ask(body))["rewards"]
                known = [-float("inf") if reward is None else reward for reward in rewards]
                texts[index] = candidates[known.index(max(known))]

            yield choose

    seconds = await closed_loop(job.prompts, job.concurrency, worker)
    return Answers(seconds, texts)


async def client_elsewhere(job: Job) -> Answers:
    """:func:`run_client` in a process of its own.

    Raises:
        SideError: a server refused, or the process failed.
    """
    command = [sys.executable, "-m", "service.bench.candidates_client"]
    return Answers(**await elsewhere(command, asdict(job)))


def main() -> None:
    """One job from standard input."""
    job = Job(**json.load(sys.stdin))
    json.dump(asdict(asyncio.run(run_client(job))), sys.stdout)


if __name__ == "__main__":
    main()
