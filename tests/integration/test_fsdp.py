"""FSDP2 trains and exports what one process without it does: real commands, on a CPU with gloo.

With two processes each holds half of every weight, so the export must gather them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.train

from tests.integration.test_distributed import assert_same, run  # noqa: E402

FSDP = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


@pytest.mark.parametrize(("objective", "processes"), [("vbon", 1), ("bon-sft", 2)])
def test_fsdp_exports_what_one_process_trains(
    sandbox: Path, tmp_path: Path, objective: str, processes: int
) -> None:
    settings = {"steps": 2, "warm_start_steps": 0, "checkpoint_every": 1}
    run(sandbox, tmp_path / "alone", objective, **settings)
    launcher = [*FSDP, str(processes), "-m", "tests.fsdp_on_cpu"]
    log = run(sandbox, tmp_path / "sharded", objective, launcher=launcher, **settings)
    assert log.count("trained 2 steps") == 1
    assert_same(tmp_path / "sharded", tmp_path / "alone", sandbox)
