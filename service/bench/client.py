"""The row ``client``: the service compared with a plain client of ``vllm serve`` and a scorer."""

from __future__ import annotations

from collections.abc import Sequence

from service.bench.answers import Answers
from service.bench.candidates_client import CandidatesJob, client_in_child
from service.bench.contest import Contender, contest, service_contender
from service.bench.figures import Figure
from service.bench.harness import Bench
from service.bench.scorer_endpoint import scorer_endpoint
from service.bench.vllm_serve import MODEL, vllm_serve
from service.runtime.served_scorer import ServedScorer
from vbon.errors import InvalidInputError

GOAL = 1.2


async def client(bench: Bench) -> Figure:
    """``bon`` over HTTP, compared with one ``n=N`` request to ``vllm serve`` and one call to the scorer.

    Both engines run throughout, with the same arguments and environment, but only one has work at a time.
    The scorer is the service's own, behind HTTP: the same weights, thread and batching across requests.
    The client is :mod:`service.bench.candidates_client`.
    """
    async with vllm_serve(bench.engine) as server:
        return await against_plain_client(bench, server)


async def against_plain_client(bench: Bench, server: str) -> Figure:
    """The row ``client`` with a ``vllm serve`` that already runs.

    Args:
        server: address of its ``/v1``.
    """
    settings = bench.settings
    async with scorer_endpoint(selecting_scorer(bench)) as scorer:

        async def answer(prompts: Sequence[str], width: int) -> Answers:
            url = f"{server}/completions"
            n, most = settings.n, settings.max_tokens
            return await client_in_child(CandidatesJob(url, MODEL, scorer, prompts, n, most, width))

        return await contest(
            bench, service_contender(bench), Contender("plain client", answer), GOAL
        )


def selecting_scorer(bench: Bench) -> ServedScorer:
    """The service's scorer of candidates.

    Raises:
        InvalidInputError: the service has no reward model.
    """
    if bench.runtime.reward is None:
        raise InvalidInputError("this row needs a reward model", field="reward")
    return bench.runtime.reward
