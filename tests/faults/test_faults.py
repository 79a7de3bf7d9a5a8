"""Every fault in its short form; ``python -m tests.faults`` runs them in full."""

from __future__ import annotations

import pytest

from tests.faults.catalogue import faults, in_full_only, load
from tests.faults.stage import Stage

pytestmark = [pytest.mark.vllm, pytest.mark.train]


@pytest.mark.parametrize("name", [name for name in faults() if not in_full_only(name)])
async def test_the_promise_holds(name: str, stage: Stage) -> None:
    module = load(name)
    for needed in getattr(module, "NEEDS", ()):
        pytest.importorskip(needed)
    tally = await module.inject(stage)
    assert tally.asked > 0
    assert not tally.broken(), tally
