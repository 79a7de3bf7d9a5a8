"""Best-of-N by a plain client of ``vllm serve`` and a scorer, written to be as fast as such a client can be.

For each prompt it sends one completion request of ``n`` samples, then one request with all candidates
to the scorer, and takes the argmax. Connections are kept open, and many prompts are in flight, so
some decode while others are scored. The client runs in its own process:
``python -m service.bench.candidates_client`` reads one :class:`CandidatesJob` as JSON from standard input
and writes one :class:`Answers`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass

from service.bench.answers import Answers
from service.bench.wire import SideError, Work, closed_loop, connected, run_in_child


@dataclass(frozen=True, slots=True)
class CandidatesJob:
    """Input of the client.

    Attributes:
        completions_url: address of ``/completions`` of an OpenAI-compatible server.
        scorer_url: address that takes prompts and completions and answers with rewards; ``None`` takes the
            first candidate.
        concurrency: prompts in flight.
    """

    completions_url: str
    model: str
    scorer_url: str | None
    prompts: Sequence[str]
    n: int
    max_tokens: int
    concurrency: int


async def run_client(job: CandidatesJob) -> Answers:
    """Answer all prompts; each gets its candidate of the highest reward, ties to the first."""
    texts = [""] * len(job.prompts)
    sampling = {"model": job.model, "n": job.n, "max_tokens": job.max_tokens, "temperature": 1.0}

    @asynccontextmanager
    async def worker() -> AsyncGenerator[Work[tuple[int, str]], None]:
        urls = [job.completions_url] + ([] if job.scorer_url is None else [job.scorer_url])
        async with connected(*urls) as (engine, *scorers):

            async def choose(entry: tuple[int, str]) -> None:
                index, prompt = entry
                drawn = await engine.ask({"prompt": prompt, **sampling})
                candidates = [choice["text"] for choice in drawn["choices"]]
                if len(candidates) != job.n:
                    raise SideError(f"asked for {job.n} candidates, got {len(candidates)}")
                texts[index] = candidates[0]
                if not scorers:
                    return
                body = {"prompts": [prompt] * job.n, "completions": candidates}
                rewards = (await scorers[0].ask(body))["rewards"]
                known = [-float("inf") if reward is None else reward for reward in rewards]
                texts[index] = candidates[known.index(max(known))]

            yield choose

    seconds = await closed_loop(job.prompts, job.concurrency, worker)
    return Answers(seconds, texts)


async def client_in_child(job: CandidatesJob) -> Answers:
    """Run :func:`run_client` in a child process.

    Raises:
        SideError: a server answered with an error, or the process failed.
    """
    command = [sys.executable, "-m", "service.bench.candidates_client"]
    return Answers(**await run_in_child(command, asdict(job)))


def main() -> None:
    """Read one job from standard input, run it, and write the answers to standard output."""
    job = CandidatesJob(**json.load(sys.stdin))
    json.dump(asdict(asyncio.run(run_client(job))), sys.stdout)


if __name__ == "__main__":
    main()
