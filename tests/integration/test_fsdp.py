"""FSDP2 trains and exports what one process without it does: real commands, on a CPU with gloo.

With two processes each holds half of every weight, so the export must gather them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.train

from tests.integration.test_distributed import (  # noqa: E402
    ENVIRONMENT,
    ROOT,
    arguments,
    assert_same,
    run,
)

FSDP = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


@pytest.mark.parametrize(("objective", "processes"), [("vbon", 1), ("bon-sft", 2)])
def test_fsdp_exports_what_one_process_trains(
    sandbox: Path, tmp_path: Path, objective: str, processes: int
) -> None:
    settings = {"steps": 2, "warm_start_steps": 0, "checkpoint_every": 1}
    alone, sharded = tmp_path / "runs" / "alone", tmp_path / "runs" / "sharded"
    run(sandbox, alone, objective, **settings)
    given = arguments(sandbox, sharded, objective, **settings)
    done = subprocess.run(
        [sys.executable, *FSDP, str(processes), "-m", "tests.fsdp_on_cpu", *given],
        capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert (done.stdout + done.stderr).count("trained 2 steps") == 1
    assert_same(sharded, alone, sandbox)
