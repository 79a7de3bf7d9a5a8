"""The interface of the routers, which choose how a request of mode ``auto`` is answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from service.runtime.modes import Mode
from vbon.engine import Sampling
from vbon.errors import EngineError, RequestTimeoutError
from vbon.maths.intervals import MeanInterval
from vbon.prompts import Prompt

if TYPE_CHECKING:
    from service.runtime.prompt import PromptRequest, PromptResult

# Failures of an engine to answer one request.
AnswerFailure = EngineError | RequestTimeoutError
# Best-of-N of the reference policy, the live checkpoint, and the one that is being rolled out.
Arm = Literal["bon", "live", "next"]
BudgetKind = Literal["tokens", "money", "reward"]


@dataclass(frozen=True, slots=True)
class Budget:
    """A request's budget for each of its answers.

    Attributes:
        kind: ``tokens`` and ``money`` are the most that an answer may cost on average, and ``reward`` is
            the least that it must have on average.
    """

    kind: BudgetKind
    amount: float


@dataclass(frozen=True, slots=True)
class Wish:
    """One prompt of mode ``auto``, with what its request leaves open and what it asks for.

    Attributes:
        sampling: with the server's defaults filled in.
        chosen: names of the sampling parameters that the request itself sets.
        num_samples: N of best-of-N, where no measured setting answers.
        most_candidates: the most that may be drawn; ``None`` for no limit of the request's own.
        answers: how many candidates are returned.
    """

    prompt: Prompt
    sampling: Sampling
    chosen: frozenset[str] = frozenset()
    num_samples: int = 1
    most_candidates: int | None = None
    answers: int = 1
    budget: Budget | None = None


@dataclass(frozen=True, slots=True)
class Routing:
    """The arm of a rollout that answers a prompt, as answers report it.

    Attributes:
        share: share of the requests of mode ``auto`` that this arm gets at present.
        step: place of this share among those of the rollout, from 0; ``None`` unless the arm is ``next``.
        checkpoint: the checkpoint's id; ``None`` for best-of-N.
    """

    arm: Arm
    share: float
    step: int | None = None
    checkpoint: str | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """The measured figures of a setting, each with its 95% interval, per answer.

    Attributes:
        latency_p95_s: the 95th percentile, in the field ``mean``.
        money: at the server's prices; ``None`` without any.
    """

    reward: MeanInterval | None
    gold: MeanInterval | None
    win_rate: MeanInterval | None
    generated_tokens: MeanInterval
    latency_mean_s: MeanInterval | None
    latency_p95_s: MeanInterval | None
    money: float | None = None


@dataclass(frozen=True, slots=True)
class PriceRouting:
    """The measured setting that answers a prompt, as answers report it.

    Attributes:
        mode: of the setting, as a request could name it; ``auto`` is the mode of the request.
        why: a sentence.
        expected: ``None`` if no measured setting could be used.
        met: whether the budget is expected to be met; ``None`` without one.
        differs: sampling parameters of the request that differ from those that were measured.
        max_tokens: the most tokens of a candidate, before it is lowered to what fits.
    """

    mode: str
    policy: str
    n: int
    settings: Mapping[str, Any]
    why: str
    expected: Expected | None
    budget: Budget | None = None
    met: bool | None = None
    differs: tuple[str, ...] = ()
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """The mode, of name ``auto``, that answers a prompt, and why.

    Attributes:
        router: has chosen it.
        sampling: of this prompt; ``None`` for that of the request.
        num_samples: N of this prompt; ``None`` for that of the request.
        fell_back: whether it takes the place of an arm that failed, so that it tells nothing of that arm.
        on_failure: told of the error if this arm fails to answer; it returns at once and never raises.
    """

    mode: Mode
    routing: Routing | PriceRouting
    router: Router = field(repr=False)
    sampling: Sampling | None = None
    num_samples: int | None = None
    fell_back: bool = False
    on_failure: Callable[[PromptRequest, AnswerFailure], object] | None = None


class Router(Protocol):
    """Chooses how each prompt is answered; all methods return at once."""

    def route(self, wish: Wish) -> Route:
        """The route of a prompt now. The policy of its mode is served as long as nothing is awaited.

        Raises:
            InvalidInputError: the budget cannot be met.
            NotReadyError: there is a budget, and nothing measured can be used at present.
        """

    def fall_back(self, route: Route, wish: Wish) -> Route:
        """Another route in the place of one whose engine has died, or has failed to answer.

        Raises:
            InvalidInputError, NotReadyError: as :meth:`route`.
        """

    def answered(self, route: Route, request: PromptRequest, result: PromptResult) -> None:
        """Take note of an answer; never raises."""
