"""Two processes train as one does, and micro-batches as the whole batch: real commands, history compared.

Samples are drawn by (seed, step, prompt), so the runs differ by float32 rounding alone. On a CPU, with
gloo. torchrun starts one pair of processes; the other pairs are forks that have its environment, since three
interpreters spend ten seconds on imports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.train

from safetensors.torch import load_file  # noqa: E402

from service.bench.processes import free_port  # noqa: E402
from tests.commands import Fault, Running, running  # noqa: E402
from tests.tiny import train_config  # noqa: E402
from training.objectives import OBJECTIVES  # noqa: E402
from training.train.inputs import TrainingInputs  # noqa: E402
from training.train.resume import state_path  # noqa: E402
from training.train.run import train  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = [
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "training",
]
COMPARED = ("loss", "reward", "log_cdf", "kl_nats", "response_tokens", "grad_norm", "learning_rate")
COUNTED = ("step", "phase", "samples_drawn", "tokens_drawn", "sequences_trained")
# Of float32 in another order of summation; a share of prompts gone wrong is off by per cents.
TOLERANCE = {"rel": 2e-4, "abs": 2e-5}
CASES: dict[str, dict[str, Any]] = {
    "kl-rl": {"warm_start_steps": 1},
    "dpo": {"warm_start_steps": 0},
    "j-bond": {"warm_start_steps": 0},
    "wind": {"warm_start_steps": 0, "updates": 2},
}

# As many cached samples and prompts as a tiny sandbox has.
SETTINGS: dict[str, dict[str, Any]] = {
    "bon-aware-sft": {"num_samples": 2, "expert_samples": 8},
    "wind": {"updates": 2},
}


def arguments(sandbox: Path, out: Path, objective: str, **changes: Any) -> list[str]:
    """The command's arguments."""
    values = {
        "heldout": None,
        "steps": 3,
        "seed": 5,
        "learning_rate": 1e-3,
        **CASES.get(objective, {}),
        **changes,
    }
    config = train_config(sandbox, out, objective, **values)
    flags = ["--heldout", "none"]
    for name, value in config.model_dump(mode="json").items():
        if value is not None and not isinstance(value, bool):
            flags += [f"--{name.replace('_', '-')}", str(value)]
    return [objective, *flags]


@dataclass(frozen=True)
class Ranked:
    """What torchrun tells each of its processes."""

    rank: int
    of: int
    port: int

    def __call__(self) -> None:
        os.environ.update(
            RANK=str(self.rank), LOCAL_RANK=str(self.rank), GROUP_RANK="0", ROLE_RANK=str(self.rank),
            WORLD_SIZE=str(self.of), LOCAL_WORLD_SIZE=str(self.of), ROLE_WORLD_SIZE=str(self.of),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(self.port),
        )  # fmt: skip


@contextmanager
def started(
    sandbox: Path, out: Path, objective: str, processes: int, **changes: Any
) -> Iterator[list[Running]]:
    """The processes of a run; they are gone afterwards."""
    logs = out.parent.parent
    port = free_port()
    given = arguments(sandbox, out, objective, **changes)
    ranks: list[tuple[Fault, ...]] = [(Ranked(rank, processes, port),) for rank in range(processes)]
    with ExitStack() as stack:
        yield [
            stack.enter_context(running(logs, given, *faults))
            for faults in (ranks if processes > 1 else [()])
        ]


def run(sandbox: Path, out: Path, objective: str, processes: int = 1, **changes: Any) -> str:
    """Train; what was logged."""
    with started(sandbox, out, objective, processes, **changes) as commands:
        ends = [command.wait() for command in commands]
    assert None not in ends
    said = "".join(end.said for end in ends if end is not None)
    assert [end.code for end in ends if end is not None] == [0] * processes, said[-4000:]
    return said


def run_by_torchrun(sandbox: Path, out: Path, objective: str) -> str:
    """Train in two processes that torchrun starts; what was logged."""
    done = subprocess.run(
        [sys.executable, *TORCHRUN, *arguments(sandbox, out, objective)],
        capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def history(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def assert_same(ours: Path, theirs: Path, sandbox: Path) -> None:
    """Every step alike, and weights that moved from the reference to the same place."""
    rows, others = history(ours), history(theirs)
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert {k: row[k] for k in COUNTED} == {k: other[k] for k in COUNTED}
        for name in COMPARED:
            expected = (
                other[name] if other[name] is None else pytest.approx(other[name], **TOLERANCE)
            )
            assert row[name] == expected, (row["step"], name)
    reference, a, b = (
        load_file(d / "model.safetensors") for d in (sandbox / "policy", ours, theirs)
    )
    moved = sum(float((a[k] - reference[k]).square().sum()) for k in a) ** 0.5
    apart = sum(float((a[k] - b[k]).square().sum()) for k in a) ** 0.5
    assert apart < 0.01 * moved


@pytest.fixture(scope="module")
def alone(sandbox: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """An objective's checkpoint trained by one process; once each."""
    directory = tmp_path_factory.mktemp("alone")

    @cache
    def trained(objective: str) -> Path:
        run(sandbox, directory / "runs" / objective, objective)
        return directory / "runs" / objective

    return trained


@pytest.mark.parametrize("objective", CASES)
def test_two_processes_train_as_one(
    sandbox: Path, alone: Callable[[str], Path], tmp_path: Path, objective: str
) -> None:
    out = tmp_path / "run" / "two"
    if objective == "kl-rl":
        log = run_by_torchrun(sandbox, out, objective)
    else:
        log = run(sandbox, out, objective, processes=2)
    assert_same(out, alone(objective), sandbox)
    assert (
        log.count("trained 3 steps") + log.count("trained 4 steps") == 1
    )  # the main process alone
    assert [path.name for path in out.parent.iterdir()] == ["two"]
    assert {p.name for p in out.iterdir()} == {p.name for p in alone(objective).iterdir()}


@pytest.fixture(scope="module")
def inputs(sandbox: Path) -> TrainingInputs:
    return TrainingInputs(train_config(sandbox, sandbox / "unused"), 0, 0, 0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_micro_batches_train_as_the_whole_batch(
    sandbox: Path, inputs: TrainingInputs, tmp_path: Path, objective: str
) -> None:
    settings = {"warm_start_steps": 1, "steps": 2, "heldout": None, "learning_rate": 1e-3}
    for out, size in ((tmp_path / "whole", 64), (tmp_path / "parts", 6)):
        more = SETTINGS.get(objective, {}) | {"micro_batch_size": size}
        train(objective, train_config(sandbox, out, objective, **settings, **more), inputs)
    assert_same(tmp_path / "parts", tmp_path / "whole", sandbox)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("objective", ["j-bond"])
def test_a_killed_run_of_two_resumes(
    sandbox: Path, alone: Callable[[str], Path], tmp_path: Path, objective: str, processes: int
) -> None:
    """kill -9 of both processes once a state is there; then on with one, or two."""
    out = tmp_path / "run" / "killed"
    with started(sandbox, out, objective, 2, checkpoint_every=1) as commands:
        deadline = time.monotonic() + 200
        while not list(state_path(out).glob("step-*")):
            assert all(command.process.exitcode is None for command in commands)
            assert time.monotonic() < deadline
            time.sleep(0.002)
        for command in commands:
            command.kill()
    assert not out.exists()
    log = run(sandbox, out, objective, processes, checkpoint_every=1)
    assert log.count("resuming after step") == 1
    assert_same(out, alone(objective), sandbox)
