"""Imports between the folders of the project, and imports that must not happen at all."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.interpreter import run_command

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("service", "training", "vbon")
HEAVY = (
    "torch", "vllm", "transformers", "peft", "accelerate", "matplotlib", "opentelemetry", "optuna",
    "ray",
)  # fmt: skip

# A room is a folder. Modules directly in a package, and those in ENTRIES, are rooms of their own.
ENTRIES = {
    "service.bench.idle_service",
    "service.bench.reloads",
    "service.bench.rows",
    "service.bench.run",
    "service.fleet.commands",
    "service.loadtest.__main__",
    "service.loadtest.execute",
    "vbon.distil.checkpoint_commands",
    "vbon.distil.commands",
}

# Light rooms that every other one may import; they import only each other.
BASE = {
    "vbon": "",
    "vbon.child_output": "",
    "vbon.concurrency": "",
    "vbon.config": "",
    "vbon.errors": "",
    "vbon.help": "",
    "vbon.maths": "",
    "vbon.prompt_files": "",
    "vbon.prompts": "",
    "vbon.progress_bar": "",
    "vbon.record_files": "",
    "vbon.registry": "",
    "vbon.report_html": "",
    "vbon.storage": "",
    "vbon.terminal": "",
    "vbon.threads": "",
    "vbon.trace_context": "",
    "vbon.work_report": "",
}

# What else each room may import of the project. A request goes from routes through generation, runtime and
# strategies to the engine and reward protocols; none of these imports one that comes before it.
ROOMS = {
    **BASE,
    # vbon
    "vbon.__main__": "vbon.cli",
    "vbon.cli": "",
    "vbon.embedders": "vbon.linear_layers",
    "vbon.engine": "",
    "vbon.engine.remote": "vbon.engine vbon.http",
    "vbon.engine.vllm": "vbon.engine",
    "vbon.http": "",
    "vbon.linear_layers": "",
    "vbon.measured": "",
    "vbon.rewards": "vbon.http vbon.linear_layers",
    "vbon.demo": "vbon.cli",
    "vbon.distil": "vbon.rewards",
    "vbon.distil.checkpoint_commands": "vbon.cli vbon.distil",
    "vbon.distil.commands": "vbon.cli vbon.distil vbon.distil.checkpoint_commands vbon.distil.loop",
    "vbon.distil.loop": "vbon.distil vbon.study",
    "vbon.study": "vbon.cli",
    "vbon.tuning": "vbon.measured",
    "vbon.tuning.bench": "vbon.cli vbon.tuning",
    # service: around a request
    "service": "",
    "service.settings": "vbon.engine vbon.engine.vllm",
    "service.context": "",
    "service.http": "service.context service.observability service.settings",
    "service.auth": "service.context service.http service.settings vbon.cli",
    "service.admission": "service.context service.http",
    "service.observability": "service.context service.settings",
    "service.store": "service.loadtest",
    "service.store.migrations": "service.store",
    "service.store.migrations.versions": "service.loadtest",
    "service.page": "",
    # service: a request
    "service.strategies": "vbon.embedders vbon.engine",
    "service.runtime": "service.admission service.context service.observability service.settings "
    "service.strategies vbon.embedders vbon.engine vbon.engine.remote vbon.engine.vllm vbon.rewards",
    "service.schemas": "service.strategies vbon.distil vbon.engine vbon.measured",
    "service.auto": "service.runtime service.settings service.store service.strategies vbon.engine "
    "vbon.measured",
    "service.distil": "service.context service.observability service.runtime service.settings service.store "
    "service.strategies vbon.distil vbon.engine vbon.rewards",
    "service.generation": "service.http service.runtime service.schemas service.settings "
    "service.strategies vbon.engine",
    "service.evaluation": "service.generation service.loadtest service.loadtest.analysis "
    "service.runtime service.schemas service.settings service.store vbon.engine",
    "service.hosted_loadtests": "service.context service.generation service.loadtest "
    "service.loadtest.analysis service.runtime service.schemas service.settings service.store",
    "service.routes": "service.auto service.context service.distil service.evaluation service.generation "
    "service.hosted_loadtests service.http service.loadtest service.loadtest.analysis "
    "service.observability service.page service.runtime service.schemas service.settings "
    "service.store vbon.distil vbon.measured",
    # service: programs
    "service.app": "service.admission service.auth service.auto service.distil service.evaluation "
    "service.held service.hosted_loadtests service.http service.observability service.page service.routes "
    "service.runtime service.schemas service.store",
    "service.server": "service.app service.auth service.http service.runtime service.settings",
    "service.client": "service.comparison service.settings",
    "service.comparison": "service.loadtest.analysis",
    # service: parts in other processes
    "service.wire": "service.admission service.context service.observability vbon.engine",
    "service.held": "service.auto service.context service.http service.wire",
    # service: several front ends on one machine
    "service.workers": "service.admission service.app service.auth service.auto service.held service.http "
    "service.observability service.runtime service.server service.settings service.wire vbon.engine "
    "vbon.engine.remote",
    # service: a fleet on Ray Serve
    "service.fleet": "service.admission service.app service.auto service.held service.http "
    "service.observability service.runtime service.server service.settings service.wire vbon.engine "
    "vbon.engine.remote",
    "service.fleet.bench": "service.app service.bench service.fleet service.http service.loadtest.load "
    "service.observability service.runtime service.server service.settings vbon.engine vbon.rewards",
    "service.fleet.commands": "service.fleet service.fleet.bench vbon.cli",
    "service.__main__": "service.auth service.bench.run service.bench service.client "
    "service.observability service.server service.settings service.workers vbon.cli",
    "service.loadtest": "vbon.engine",
    "service.loadtest.analysis": "service.loadtest vbon.measured",
    "service.loadtest.load": "service.client service.loadtest service.loadtest.analysis",
    "service.loadtest.report": "service.loadtest service.loadtest.analysis service.page service.store",
    "service.loadtest.execute": "service.loadtest service.loadtest.analysis service.loadtest.load "
    "service.loadtest.report service.store",
    "service.loadtest.__main__": "service.loadtest service.loadtest.analysis service.loadtest.execute "
    "service.loadtest.load service.loadtest.report service.store vbon.cli vbon.measured",
    "service.bench": "service.app service.client service.loadtest.load service.runtime service.server "
    "service.settings vbon.engine vbon.engine.vllm",
    "service.bench.fleet": "service.admission service.context vbon.cli vbon.engine",
    "service.bench.idle_service": "service.observability service.runtime service.server service.settings "
    "service.workers vbon.engine",
    "service.bench.peers": "service.bench",
    "service.bench.peers.optillm.plugins": "",
    "service.bench.reloads": "service.auth service.bench",
    "service.bench.rewards": "service.bench vbon.cli vbon.engine.vllm vbon.rewards",
    "service.bench.rows": "service.bench service.bench.peers service.distil service.runtime "
    "service.settings vbon.engine vbon.engine.vllm",
    "service.bench.run": "service.bench service.bench.rows service.runtime",
    "service.tune": "service.client service.loadtest service.loadtest.analysis service.loadtest.load "
    "service.strategies vbon.cli vbon.embedders vbon.engine vbon.measured vbon.study vbon.tuning",
    # training
    "training": "",
    "training.objectives": "",
    "training.configs": "training.objectives vbon.engine vbon.engine.vllm",
    "training.outputs": "training.configs",
    "training.rollouts": "training.configs vbon.engine vbon.engine.vllm vbon.linear_layers",
    "training.cache": "training.cluster training.configs training.outputs training.rollouts vbon.engine "
    "vbon.engine.vllm vbon.rewards",
    "training.cluster": "",
    "training.worker_pool": "",
    "training.sandbox": "training.configs training.outputs training.worker_pool",
    "training.real_model": "training.configs training.outputs training.sandbox vbon.cli",
    "training.gpu_check": "training.configs training.outputs training.sandbox training.train vbon.cli",
    "training.evaluation": "training.cache training.configs training.outputs training.rollouts vbon.rewards",
    "training.train": "training.cache training.configs training.evaluation training.objectives "
    "training.outputs training.rollouts vbon.rewards",
    "training.sweep": "training.cluster training.configs training.evaluation training.objectives "
    "training.outputs training.train training.worker_pool vbon.rewards",
    "training.tune": "training.cluster training.configs training.objectives training.sweep training.train "
    "vbon.cli vbon.measured vbon.tuning",
    "training.report": "training.configs training.sweep",
    "training.bench": "training.configs training.rollouts training.train vbon.linear_layers vbon.rewards",
    "training.__main__": "training.configs training.objectives training.train vbon.cli",
}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def dotted(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {dotted(path): path for package in PACKAGES for path in modules(package)}


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Modules a file imports anywhere, also inside functions."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [name if name in MODULES else node.module for name in inside]
    return tuple(names)


def imported(path: Path) -> set[str]:
    """Top-level packages a file imports anywhere."""
    return {name.split(".")[0] for name in imports(path)}


def room_of(module: str) -> str:
    if module in ENTRIES:
        return module
    parent = dotted(MODULES[module].parent)
    return module if parent in PACKAGES else parent


def imports_between_rooms() -> Iterator[tuple[str, str, str]]:
    """(module, its room, another room that it imports)."""
    for module, path in MODULES.items():
        room = room_of(module)
        for other in sorted({room_of(name) for name in imports(path) if name in MODULES}):
            if other != room:
                yield module, room, other


def test_every_room_has_its_line() -> None:
    rooms = {room_of(module) for module in MODULES}
    missing, stale = sorted(rooms - ROOMS.keys()), sorted(ROOMS.keys() - rooms)
    assert not missing, f"say in ROOMS what {', '.join(missing)} may import"
    assert not stale, f"ROOMS names {', '.join(stale)}, which have no modules"


def test_rooms_import_only_what_they_may() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, room, other in imports_between_rooms()
        if other not in BASE and other not in ROOMS.get(room, "").split()
    ]
    assert not wrong, "not allowed by ROOMS:\n" + "\n".join(wrong)


def test_the_base_imports_nothing_else() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, room, other in imports_between_rooms()
        if room in BASE and other not in BASE
    ]
    assert not wrong, "\n".join(wrong)


def test_no_rooms_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for _, room, other in imports_between_rooms():
        graph.setdefault(room, set()).add(other)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = error.args[1]
        edges = [
            f"{module} imports {other}"
            for module, room, other in imports_between_rooms()
            if {room, other} <= set(circle)
        ]
        pytest.fail(f"{' <- '.join(circle)}:\n" + "\n".join(edges))


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("service", {"training", "torch", "transformers"}), ("training", {"service", "fastapi"}),
     ("vbon", {"service", "training", "fastapi"})],
)  # fmt: skip
def test_packages_keep_to_their_side(package: str, forbidden: set[str]) -> None:
    for module in modules(package):
        assert not imported(module) & forbidden, module


def module_imports(path: Path) -> set[str]:
    """Our own modules that a file imports when it is loaded: not inside functions, not for types only."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_training_has_no_import_cycle() -> None:
    paths = {".".join(m.relative_to(ROOT).with_suffix("").parts): m for m in modules("training")}
    names = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    graph = {name: module_imports(path) & names.keys() - {name} for name, path in names.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules of a cycle


def test_rollouts_and_the_cache_know_no_objective() -> None:
    for module in [*modules("training/rollouts"), *modules("training/cache")]:
        assert "training.objectives" not in module.read_text(encoding="utf-8"), module


def test_only_seven_modules_import_vllm() -> None:
    users = [m.name for p in ("vbon", "service", "training") for m in modules(p)
             if "vllm" in imported(m)]  # fmt: skip
    assert users == [
        "engine.py", "host.py", "requests.py", "worker_generators.py", "worker_weights.py",
        "pooling.py", "vllm_generator.py",
    ]  # fmt: skip


def test_only_the_fleet_and_jobs_on_a_cluster_import_ray() -> None:
    users = {m.relative_to(ROOT) for p in PACKAGES for m in modules(p) if "ray" in imported(m)}
    fleet = {Path("service/fleet"), Path("service/fleet/bench")}
    assert {str(user) for user in users if user.parent not in fleet} == {
        "training/cache/ray_shards.py", "training/cluster/session.py", "training/sweep/ray_cells.py",
    }  # fmt: skip
    assert {user.parent for user in users} > fleet


def test_strategies_and_routes_know_no_engine_implementation() -> None:
    for module in [*modules("service/strategies"), *modules("service/routes")]:
        assert "vbon.engine.vllm" not in module.read_text(encoding="utf-8"), module


@pytest.mark.parametrize(
    "folder", ["admission", "auth", "context", "http", "observability", "store"]
)
def test_the_parts_around_the_runtime_do_not_import_it(folder: str) -> None:
    for module in modules(f"service/{folder}"):
        text = module.read_text(encoding="utf-8")
        assert "service.runtime" not in text, module
        assert "service.routes import" not in text, module


@pytest.mark.parametrize(
    "statement",
    [
        "import vbon, vbon.engine, vbon.rewards, vbon.storage.checkpoints, vbon.maths.curves",
        "import service.app, service.runtime.build, service.client, service.settings, service.__main__",
        "import service.loadtest.__main__, service.loadtest.execute, service.loadtest.analysis.compare",
        "import service.store, vbon.measured.table, vbon.measured.pareto",
        "import vbon.tuning, vbon.tuning.bench.command, vbon.tuning.bench.problem, service.bench.rewards.run",
        "import vbon.cli.tune, service.tune.command, service.tune.execute, service.tune.report",
        "import training.tune.command, training.tune.config",
        "import training.__main__, training.configs, vbon.prompt_files, training.cache.reward_cache",
    ],
)
def test_importing_needs_nothing_heavy(statement: str) -> None:
    """Imports succeed in a fresh interpreter in which the heavy packages cannot be imported."""
    status, said = run_command(["-c", statement], blocked=HEAVY)
    assert status == 0, said


def test_the_load_test_needs_no_server() -> None:
    """The load test runs on any machine, whether a server is installed there or not."""
    block = "import sys; sys.modules.update(dict.fromkeys(['fastapi', 'starlette', 'uvicorn']))"
    run = (
        "import service.loadtest.__main__, service.loadtest.execute, service.loadtest.report.write"
    )
    subprocess.run([sys.executable, "-c", f"{block}; {run}"], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["service", "--help"], ["serve", "compare"]),
        (["service", "serve", "--help"], ["--policies", "--limits.max-n", "LoRA"]),
        (["service", "compare", "--help"], ["--concurrency", "--prompts"]),
        (["service.loadtest", "--help"], ["compare", "list", "tag", "Exit status"]),
        (
            ["service.loadtest", "run", "--help"],
            ["--concurrency", "--saturate", "--price-per-hour"],
        ),
        (["training", "--help"], ["sandbox", "sample", "vbon", "j-bond", "evaluate"]),
        (["training", "sandbox", "--help"], ["--corpus", "--seed"]),
        (["training", "sample", "--help"], ["--num-samples", "default: 256"]),
        (["training", "vbon", "--help"], ["--bound", "--lora-rank", "best-of-N"]),
        (["training", "bon-aware-sft", "--help"], ["--expert-samples", "--steps", "best-of-N"]),
        (["training", "sweep", "--help"], ["--grid", "--seeds", "resumable"]),
        (["training", "report", "--help"], ["--sweeps", "Pareto"]),
        (["training", "evaluate", "--help"], ["--gold", "--checkpoints"]),
        (["vbon", "bench", "reward", "--help"], ["--batches", "vllm-serve", "--tolerance"]),
        (["vbon", "bench", "tune", "--help"], ["--samplers", "--tables", "hyper-bo"]),
    ],
)
def test_help_teaches_without_anything_heavy(arguments: list[str], words: list[str]) -> None:
    env = {"COLUMNS": "200", "PATH": ""}
    status, said = run_command(["-m", *arguments], env=env, blocked=HEAVY)
    assert status == 0, said
    for word in words:
        assert word in said, said
