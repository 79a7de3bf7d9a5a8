"""The values that pass between front ends and replicas, and the failures of calls through Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayActorError, RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import RayServeException

from service.observability.withheld import without_text
from vbon.engine.protocol import FinishReason, ModelInfo
from vbon.errors import EngineDeadError, EngineError, RewardDeadError, RewardError, VbonError


@dataclass(frozen=True, slots=True)
class Failure:
    """The error of a call, sent as a value because Ray wraps exceptions in its own and logs their texts."""

    error: VbonError


@dataclass(frozen=True, slots=True)
class PolicyDescription:
    """The facts about a policy that its replicas have in common."""

    info: ModelInfo
    finds_calls: bool


@dataclass(frozen=True, slots=True)
class Growth:
    """The part of a streamed sample that is new since the last one."""

    text: str
    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...] | None
    finish_reason: FinishReason | None


@contextmanager
def engine_failures(owner: str) -> Any:
    """Translate the failures of a call to a policy's replica.

    Raises:
        EngineDeadError: the replica has died, or Serve has none.
        EngineError: the call failed otherwise.
    """
    with _translated(owner, EngineDeadError, EngineError):
        yield


@contextmanager
def reward_failures(owner: str) -> Any:
    """Translate the failures of a call to a reward model's replica, as :func:`engine_failures`."""
    with _translated(owner, RewardDeadError, RewardError):
        yield


@contextmanager
def _translated(owner: str, dead: type[VbonError], failed: type[VbonError]) -> Any:
    try:
        yield
    except VbonError:
        raise
    except RayActorError as error:
        raise dead(f"the replica of {owner} that did this has died") from error
    except (TaskCancelledError, asyncio.CancelledError) as error:
        # Ray lets a cancellation of the replica's own task look like one of the caller's.
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
            raise
        raise dead(f"the replica of {owner} that did this is being stopped") from error
    except (RayError, RayServeException) as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        raise failed(f"{owner} failed: {type(cause).__name__}") from without_text(error)


def called(method: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a method of a handle as a call of its own, and return Serve's response.

    Serve gives all calls that an HTTP request and its tasks make the identity of that request, but its router
    places only one call with the same identity at a time, and the others wait for ever.
    """
    return Context().run(method.remote, *args, **kwargs)


async def unwrapped(response: Any) -> Any:
    """The value of a call; raises the error that it sent."""
    try:
        value = await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    if isinstance(value, Failure):
        raise value.error
    return value


async def unwrapped_all(response: Any) -> AsyncGenerator[Any, None]:
    """The values that a call yields; raises the error that it sent. Leaving early cancels the call."""
    ended = False
    try:
        async for value in response:
            if isinstance(value, Failure):
                raise value.error
            yield value
        ended = True
    finally:
        if not ended:
            response.cancel()


Trace = Mapping[str, str]
