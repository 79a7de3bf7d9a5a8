"""The interface of the router, which chooses who answers a request of mode ``auto``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from service.runtime.modes import Mode
from vbon.errors import EngineError, RequestTimeoutError
from vbon.prompts import Prompt

if TYPE_CHECKING:
    from service.runtime.prompt import PromptRequest, PromptResult

# Failures of an engine to answer one request.
AnswerFailure = EngineError | RequestTimeoutError
# Best-of-N of the reference policy, the live checkpoint, and the one that is being rolled out.
Arm = Literal["bon", "live", "next"]


@dataclass(frozen=True, slots=True)
class Routing:
    """The arm that answers a prompt, as answers report it.

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
class Route:
    """The mode, of name ``auto``, that answers a prompt, and why.

    Attributes:
        fell_back: whether it takes the place of an arm that failed, so that it tells nothing of that arm.
        on_failure: told of the error if this arm fails to answer; it returns at once and never raises.
    """

    mode: Mode
    routing: Routing
    fell_back: bool = False
    on_failure: Callable[[PromptRequest, AnswerFailure], object] | None = None


class Router(Protocol):
    """Chooses the arm of each prompt; all methods return at once and never raise."""

    def route(self, prompt: Prompt) -> Route:
        """The arm of a prompt now. The policy of its mode is served as long as nothing is awaited."""

    def fall_back(self, route: Route) -> Route:
        """Best-of-N in the place of an arm whose engine has died, or has failed to answer."""

    def answered(self, route: Route, request: PromptRequest, result: PromptResult) -> None:
        """Take note of an answer, which may be compared with best-of-N afterwards."""
