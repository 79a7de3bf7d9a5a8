"""Pairs of answers that people judge without knowing which mode gave which."""

from __future__ import annotations

import secrets
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service.evaluation.answer_revision import answer_revision
from service.evaluation.compare import run_seed
from service.generation.plan import Plan, check_fixed, make_plan
from service.runtime.prompt import PromptResult
from service.runtime.runtime import Runtime
from service.schemas import GenerateRequest
from service.schemas.preferences import PairRequest, PairSide
from service.store import Shown
from vbon.concurrency import all_or_first_error
from vbon.errors import InvalidInputError, NotFoundError

_MOST_PENDING = 1024


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers in the order in which they are shown.

    It holds only what a verdict needs, because many pairs never get one.
    """

    prompt: str
    left: Shown
    right: Shown


class PendingPairs:
    """The pairs without a verdict. Only the server knows the modes behind them.

    Holds at most 1,024 pairs. When full, it evicts the oldest pair of the API key that holds the most, so
    that no key can push out all the pairs of others.
    """

    def __init__(self) -> None:
        self._pairs: OrderedDict[str, tuple[str, Pair]] = OrderedDict()

    def add(self, pair: Pair, owner: str = "") -> str:
        """Add a pair, and return its id.

        Args:
            owner: the name of the API key that requested the pair.
        """
        pair_id = secrets.token_urlsafe(12)
        self._keep(pair_id, owner, pair)
        return pair_id

    @contextmanager
    def judged(self, pair_id: str) -> Iterator[Pair]:
        """Take a pair out for its verdict. If the block fails, the pair is put back.

        Raises:
            NotFoundError: the pair has a verdict, was evicted, or never existed.
        """
        owner, pair = self._pairs.pop(pair_id, ("", None))
        if pair is None:
            raise NotFoundError(
                f"pair {pair_id!r} is not waiting for a verdict; it may already have one"
            )
        try:
            yield pair
        except BaseException:
            self._keep(pair_id, owner, pair)
            raise

    def _keep(self, pair_id: str, owner: str, pair: Pair) -> None:
        self._pairs[pair_id] = owner, pair
        if len(self._pairs) > _MOST_PENDING:
            [(most, _)] = Counter(owner for owner, _ in self._pairs.values()).most_common(1)
            del self._pairs[next(key for key, (owner, _) in self._pairs.items() if owner == most)]


async def make_pair(runtime: Runtime, request: PairRequest, request_id: str) -> Pair:
    """Answer the prompt in both modes, and put the answers in random order.

    Raises:
        InvalidInputError: a mode is unknown, both sides are the same, or a limit is exceeded.
        VbonError: as :meth:`Runtime.answer`.
    """
    plans = [
        _plan(runtime, request, side, f"{request_id}-{number}")
        for number, side in enumerate(request.sides)
    ]
    one, other = ((plan.mode.name, plan.mode.drawn(plan.num_samples)) for plan in plans)
    if one == other:
        raise InvalidInputError(
            f"both sides are {one[0]} with N = {one[1]}; choose two that differ", field="sides"
        )
    results = await all_or_first_error(plan.answer_prompt(0) for plan in plans)
    left, right = [_shown(result) for result in results]
    if secrets.randbits(1):
        left, right = right, left
    return Pair(request.prompt, left, right)


def _shown(result: PromptResult) -> Shown:
    selected = result.outcome.selected
    revision = answer_revision(result.mode, result.policy.revision, result.reward_revision)
    return Shown(
        mode=result.mode.name,
        n=result.num_samples,
        text=selected.candidate.text,
        reward=selected.reward,
        revision=revision,
    )


def _plan(runtime: Runtime, request: PairRequest, side: PairSide, request_id: str) -> Plan:
    # Each side has its own seed. With a shared one, a single sample would be one of the other's candidates.
    seed = None if request.seed is None else run_seed(request.seed, side.mode, side.n)
    chat = {"messages": [{"role": "user", "content": request.prompt}]}
    body = GenerateRequest(
        **(chat if request.chat else {"prompt": request.prompt}),
        n=side.n,
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        seed=seed,
    )
    plan = make_plan(runtime, side.mode, body, request_id)
    check_fixed(plan.mode, "sides")
    return plan
