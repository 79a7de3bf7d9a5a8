"""Data flows one way, and light parts stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "torch", "vllm", "transformers", "peft", "accelerate", "matplotlib", "plotly", "opentelemetry",
)  # fmt: skip


def imported(path: Path) -> set[str]:
    """Top-level packages a file imports anywhere, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


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


def test_only_three_modules_import_vllm() -> None:
    users = [m.name for p in ("vbon", "service", "training") for m in modules(p)
             if "vllm" in imported(m)]  # fmt: skip
    assert users == ["engine.py", "host.py", "vllm_generator.py"]


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
        "import service.store",
        "import training.__main__, training.configs, vbon.prompt_files, training.cache.reward_cache",
    ],
)
def test_importing_needs_nothing_heavy(statement: str) -> None:
    """In a fresh interpreter in which the heavy packages cannot be imported at all."""
    block = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r}))"
    subprocess.run([sys.executable, "-c", f"{block}; {statement}"], check=True, cwd=ROOT)


def test_the_load_test_needs_no_server() -> None:
    """It runs from any machine, beside a server or not."""
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
    ],
)
def test_help_teaches_without_anything_heavy(arguments: list[str], words: list[str]) -> None:
    block = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r}))"
    run = (
        f"import runpy; sys.argv = {arguments!r}; "
        f"runpy.run_module({arguments[0]!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{block}; {run}"],
        capture_output=True, text=True, check=True, cwd=ROOT, env={"COLUMNS": "200", "PATH": ""},
    )  # fmt: skip
    for word in words:
        assert word in done.stdout, done.stdout
