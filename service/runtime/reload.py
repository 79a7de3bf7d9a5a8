"""Puts what a model's path holds now in the place of what is served, without failing a request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from service.runtime.batching_scorer import BatchingScorer
from service.runtime.runtime import Runtime
from vbon.concurrency import all_or_first_error
from vbon.engine import Engine
from vbon.errors import (
    BusyError,
    CheckpointError,
    EngineError,
    InvalidInputError,
    ReloadRefusedError,
    RewardError,
)

logger = logging.getLogger(__name__)


_Old = Engine | BatchingScorer


class ModelBuilder(Protocol):
    """Makes engines and scorers anew, from the configuration alone."""

    def engines(self, policy: str, serving: Mapping[str, Engine]) -> dict[str, Engine]:
        """New engines for a policy, and for those that must go with it, by policy; not started.

        Raises:
            CheckpointError: its path holds nothing that can be served.
        """

    def scorer(self, name: str) -> BatchingScorer:
        """A new ``reward`` or ``gold`` scorer, not started.

        Raises:
            CheckpointError: its path holds nothing that can score.
        """


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What a reload did.

    Attributes:
        models: what was replaced: an adapter goes with its base.
        load_s: until the new one was warm.
        drain_s: until nobody used the old one any more.
    """

    models: tuple[str, ...]
    before: str
    now: str
    load_s: float
    drain_s: float


class Reloader:
    """Reloads one model at a time.

    The new one is loaded and warmed up beside the old, requests that come from then on use it, those
    under way finish with the old, which then goes. So there must be room for both.
    """

    def __init__(self, runtime: Runtime, rebuild: ModelBuilder) -> None:
        self._runtime, self._rebuild = runtime, rebuild
        self._lock = asyncio.Lock()

    async def reload(self, model: str) -> ReloadResult:
        """Read a policy, ``reward`` or ``gold`` again from its configured path.

        Raises:
            InvalidInputError: there is no such model.
            ReloadRefusedError: what is there now cannot be served; the old one goes on.
            BusyError: another reload is under way.
        """
        runtime = self._runtime
        if model not in runtime.policies and model not in runtime.scorers:
            raise InvalidInputError(
                f"no model {model!r}; this server has {', '.join([*runtime.policies, *runtime.scorers])}",
                field="model",
            )
        if self._lock.locked():
            raise BusyError("another model is being reloaded; ask again when that is done")
        async with self._lock:
            # On its own: who has asked may leave, but what has begun must not stop half-way.
            return await asyncio.shield(asyncio.create_task(self._reload(model), name="reload"))

    async def _reload(self, model: str) -> ReloadResult:
        runtime, begun_s = self._runtime, perf_counter()
        before = _revision(runtime, model)
        replace = self._engines if model in runtime.policies else self._scorer
        try:
            old, new = await replace(model)
        except (CheckpointError, EngineError, RewardError, InvalidInputError) as error:
            logger.error("%s is not reloaded, the old one goes on: %s", model, error)
            raise ReloadRefusedError(
                f"{error}; what was served before goes on being served"
            ) from error
        loaded_s = perf_counter()
        for part in old:
            await runtime.in_flight.until_unused(part)
        for part in old:
            await part.stop()
        now = _revision(runtime, model)
        done = ReloadResult(new, before, now, loaded_s - begun_s, perf_counter() - loaded_s)
        logger.info("%s: %s in the place of %s", ", ".join(new), now, before)
        return done

    async def _engines(self, policy: str) -> tuple[list[_Old], tuple[str, ...]]:
        runtime = self._runtime
        new = await asyncio.to_thread(self._rebuild.engines, policy, runtime.policies)
        try:
            await all_or_first_error(engine.start() for engine in new.values())
        except BaseException:
            await asyncio.gather(*(engine.stop() for engine in new.values()))
            raise
        old: list[_Old] = [runtime.policies[name] for name in new]
        await runtime.adopt_engines(new)
        return old, tuple(new)

    async def _scorer(self, name: str) -> tuple[list[_Old], tuple[str, ...]]:
        runtime = self._runtime
        new = await asyncio.to_thread(self._rebuild.scorer, name)
        try:
            await new.start()
            await new.warm_up()
        except BaseException:
            await new.stop()
            raise
        old = runtime.scorers[name]
        await runtime.adopt_scorer(name, new)
        return [old], (name,)


def _revision(runtime: Runtime, model: str) -> str:
    if model in runtime.policies:
        return runtime.policies[model].info.revision
    return runtime.scorers[model].revision
