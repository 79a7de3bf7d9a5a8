"""Replaces a served model by what its path holds now, without interrupting requests."""

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
    InvalidInputError,
    ReloadRefusedError,
    VbonError,
)
from vbon.threads import in_own_thread

logger = logging.getLogger(__name__)

_Replaced = Engine | BatchingScorer


class ModelBuilder(Protocol):
    """Builds new engines and scorers from the configuration."""

    def place(self, policy: str, path: str | None) -> None:
        """Build this policy from this path from now on; ``None`` forgets the policy."""

    def engines(self, policy: str, serving: Mapping[str, Engine]) -> dict[str, Engine]:
        """New engines for a policy and for the policies that must be replaced with it; not started.

        Raises:
            CheckpointError: the policy's path does not hold a model that can be served.
        """

    def scorer(self, name: str) -> BatchingScorer:
        """A new ``reward`` or ``gold`` scorer, not started.

        Raises:
            CheckpointError: the configured path does not hold a reward model.
        """


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """The outcome of a reload.

    Attributes:
        models: names of the models replaced; a base model's adapters are replaced with it.
        before, now: revisions of the old and the new model.
        load_s: seconds to load and warm up the new model.
        drain_s: seconds from then until no request used the old model and it was stopped.
    """

    models: tuple[str, ...]
    before: str
    now: str
    load_s: float
    drain_s: float


class Reloader:
    """Reloads one model at a time.

    The new model is loaded and warmed up beside the old one, so there must be memory for both. From then
    on new requests use it. The old model is stopped once the requests that use it have finished.
    """

    def __init__(self, runtime: Runtime, rebuild: ModelBuilder) -> None:
        self._runtime, self._rebuild = runtime, rebuild
        self._lock = asyncio.Lock()

    async def reload(self, model: str) -> ReloadResult:
        """Load a policy, ``reward`` or ``gold`` again from its configured path.

        Raises:
            InvalidInputError: the server has no model of this name.
            ReloadRefusedError: the new model cannot be served; the old one stays.
            BusyError: another reload is running.
        """
        runtime = self._runtime
        if model not in runtime.policies and model not in runtime.scorers:
            known = ", ".join([*runtime.policies, *runtime.scorers])
            raise InvalidInputError(
                f"unknown model {model!r}; this server has {known}", field="model"
            )
        if self._lock.locked():
            raise BusyError("another model is being reloaded; try again when that has finished")
        async with self._lock:
            # A separate, shielded task: a client that disconnects must not interrupt a reload half-way.
            return await asyncio.shield(asyncio.create_task(self._reload(model), name="reload"))

    async def _reload(self, model: str) -> ReloadResult:
        runtime, begun_s = self._runtime, perf_counter()
        before = _revision(runtime, model)
        replace = self._replace_engines if model in runtime.policies else self._replace_scorer
        try:
            old, new = await replace(model)
        except Exception as error:  # its files, and the code that reads them, may do anything
            why = why_not_loaded(error)
            logger.error("%s was not reloaded and the old one stays: %s", model, why)
            raise ReloadRefusedError(f"{why}; the model served before stays in use") from error
        loaded_s = perf_counter()
        for part in old:
            await runtime.in_flight.until_unused(part)
        for part in old:
            await part.stop()
        now = _revision(runtime, model)
        done = ReloadResult(new, before, now, loaded_s - begun_s, perf_counter() - loaded_s)
        logger.info("%s: replaced %s by %s", ", ".join(new), before, now)
        return done

    async def _replace_engines(self, policy: str) -> tuple[list[_Replaced], tuple[str, ...]]:
        runtime = self._runtime
        new = await in_own_thread("build-engines", self._rebuild.engines, policy, runtime.policies)
        try:
            await all_or_first_error(engine.start() for engine in new.values())
        except BaseException:
            await asyncio.gather(*(engine.stop() for engine in new.values()))
            raise
        old: list[_Replaced] = [runtime.policies[name] for name in new]
        await runtime.adopt_engines(new)
        return old, tuple(new)

    async def _replace_scorer(self, name: str) -> tuple[list[_Replaced], tuple[str, ...]]:
        runtime = self._runtime
        new = await in_own_thread("build-scorer", self._rebuild.scorer, name)
        try:
            await new.start()
            await new.warm_up()
        except BaseException:
            await new.stop()
            raise
        old = runtime.scorers[name]
        await runtime.adopt_scorer(name, new)
        return [old], (name,)


def why_not_loaded(error: Exception) -> str:
    """The reason for which a model could not be loaded; an error that is not ours is also logged."""
    if isinstance(error, VbonError):
        return str(error)
    logger.error("unexpected error while loading a model", exc_info=error)
    return f"loading it raised {type(error).__name__}: {error}"


def _revision(runtime: Runtime, model: str) -> str:
    if model in runtime.policies:
        return runtime.policies[model].info.revision
    return runtime.scorers[model].revision
