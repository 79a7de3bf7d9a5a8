"""The engines of the live checkpoint and of the one that is rolled out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from service.distil.alike import check_context
from service.runtime.reload import ModelBuilder, why_not_loaded
from service.runtime.runtime import Runtime
from service.settings import REFERENCE
from vbon.engine import Engine
from vbon.errors import CheckpointError, VbonError
from vbon.threads import in_own_thread

logger = logging.getLogger(__name__)


class NotLoadedError(VbonError):
    """A checkpoint cannot be served; the message says why."""

    def __init__(self, checkpoint: str, message: str) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


@dataclass(frozen=True, slots=True)
class Wanted:
    """A checkpoint to serve, and the revision that its directory must still hold."""

    id: str
    path: str
    revision: str


class ServedCheckpoints:
    """Makes the runtime serve the wanted checkpoints under two names, with an engine each.

    Args:
        names: of the policies of the live checkpoint and of the one that is rolled out.
        wanted: returns the checkpoints to serve now, by these names.
    """

    def __init__(
        self,
        runtime: Runtime,
        builder: ModelBuilder,
        names: tuple[str, str],
        wanted: Callable[[], dict[str, Wanted]],
    ) -> None:
        self._runtime, self._builder, self._names, self._wanted = runtime, builder, names, wanted
        self._served: dict[str, Wanted] = {}
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def names(self) -> dict[str, str]:
        """The policy under which each loaded checkpoint is served, by its id."""
        return {one.id: name for name, one in self._served.items()}

    @property
    def alive(self) -> set[str]:
        """Ids of the checkpoints that can answer now, with the files that were submitted."""
        policies = self._runtime.policies
        return {
            one.id
            for name, one in self._served.items()
            # A restart of an engine reads its files again.
            if policies[name].alive and policies[name].info.revision == one.revision
        }

    async def follow(self) -> None:
        """Rename, end and load engines until they are the wanted ones.

        Raises:
            NotLoadedError: a wanted checkpoint cannot be served; everything else has been done.
        """
        live, following = self._names
        for name, other in ((live, following), (following, live)):
            wanted, found = self._wanted().get(name), self._served.get(other)
            if wanted is not None and found is not None and wanted.id == found.id:
                await self._rename(other, name)
        for name in self._names:
            found = self._served.get(name)
            if found is not None and found.id != self._id_of(name):
                await self._leave(name)
        for name in self._names:
            wanted = self._wanted().get(name)
            if wanted is not None and name not in self._served:
                # A place in memory must be free first.
                await asyncio.gather(*self._ending)
                await self._load(name, wanted)

    async def stop(self) -> None:
        """Stop waiting for requests that use engines which have left, and stop these engines."""
        for task in self._ending:
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _id_of(self, name: str) -> str | None:
        wanted = self._wanted().get(name)
        return None if wanted is None else wanted.id

    async def _rename(self, policy: str, name: str) -> None:
        moved = self._served.pop(policy)
        self._served[name] = moved
        self._builder.place(policy, None)
        self._builder.place(name, moved.path)
        replaced = await self._runtime.rename(policy, name)
        if replaced is not None:
            self._end(replaced)

    async def _leave(self, name: str) -> None:
        del self._served[name]
        self._builder.place(name, None)
        self._end(await self._runtime.leave(name))

    def _end(self, engine: Engine) -> None:
        task = asyncio.create_task(self._end_when_unused(engine), name="end-checkpoint")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end_when_unused(self, engine: Engine) -> None:
        try:
            await self._runtime.in_flight.until_unused(engine)
        finally:
            await engine.stop()

    async def _load(self, name: str, wanted: Wanted) -> None:
        """Load a checkpoint and serve it, if it is still wanted by then."""
        engine: Engine | None = None
        try:
            self._builder.place(name, wanted.path)
            built = await in_own_thread(
                "build-engines", self._builder.engines, name, self._runtime.policies
            )
            engine = built[name]
            _check_revision(engine, wanted)
            await engine.start()
            _check_revision(engine, wanted)
            check_context(engine.info, self._runtime.policies[REFERENCE].info)
        except BaseException as error:
            self._builder.place(name, None)
            if engine is not None:
                await engine.stop()
            if isinstance(
                error, Exception
            ):  # its files, and the code that reads them, may do anything
                raise NotLoadedError(wanted.id, why_not_loaded(error)) from error
            raise
        if self._id_of(name) != wanted.id:
            self._builder.place(name, None)
            await engine.stop()
            return
        self._runtime.join(name, engine)
        self._served[name] = wanted
        logger.info("checkpoint %s is served as %s", wanted.id, name)


def _check_revision(engine: Engine, wanted: Wanted) -> None:
    if engine.info.revision != wanted.revision:
        raise CheckpointError(
            f"the files of {wanted.path} have changed since checkpoint {wanted.id} was submitted: they are "
            f"{engine.info.revision} now, and were {wanted.revision}; put the old ones back"
        )
