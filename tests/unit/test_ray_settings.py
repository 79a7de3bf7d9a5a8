"""Jobs over a Ray cluster as far as they need no cluster: settings, and the error without Ray."""

from __future__ import annotations

import pickle
import re
from collections.abc import AsyncGenerator
from importlib import util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from training.cache.ray_shards import Attempts, ShardSampler
from training.cache.sample import build_cache
from training.cache.sample_backends import Response
from training.cache.scored_lines import ScoredLine
from training.cluster import session
from training.configs import SampleConfig, SweepConfig
from training.sweep import ray_cells
from training.sweep.ray_cells import Job, do_in_worker, ray_results
from training.sweep.run import run_sweep
from training.sweep.shared_inputs import forget_shared_inputs, inputs_generation
from training.tune.config import TuneTrainingConfig
from vbon.errors import DataError, InvalidInputError
from vbon.prompts import Prompt


@pytest.fixture(params=["ray", "pyarrow"])
def missing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package that cannot be found."""
    name: str = request.param

    def find_spec(asked: str) -> Any:
        return None if asked == name else util.find_spec(asked)

    monkeypatch.setattr(session, "find_spec", find_spec)
    return name


def test_without_ray_a_command_names_the_extra_and_touches_nothing(
    missing: str, tmp_path: Path
) -> None:
    config = SampleConfig(backend="ray", out=tmp_path / "cache.jsonl", policy="nowhere")
    with pytest.raises(InvalidInputError, match=rf"needs {missing}, .* extra ray \(pip install"):
        build_cache(config)
    with pytest.raises(InvalidInputError, match=rf"needs {missing}, "):
        run_sweep(SweepConfig(backend="ray", out=tmp_path / "sweep", policy="nowhere"))
    assert not [path for path in tmp_path.rglob("*") if path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("given", "sampler"),
    [
        ({}, "vllm"),
        ({"backend": "transformers"}, "transformers"),
        ({"backend": "ray"}, "vllm"),
        ({"backend": "ray", "worker_backend": "transformers"}, "transformers"),
    ],
)
def test_a_cache_is_that_of_the_engine_that_draws_it(given: dict[str, Any], sampler: str) -> None:
    assert SampleConfig(**given).sampler == sampler


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"workers": 2}, "workers is for Ray's workers; add --backend ray"),
        ({"backend": "transformers", "worker_gpus": 1}, "worker_gpus is for Ray's workers"),
        (
            {"backend": "ray", "worker_backend": "transformers", "engine_args": {"a": 1}},
            "add --worker-backend vllm",
        ),
        ({"backend": "ray", "temperature": 9.0}, "use --worker-backend transformers"),
        ({"backend": "ray", "workers": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_of_workers_that_change_nothing_are_refused(
    given: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        SampleConfig(**given)


@pytest.mark.parametrize(
    ("cpus", "gpus", "tasks", "workers"),
    [(1, 0, 100, 8), (1, 0, 3, 3), (0.5, 0, 100, 16), (3, 0, 9, 2), (1, 1, 9, 2), (0, 0.5, 9, 4),
     (16, 0, 9, 1), (0, 0, 5, 5)],
)  # fmt: skip
def test_as_many_workers_as_the_cluster_has_room_for(
    cpus: float, gpus: float, tasks: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    assert session.workers_that_fit(cpus, gpus, tasks) == workers


MACHINES = [
    {"Alive": True, "Resources": {"CPU": 4.0}},
    {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}},
    {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
]


@pytest.mark.parametrize(
    ("cpus", "gpus", "fits"),
    [(4, 0, True), (2, 1, True), (0, 0, True), (5, 0, False), (4, 1, False), (1, 2, False)],
)
def test_a_worker_that_no_machine_has_room_for_is_refused(
    cpus: float, gpus: float, fits: bool, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Six CPUs and a GPU in all do not help a worker of five, or of four and the GPU."""
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "nodes", lambda: MACHINES)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if fits:
        session.check_room(cpus, gpus)
        return
    words = rf"no machine .* has the {cpus} CPUs and {gpus} GPUs .*4 CPUs, 0 GPUs; 2 CPUs, 1 GPUs\)"
    with pytest.raises(InvalidInputError, match=words + "; lower --worker-cpus or --worker-gpus"):
        session.check_room(cpus, gpus)
    monkeypatch.setenv("RAY_ADDRESS", "")  # is none
    with pytest.raises(InvalidInputError, match=words):
        session.check_room(cpus, gpus)
    # A cluster elsewhere may grow.
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    session.check_room(cpus, gpus)
    assert "the work waits until one joins" in caplog.text


def test_cells_that_no_machine_has_room_for_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: MACHINES)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = SweepConfig(backend="ray", worker_gpus=2)
    with pytest.raises(
        InvalidInputError, match="no machine of the Ray cluster has the 1 CPUs and 2"
    ):
        list(ray_results(config, [Job(config, None)], at_once=1))


def test_a_search_that_no_machine_has_room_for_fails_before_its_trials_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a search that goes on would fail every trial that is left, for good."""
    ray = pytest.importorskip("ray")
    tune = pytest.importorskip("training.tune.run")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: MACHINES)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(tune, "_check_prompts", lambda config: None)
    begun: list[object] = []
    monkeypatch.setattr(tune, "_Search", lambda *given: begun.append(given))
    config = TuneTrainingConfig(
        backend="ray", worker_gpus=2, out=tmp_path / "tune", validation=tmp_path / "validation"
    )
    with pytest.raises(InvalidInputError, match="no machine of the Ray cluster"):
        tune.tune_training(config, lambda words: None)
    assert not begun


@pytest.mark.parametrize(
    ("directory", "out", "found"),
    [
        ("here", "sweep", "ok in here"),
        ("here", "/sweep", "ok in here"),
        ("nowhere", "/sweep", "ok in ."),
        ("nowhere", "sweep", "sweep is relative to .*nowhere, which a machine .* an absolute path"),
    ],
)
def test_a_worker_goes_to_the_directory_of_the_command(
    directory: str, out: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths, that of the records above all, are those of the command, wherever Ray was started."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        ray_cells, "run_named_task", lambda *_: f"ok in {Path.cwd().relative_to(tmp_path)}"
    )
    config = SweepConfig(backend="ray", out=Path(out))
    done = do_in_worker(config, None, inputs_generation(), str(tmp_path / directory))
    assert re.search(found, str(done))
    assert isinstance(done, str) == found.startswith("ok")


class Worker(ShardSampler):
    """A worker without models, whose answers are the prompts' keys."""

    def _load(self) -> None:
        self._reward = SimpleNamespace(score=lambda items: [1.0] * len(items))  # type: ignore[assignment]

    async def _draw(
        self, prompts: list[Prompt]
    ) -> AsyncGenerator[tuple[Prompt, list[Response]], None]:
        for prompt in prompts:
            yield prompt, [Response(prompt.key, [1], "stop")]


def test_shards_that_begin_with_the_same_words_are_counted_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All chats with one system message do; a shard that was begun three times is not begun again."""
    ray = pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray, "get", lambda found: found)
    attempts = SimpleNamespace(begin=SimpleNamespace(remote=Attempts().begin))
    worker = Worker(SampleConfig(backend="ray"), attempts, 1, str(tmp_path))
    prompts = [Prompt(text=f"{'You are helpful. ' * 9}{number}") for number in range(6)]

    def done(prompt: Prompt) -> Any:
        (row,) = worker({"prompt": [pickle.dumps(prompt)]})["found"]
        found = pickle.loads(row)
        return found.key if isinstance(found, ScoredLine) else found

    assert [done(prompt) for prompt in prompts] == [prompt.key for prompt in prompts]
    for _ in range(2):
        assert done(prompts[0]) == prompts[0].key
    assert isinstance(done(prompts[0]), DataError)
    worker._runner.close()


@pytest.mark.parametrize("name", ["worker_cpus", "worker_gpus"])
def test_settings_of_cells_without_ray_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} is for Ray's workers"):
        SweepConfig(**{name: 2})  # type: ignore[arg-type]
    assert getattr(SweepConfig(backend="ray", **{name: 2}), name) == 2  # type: ignore[arg-type]


def test_inputs_that_were_dropped_are_of_another_generation() -> None:
    first = inputs_generation()
    forget_shared_inputs()
    assert inputs_generation() != first
    forget_shared_inputs(first)
    assert inputs_generation() == first
