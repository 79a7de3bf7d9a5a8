"""The command ``vbon bench reward``."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING, Any

import typer

from vbon.cli.settings_command import add_settings_command
from vbon.config import Settings

if TYPE_CHECKING:
    from service.bench.rewards.config import RewardBenchSettings

DISAGREE = 3
ENDED = 143  # as a shell reports SIGTERM

app = typer.Typer(add_completion=False)


@app.callback()
def _group() -> None:
    """Hold the one command below."""


def _settings() -> type[Settings]:
    from service.bench.rewards.config import RewardBenchSettings

    return RewardBenchSettings


def _run(settings: RewardBenchSettings) -> int:
    logging.basicConfig(level="WARNING", format="%(levelname)s %(message)s")
    from service.bench.rewards.run import run_reward_bench

    async def ended_by_signals() -> dict[str, Any]:
        # Python would die of SIGTERM at once, and leave `vllm serve` behind.
        bench = asyncio.ensure_future(run_reward_bench(settings))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, bench.cancel)
        return await bench

    try:
        result = asyncio.run(ended_by_signals())
    except asyncio.CancelledError:
        return ENDED
    return 0 if all(found["agree"] for found in result["agreement"]) else DISAGREE


add_settings_command(
    app,
    "reward",
    "Measure reward texts scored per second: our worker against vLLM's pooling runner.",
    _settings,
    _run,
)
