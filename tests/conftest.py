"""Fixtures shared by all tests."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
import sys
from pathlib import Path

# Tests must not reach for a model hub, whatever the machine's network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The models of the tests are tiny: threads of the maths libraries only get in each other's way, most of all
# beside another worker or on a busy machine. This must come before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# A shell has background jobs ignore Ctrl-C, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from tests.worker_groups import GroupScheduling, check_groups, place_in_order

if TYPE_CHECKING:
    from tests.faults.stage import Stage

# Every process of the tests would otherwise compile each module that it imports: half a second of CPU time
# for a command, and four for a process that runs tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

OURS = ("service", "tests", "training", "vbon")

# Test files import torch, transformers and many others, all of which last. The garbage collector would look
# through their millions of objects again and again: half of the CPU time of a collection of tests. It is on
# again before the first test (pytest_collection_finish).
gc.disable()

# Processes that tests start begin with tests/startup/sitecustomize.py.
STARTUP = str(Path(__file__).parent / "startup")
_paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
os.environ["PYTHONPATH"] = os.pathsep.join([STARTUP, *(path for path in _paths if path != STARTUP)])

# Timings are never asserted, on a machine that may be doing something else. The examples are the same in
# every run, so that a failure is that of the change it follows; .github/workflows/examples.yml tries others.
settings.register_profile("same-examples", deadline=None, derandomize=True)
settings.register_profile("new-examples", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile("same-examples")


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest first, and refuse a test that would start another worker's engines again."""
    check_groups(items)
    items.sort(key=lambda item: place_in_order(item.nodeid))


def pytest_collection_finish() -> None:
    """Prepare for the tests themselves, after the imports.

    The garbage collector works again, on what the tests make and no longer on what was imported.
    """
    gc.freeze()
    atexit.register(gc.unfreeze)  # or triton takes what is left at the end for leaks
    gc.enable()
    # pytest would add its handlers to some 60 loggers of torch and others that do not propagate, six times
    # a test: a millisecond of each of 4,000 tests. This way they get their records from the root.
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and not name.startswith(OURS):
            logger.propagate = True


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    """Keep tests that share an engine in one worker."""
    return GroupScheduling(config, log)


SIZE_IN_CI = 0.02  # of faults


@pytest.fixture(scope="session")
async def stage(
    sandbox: Path, vbon_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Stage, None]:
    """The stage of the faults; the browser tests use its real service too, started once a session."""
    pytest.importorskip("vllm")
    from tests.faults.stage import Stage
    from tests.forks import ForkedService

    found = Stage(sandbox, tmp_path_factory.mktemp("faults"), SIZE_IN_CI, ForkedService)
    try:
        yield found
    finally:
        await found.close()
