"""One stage for all faults of a test session."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("vllm")

from tests.faults.stage import Stage

SIZE_IN_CI = 0.02


@pytest.fixture(scope="session")
async def stage(
    sandbox: Path, vbon_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Stage, None]:
    found = Stage(sandbox, tmp_path_factory.mktemp("faults"), SIZE_IN_CI)
    try:
        yield found
    finally:
        await found.close()
