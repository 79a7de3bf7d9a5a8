"""A service of several processes without weights: ``python -m tests.workers_parts SETTINGS-AS-JSON``."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from service.observability.logs import set_up_logs
from service.runtime.batching_scorer import BatchingScorer
from service.runtime.runtime import Runtime
from service.settings import ServiceSettings
from service.workers.serve import serve_with_workers
from tests.unit.fakes import FakeReward
from vbon.engine import Engine
from vbon.engine.fake import FakeEngine
from vbon.errors import CheckpointError
from vbon.prompts import Prompt

DEADLY = "die"


class FragileEngine(FakeEngine):
    """A fake engine that the prompt :data:`DEADLY` kills, and that a path can keep from starting."""

    async def start(self) -> None:
        if self.info.path == "fake:broken":
            raise CheckpointError("fake:broken cannot be loaded")
        await super().start()

    async def encode(self, prompt: Prompt) -> list[int]:
        if prompt.text == DEADLY:
            await self.stop()
        return await super().encode(prompt)


def build(settings: ServiceSettings) -> Runtime:
    """Fake engines of 2 ms a token."""
    engines = {
        name: FragileEngine(path, max_model_len=4_096, seconds_per_token=0.002)
        for name, path in settings.policies.items()
    }
    return Runtime(settings, dict(engines), BatchingScorer(FakeReward()), None)


class Builder:
    """Builds the engines of a reload, whose answers differ from those before."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._reloads = 0

    def place(self, policy: str, path: str | None) -> None:
        raise NotImplementedError

    def engines(self, policy: str, serving: Mapping[str, Engine]) -> dict[str, Engine]:
        self._reloads += 1
        path = f"fake:reloaded-{self._reloads}"
        return {policy: FragileEngine(path, max_model_len=4_096, seconds_per_token=0.002)}

    def scorer(self, name: str) -> BatchingScorer:
        return BatchingScorer(FakeReward())


if __name__ == "__main__":
    chosen = ServiceSettings.model_validate_json(sys.argv[1])
    set_up_logs(chosen)
    sys.exit(serve_with_workers(chosen, build, Builder))
