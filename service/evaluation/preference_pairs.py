"""Two answers to one prompt, shown without saying whose they are, and the verdict on them."""

from __future__ import annotations

import secrets
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service.evaluation.compare import run_seed
from service.generation.plan import Plan, make_plan
from service.runtime.prompt import PromptResult
from service.runtime.runtime import Runtime
from service.schemas import GenerateRequest
from service.schemas.preferences import PairRequest, PairSide
from service.store import Shown
from vbon.concurrency import all_or_first_error
from vbon.errors import InvalidInputError, NotFoundError

_MOST_OPEN = 1024  # pairs nobody judged


@dataclass(frozen=True, slots=True)
class Pair:
    """Both answers, in the order they are shown; only what a verdict is about, for it may never come."""

    prompt: str
    left: Shown
    right: Shown


class PendingPairs:
    """Pairs that wait for their verdict; who wrote them stays here until then.

    There is room for so many. Beyond, the oldest is forgotten of whoever has the most, so that nobody can
    push out the pairs of all others.
    """

    def __init__(self) -> None:
        self._pairs: OrderedDict[str, tuple[str, Pair]] = OrderedDict()

    def add(self, pair: Pair, owner: str = "") -> str:
        """Keep a pair that the API key of this name asked for; its id."""
        key = secrets.token_urlsafe(12)
        self._keep(key, owner, pair)
        return key

    @contextmanager
    def judged(self, key: str) -> Iterator[Pair]:
        """The pair, once; it stays open if the block fails, so that no verdict is lost.

        Raises:
            NotFoundError: judged already, forgotten, or never there.
        """
        owner, pair = self._pairs.pop(key, ("", None))
        if pair is None:
            raise NotFoundError(f"no pair {key!r} waits for a verdict; it may have had one")
        try:
            yield pair
        except BaseException:
            self._keep(key, owner, pair)
            raise

    def _keep(self, key: str, owner: str, pair: Pair) -> None:
        self._pairs[key] = owner, pair
        if len(self._pairs) > _MOST_OPEN:
            [(most, _)] = Counter(owner for owner, _ in self._pairs.values()).most_common(1)
            del self._pairs[next(key for key, (owner, _) in self._pairs.items() if owner == most)]


async def make_pair(runtime: Runtime, request: PairRequest, request_id: str) -> Pair:
    """Answer the prompt in both modes and shuffle.

    Raises:
        InvalidInputError: a mode that is not there, both sides the same, or over a limit.
        Whatever answering can raise.
    """
    plans = [
        _plan(runtime, request, side, f"{request_id}-{number}")
        for number, side in enumerate(request.sides)
    ]
    one, other = ((plan.mode.name, _drawn(plan)) for plan in plans)
    if one == other:
        raise InvalidInputError(
            f"both sides are {one[0]} with N = {one[1]}; choose two that differ", field="sides"
        )
    left, right = [
        _shown(answer)
        for answer in await all_or_first_error(plan.answer_prompt(0) for plan in plans)
    ]
    if secrets.randbits(1):
        left, right = right, left
    return Pair(request.prompt, left, right)


def _shown(answer: PromptResult) -> Shown:
    selected = answer.outcome.selected
    return Shown(answer.mode.name, answer.num_samples, selected.candidate.text, selected.reward)


def _plan(runtime: Runtime, request: PairRequest, side: PairSide, request_id: str) -> Plan:
    # Seeds of their own: with a shared one, one sample would be a candidate of the other side's.
    seed = None if request.seed is None else run_seed(request.seed, side.mode, side.n)
    given = {"messages": [{"role": "user", "content": request.prompt}]}
    body = GenerateRequest(
        **(given if request.chat else {"prompt": request.prompt}),
        n=side.n,
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        seed=seed,
    )
    return make_plan(runtime, side.mode, body, request_id)


def _drawn(plan: Plan) -> int:
    return plan.num_samples if plan.mode.strategy.reranks else 1
