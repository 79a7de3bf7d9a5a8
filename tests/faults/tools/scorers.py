"""Reward models that misbehave: ``--reward python:tests.faults.tools.scorers:NAME``."""

from __future__ import annotations

import time


def slow(prompts: list[str], completions: list[str]) -> list[float]:
    """A quarter of a second a batch, whatever its size."""
    del prompts
    time.sleep(0.25)
    return [float(len(completion)) for completion in completions]
