"""Every fault in its short form; ``python -m tests.faults`` runs them in full."""

from __future__ import annotations

import pytest

from tests.faults.catalogue import faults, load
from tests.faults.stage import Stage

pytestmark = [pytest.mark.vllm, pytest.mark.train]


@pytest.mark.parametrize("name", faults())
async def test_the_promise_holds(name: str, stage: Stage) -> None:
    module = load(name)
    for needed in getattr(module, "NEEDS", ()):
        pytest.importorskip(needed)
    tally = await module.inject(stage)
    assert tally.asked > 0
    assert not tally.broken(), tally
