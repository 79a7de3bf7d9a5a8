"""The row ``workers`` of ``vbon bench``, without its processes."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from service.bench import workers
from service.bench.load import LoadJob


@pytest.mark.parametrize(("requests", "sent"), [(1, [1]), (2, [1, 1]), (7, [3, 4])])
async def test_all_requests_are_sent(
    monkeypatch: pytest.MonkeyPatch, requests: int, sent: list[int]
) -> None:
    jobs: list[LoadJob] = []

    async def load(job: LoadJob) -> SimpleNamespace:
        jobs.append(job)
        return SimpleNamespace(requests_per_second=10.0 * len(job.bodies))

    monkeypatch.setattr(workers, "load_in_child", load)
    side = workers._Side(1, os.getpid(), "http://service")
    await side.measure(requests)
    assert sorted(len(job.bodies) for job in jobs) == sent
    assert side.per_second == [10.0 * requests]
    assert side.front_ms[0] >= 0
