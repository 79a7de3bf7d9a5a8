"""The models that the parent has for its workers: those that do not run on other servers."""

from __future__ import annotations

import asyncio

from service.runtime.runtime import Runtime
from service.runtime.served_scorer import ServedScorer
from service.runtime.supervisor import RestartablePart, Supervisor
from vbon.engine import Engine
from vbon.engine.remote.server import is_remote


class LocalModels:
    """Engines and scorers of this machine, started, supervised and stopped together.

    Models at URLs are left to the workers, each of which asks their servers itself.
    """

    def __init__(self, runtime: Runtime) -> None:
        settings = runtime.settings
        self.engines: dict[str, Engine] = {
            name: engine
            for name, engine in runtime.policies.items()
            if not is_remote(settings.policies[name])
        }
        paths = {"reward": settings.reward, "gold": settings.gold}
        self.scorers: dict[str, ServedScorer] = {
            name: scorer
            for name, scorer in runtime.scorers.items()
            if not is_remote(paths[name] or "")
        }
        parts: dict[str, RestartablePart] = {**self.engines, **self.scorers}
        self._supervisor = Supervisor(
            parts,
            backoff_s=settings.restarts.backoff_s,
            max_backoff_s=settings.restarts.max_backoff_s,
            on_recovered=runtime.metrics.recovered,
        )

    async def start(self) -> None:
        """Load and warm up all models, and supervise them from then on."""
        await asyncio.gather(
            *(scorer.start() for scorer in self.scorers.values()),
            *(engine.start() for engine in self.engines.values()),
        )
        for scorer in self.scorers.values():
            await scorer.warm_up()
        self._supervisor.start()

    async def stop(self) -> None:
        """Stop supervision, then the engines, then the scorers."""
        await self._supervisor.stop()
        await asyncio.gather(*(engine.stop() for engine in self.engines.values()))
        for scorer in self.scorers.values():
            await scorer.stop()
