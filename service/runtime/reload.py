"""Replaces a served model by what its path holds now, without interrupting requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, Protocol

from service.runtime.runtime import Runtime
from service.runtime.served_scorer import ServedScorer
from vbon.concurrency import all_or_first_error
from vbon.engine import Engine
from vbon.errors import (
    BusyError,
    EngineDeadError,
    InvalidInputError,
    NotReadyError,
    ReloadRefusedError,
    VbonError,
)
from vbon.storage.weights_alone import WITHOUT_IN_PLACE
from vbon.threads import in_own_thread

logger = logging.getLogger(__name__)

_Replaced = Engine | ServedScorer

# What becomes of the requests in flight while weights are changed in place.
InFlight = Literal["finish", "keep"]


class ModelBuilder(Protocol):
    """Builds new engines and scorers from the configuration."""

    def place(self, policy: str, path: str | None) -> None:
        """Build this policy from this path from now on; ``None`` forgets the policy."""

    def engines(self, policy: str, serving: Mapping[str, Engine]) -> dict[str, Engine]:
        """New engines for a policy and for the policies that must be replaced with it; not started.

        Raises:
            CheckpointError: the policy's path does not hold a model that can be served.
        """

    def scorer(self, name: str) -> ServedScorer:
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
        load_s: seconds to load and warm up the new model; in place, to check its files.
        drain_s: seconds from then until no request used the old model and it was stopped; in place, until the
            requests in flight had finished and the new weights were in use. New requests waited that long.
        in_place: whether the weights were changed in the running engine.
    """

    models: tuple[str, ...]
    before: str
    now: str
    load_s: float
    drain_s: float
    in_place: bool = False


class Reloads(Protocol):
    """Reloads models, of this process or of another one."""

    async def reload(
        self,
        model: str,
        *,
        in_place: bool = False,
        in_flight: InFlight = "finish",
        limit_s: float | None = None,
    ) -> ReloadResult:
        """Load a model again, as :meth:`Reloader.reload`."""


class Reloader:
    """Reloads one model at a time.

    The new model is loaded and warmed up beside the old one, so there must be memory for both. From then
    on new requests use it. The old model is stopped once the requests that use it have finished. In place,
    new weights are loaded into the running engine of a policy instead.

    Args:
        loaded: tells whether all models are loaded; by default as the runtime says.
    """

    def __init__(
        self,
        runtime: Runtime,
        rebuild: ModelBuilder,
        *,
        loaded: Callable[[], bool] | None = None,
    ) -> None:
        self._runtime, self._rebuild = runtime, rebuild
        self._loaded = loaded or (lambda: runtime.loaded)
        self._lock = asyncio.Lock()

    async def reload(
        self,
        model: str,
        *,
        in_place: bool = False,
        in_flight: InFlight = "finish",
        limit_s: float | None = None,
    ) -> ReloadResult:
        """Load a policy, ``reward`` or ``gold`` again from its configured path.

        Args:
            in_place: whether to change the weights of the running engine. An adapter is always replaced
                within its engine, which has room for both.
            in_flight: what becomes of the requests in flight then. They finish with the old weights while new
                ones wait, or are kept and go on with the new weights.
            limit_s: how long to wait for those that finish; by default ``limits.drain_s``.

        Raises:
            InvalidInputError: the server has no model of this name, or one that is a reward model, or it is a
                checkpoint that is rolled out.
            ReloadRefusedError: the new model cannot be served, or not in place; the old one stays.
            BusyError: another reload is running.
            NotReadyError: the models are loading, or the requests in flight did not finish in time; the old
                weights stay.
            EngineDeadError: the engine is dead, or its old weights could not be put back.
        """
        runtime = self._runtime
        if model not in runtime.policies and model not in runtime.scorers:
            known = ", ".join([*runtime.policies, *runtime.scorers])
            raise InvalidInputError(
                f"unknown model {model!r}; this server has {known}", field="model"
            )
        if model in runtime.settings.distil.policies:
            raise InvalidInputError(
                f"{model} is a checkpoint that is rolled out, and checkpoints never change; submit another "
                "one at /distil/checkpoints",
                field="model",
            )
        if not self._loaded():  # its start would fail, or begin supervision of a part a second time
            raise NotReadyError(
                "models are loading, or the service is stopping; try again when it is ready"
            )
        if self._lock.locked():
            raise BusyError("another model is being reloaded; try again when that has finished")
        # A separate, shielded task: a client that disconnects must not interrupt a reload half-way, nor let
        # another one begin beside it.
        await self._lock.acquire()
        if in_place and not self._is_adapter(model):
            limit = self._runtime.settings.limits.drain_s if limit_s is None else limit_s
            reloading = self._change_weights(model, in_flight, limit)
        else:
            reloading = self._reload(model)
        task = asyncio.create_task(reloading, name="reload")
        task.add_done_callback(lambda _: self._lock.release())
        return await asyncio.shield(task)

    def _is_adapter(self, model: str) -> bool:
        return model in self._runtime.policies and self._runtime.policies[model].info.adapter

    async def _change_weights(
        self, policy: str, in_flight: InFlight, limit_s: float
    ) -> ReloadResult:
        runtime, begun_s = self._runtime, perf_counter()
        engine = runtime.policies.get(policy)
        if engine is None:
            raise InvalidInputError(
                f"{policy} is a reward model, and only policies can be changed in place; "
                f"{WITHOUT_IN_PLACE}",
                field="in_place",
            )
        if not engine.alive:
            raise EngineDeadError(f"the engine of {policy} has died: {engine.trouble}")
        before, keep = engine.info.revision, in_flight == "keep"
        try:
            new = await engine.check_weights(engine.info.path)
            checked_s = perf_counter()
            async with nullcontext() if keep else runtime.in_flight.quiet(engine, limit_s):
                await engine.change_weights(new, keep_requests=keep)
        except (EngineDeadError, NotReadyError, ReloadRefusedError) as error:
            logger.error("the weights of %s were not changed: %s", policy, error)
            raise
        except Exception as error:  # its files, and the code that reads them, may do anything
            why = why_not_loaded(error)
            logger.error("%s was not changed in place and the old weights stay: %s", policy, why)
            raise ReloadRefusedError(f"{why}; the weights served before stay in use") from error
        now = engine.info.revision
        done = ReloadResult(
            (policy,), before, now, checked_s - begun_s, perf_counter() - checked_s, in_place=True
        )
        logger.info("%s: changed %s to %s in place", policy, before, now)
        return done

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
