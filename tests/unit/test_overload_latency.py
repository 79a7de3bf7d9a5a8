"""Latencies of admitted requests at ten times the capacity, by queue size, on a virtual clock."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from service.admission.admission import Admission
from tests.unit.virtual_clock import run_virtually
from vbon.errors import OverloadedError

RUNNING, HOLD_S, REQUESTS = 64, 1.0, 20_000
SIZES = (1, 1, 1, 4, 16)  # sequences; their mean is 4.6


async def latencies(waiting: int) -> tuple[np.ndarray, int]:
    """Latencies of admitted requests at ten times the capacity of 64 places, and how many were rejected."""
    loop, chance = asyncio.get_running_loop(), random.Random(0)
    admission = Admission(running=RUNNING, waiting=waiting)
    admitted: list[float] = []
    refused = 0

    async def ask(sequences: int) -> None:
        nonlocal refused
        arrived = loop.time()
        try:
            async with admission.enter(sequences):
                await asyncio.sleep(HOLD_S * chance.uniform(0.5, 1.0))
            admitted.append(loop.time() - arrived)
        except OverloadedError:
            refused += 1

    served_per_s = RUNNING / (np.mean(SIZES) * 0.75 * HOLD_S)
    async with asyncio.TaskGroup() as clients:
        for _ in range(REQUESTS):
            await asyncio.sleep(chance.expovariate(10 * served_per_s))
            clients.create_task(ask(chance.choice(SIZES)))
    assert (admission.running, admission.waiting) == (0, 0)
    return np.array(admitted), refused


@pytest.mark.parametrize(("waiting", "most"), [(0, 1.0), (RUNNING // 2, 2.0)])
def test_a_queue_of_half_the_places_keeps_the_p99_within_twice_the_unloaded(
    waiting: int, most: float
) -> None:
    found, refused = run_virtually(latencies(waiting))
    assert np.percentile(found, 99) <= most * HOLD_S
    assert refused > REQUESTS / 2
    assert len(found) + refused == REQUESTS


def test_a_queue_of_four_times_the_places_does_not() -> None:
    found, _ = run_virtually(latencies(4 * RUNNING))
    assert np.percentile(found, 99) > 3 * HOLD_S
