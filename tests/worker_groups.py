"""The groups of tests that pytest-xdist keeps in one worker, which starts the engine they share once.

xdist's own `--dist loadgroup` does nothing under pytest 9.2, whose node ids can no longer be changed.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# Session fixtures that start engines, and the group of the tests that use them.
GROUPS = {
    "runtime": "engines",
    "vllm_ref": "engines",
    "vllm_over_http": "engines",
    "vllm_server": "engines",
    "generator": "generator",
    "stage": "service",
    "fleet": "fleet",
    "ray_engine": "fleet",
    "ray_scorer": "fleet",
}
FILES = {
    "tests/integration/test_bench_client.py": "engines",
    "tests/integration/test_clients_vllm.py": "engines",
    "tests/integration/test_dashboard_vllm.py": "engines",
    "tests/integration/test_distributed.py": "distributed",  # its tests share what it trains
    "tests/integration/test_engine_contract.py": "engines",
    "tests/integration/test_fleet.py": "fleet",
    "tests/integration/test_reward_server_vllm.py": "engines",
    "tests/integration/test_rollout_vllm.py": "engines",
    "tests/integration/test_service_vllm.py": "engines",
    "tests/integration/test_tune_vllm.py": "engines",
    "tests/integration/test_vllm_server.py": "engines",
    "tests/integration/test_workers.py": "workers",  # its tests share one service
    "tests/integration/test_weights_in_place_vllm.py": "engines",
    "tests/integration/test_vllm_generation.py": "generator",
    "tests/faults/test_faults.py": "service",
}
# Long faults that start services of their own and use none of the stage's.
APART = tuple(f"[{name}]" for name in ("long_prompts", "remote_misbehaves", "unwritable_log"))


def needs_no_stage(nodeid: str) -> bool:
    """True for faults of the training commands, which start no service, and for those of `APART`."""
    return "[training_" in nodeid or nodeid.endswith(APART)


def group_of(nodeid: str) -> str | None:
    """The group of a test, or None if it may run in any worker."""
    file, _, test = nodeid.partition("::")
    if needs_no_stage(nodeid):
        return None
    if file.startswith("tests/browser/") and test.startswith("test_the_real_"):
        return "service"
    return FILES.get(file)


def check_groups(items: list[pytest.Item]) -> None:
    """Check that tests which use a shared engine are in its group.

    Raises:
        pytest.UsageError: one is not.
    """
    for item in items:
        parameters = getattr(item, "callspec", None)
        values = () if parameters is None else parameters.params.values()
        names = {*getattr(item, "fixturenames", ()), *(v for v in values if isinstance(v, str))}
        groups = {GROUPS[name] for name in names & GROUPS.keys()}
        if not needs_no_stage(item.nodeid) and not groups <= {group_of(item.nodeid)}:
            raise pytest.UsageError(
                f"{item.nodeid} uses the shared {groups}: name its file in tests/worker_groups.py"
            )


# Unit tests that take longest; they begin first, so that no process ends with them alone.
SLOW_FILES = (
    "test_objectives.py",
    "test_imports.py",
    "test_report.py",
    "test_live_rollout.py",
    "test_study.py",
    "test_engine_starts.py",
    "test_selection_rules.py",
    "test_loadtest_results.py",
    "test_finished_runs.py",
    "test_store.py",
    "test_loadtest.py",
    "test_real_model.py",
    "test_strategies.py",
    "test_cache.py",
    "test_one_connection_each.py",
    "test_reward_worker.py",
    "test_loadtest_coverage.py",
    "test_loadtest_service.py",
    "test_overload_latency.py",
    "test_remote_engine.py",
    "test_engine_args.py",
)

# Files of unit tests that go to one process with another, whose preloaded interpreter they use too, or which
# imports vLLM too.
WITH = {
    "tests/unit/test_commands_read_files.py": "tests/unit/test_imports.py",
    "tests/unit/test_engine_args.py": "tests/unit/test_engine_starts.py",
}


def place_in_order(nodeid: str) -> tuple[int, int]:
    """Sort key of a test: shared engines first, since they take longest, then slow tests and files."""
    if group_of(nodeid) is not None:
        return 0, 0
    if nodeid.endswith(APART):
        return 0, 1
    name = nodeid.partition("::")[0].rpartition("/")[2]
    return (1, SLOW_FILES.index(name)) if name in SLOW_FILES else (2, 0)


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Gives each process a group, a file of unit tests or another test at a time, in collection order."""

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        config.option.loadscopereorder = (
            False  # by number of tests, which says little of their time
        )
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        # Tests of one file share fixtures, which each process would make again.
        own = WITH.get(file, file) if file.startswith("tests/unit/") else nodeid
        return group_of(nodeid) or own
