"""The models that the parent has for its workers: those that do not run on other servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

from service.runtime.runtime import Runtime
from service.runtime.served_scorer import ServedScorer
from vbon.engine import Engine
from vbon.engine.remote.server import is_remote


class LocalModels:
    """Engines and scorers of this machine, started, supervised and stopped together.

    Models at URLs are left to the workers, each of which asks their servers itself. A reload replaces the
    runtime's models, so they are looked up each time.

    Attributes:
        engines: by the name of their policy, as they are at each time.
        loaded: true from the end of the start to the beginning of the stop.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.engines = _LocalEngines(runtime)
        self.loaded = False
        for name in list(runtime.supervisor.supervised):
            if name not in self.engines and name not in self.scorers:
                del runtime.supervisor.supervised[name]

    @property
    def scorers(self) -> dict[str, ServedScorer]:
        """The reward models, by ``reward`` and ``gold``, as they are now."""
        settings = self._runtime.settings
        paths = {"reward": settings.reward, "gold": settings.gold}
        return {
            name: scorer
            for name, scorer in self._runtime.scorers.items()
            if not is_remote(paths[name] or "")
        }

    async def start(self) -> None:
        """Load and warm up all models, and supervise them from then on."""
        scorers = self.scorers
        await asyncio.gather(
            *(scorer.start() for scorer in scorers.values()),
            *(engine.start() for engine in self.engines.values()),
        )
        for scorer in scorers.values():
            await scorer.warm_up()
        self._runtime.supervisor.start()
        self.loaded = True

    async def stop(self) -> None:
        """Stop supervision, then the engines, then the scorers."""
        self.loaded = False
        await self._runtime.supervisor.stop()
        await asyncio.gather(*(engine.stop() for engine in self.engines.values()))
        for scorer in self.scorers.values():
            await scorer.stop()


class _LocalEngines(Mapping[str, Engine]):
    """The engines that a runtime has now, without those at URLs."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def __getitem__(self, policy: str) -> Engine:
        if is_remote(self._runtime.settings.policies[policy]):
            raise KeyError(policy)
        return self._runtime.policies[policy]

    def __iter__(self) -> Iterator[str]:
        paths = self._runtime.settings.policies
        return (name for name in self._runtime.policies if not is_remote(paths[name]))

    def __len__(self) -> int:
        return sum(1 for _ in self)
