"""Fixtures shared by all tests."""

from __future__ import annotations

import os

# Tests must not reach for a model hub, whatever the machine's network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
from hypothesis import settings

# Timings are never asserted, on a machine that may be doing something else.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny sandbox, made once a session by the project's own command."""
    pytest.importorskip("torch")
    from tests.tiny import build_tiny_sandbox

    return build_tiny_sandbox(tmp_path_factory.mktemp("sandbox"))


@pytest.fixture(scope="session")
def vbon_checkpoint(sandbox: Path) -> Path:
    from tests.tiny import train_tiny_vbon

    return train_tiny_vbon(sandbox)
