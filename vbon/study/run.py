"""The steps of a study, from the split of the prompts to the report."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from vbon.errors import DataError
from vbon.storage.atomic import write_json
from vbon.storage.locks import sole_writer
from vbon.storage.provenance import provenance
from vbon.study.config import StudyConfig
from vbon.study.report import show_verdict, write_report
from vbon.study.split import PARTS, Split, split_prompts, write_split
from vbon.study.steps import (
    STATE,
    Progress,
    Step,
    StepFailedError,
    command,
    takes_n,
    write_settings,
)
from vbon.study.time_left import Paces, Work
from vbon.study.work_to_come import SERVED, WorkToCome
from vbon.terminal import table_console

_START_S = "900"  # a large model may load for minutes


def run_study(config: StudyConfig) -> None:
    """Run a study, or what is left of it.

    Raises:
        DataError: the directory holds a study with other settings, or the prompts cannot be used.
        StepFailedError: a step ended with an error.
    """
    study = Study(config)
    with sole_writer(config.out):
        study.run()


class Study:
    """A study and its files.

    The directory holds ``prompts/``, ``cache.jsonl``, ``checkpoints/``, ``evaluation/``, ``serve.toml``,
    ``comparison.json``, ``loadtest/``, ``report.html`` and ``study.json`` (the steps done so far).
    """

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self.out = config.out
        self.checkpoints = {name: self.out / "checkpoints" / name for name in config.objectives}
        self.console = table_console()
        self.paces = Paces()
        self._work = WorkToCome(config, self.paces, self._modes())
        models = self.out / "models"
        own = bool(config.corpus)
        self.policy = str(models / "policy") if own else str(config.policy)
        self.reward = str(models / "reward") if own else str(config.reward)
        self.gold = str(models / "gold") if own else config.gold
        made = models / "prompts"
        self.prompt_files = (
            [made / "train.jsonl", made / "heldout.jsonl"] if own else list(config.prompts)
        )

    def run(self) -> None:
        """Run every step that is not done, then print the verdict."""
        settings = self.config.model_dump(mode="json", exclude={"out", "replace", "full"})
        state = self._state(settings)
        progress = Progress(self.out, self.console, state, self.paces)
        self.paces.known |= state.get("paces", {})
        steps = self.steps()
        write_json(self.out / STATE, progress.state)
        progress.run(steps)
        show_verdict(self.out, self.console, full=self.config.full)

    def steps(self) -> list[Step]:
        """All steps in order."""
        made = [self._models()] if self.config.corpus else []
        trainings = [self._train(name) for name in self.config.objectives]
        return [
            *made,
            self._split(),
            self._sample(),
            *trainings,
            self._evaluate(),
            self._measure(),
            self._report(),
        ]

    def _state(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The state of an earlier start, if it had the same settings."""
        file = self.out / STATE
        fresh = {**provenance(settings), "steps": {}}
        if not file.exists():
            return fresh
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
            earlier = state["config"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file} is damaged ({error}); choose another --out") from error
        other = sorted(key for key in settings if earlier.get(key) != settings[key])
        if not other:
            return dict(state)
        if self.config.replace:
            return fresh
        raise DataError(
            f"{self.out} holds a study with other settings ({', '.join(other)}); choose another --out, or "
            "give --replace to start again"
        )

    def _models(self) -> Step:
        config = self.config
        flags = [flag for file in config.corpus for flag in ("--corpus", file)]
        encoding = [] if config.encoding is None else ["--encoding", config.encoding]
        target = self.out / "models"

        def run() -> None:
            jobs = str(min(3, os.cpu_count() or 1))
            place = ("--out", str(target), "--seed", str(config.seed), "--jobs", jobs)
            command("training", "sandbox", *place, "--replace", *flags, *encoding)

        outputs = (target / "policy", target / "reward", target / "gold")
        key = [*config.corpus, *encoding]
        work = (Work("step models", name="making models"),)
        title = "make policy and reward models"
        return Step("models", title, key, outputs, run, lambda: work, "")

    def _split(self) -> Step:
        config, target = self.config, self.out / "prompts"

        def run() -> None:
            split: Split = split_prompts(
                self.prompt_files,
                config.validation_share,
                config.test_share,
                config.seed,
                column=config.prompt_column,
                encoding=None if config.corpus else config.encoding,
                say=lambda words: self.console.print(words, highlight=False, markup=False),
            )
            write_split(split, target)
            self.console.print(str(split), highlight=False)

        # Prompts that the step before made follow from its key; a user's files may change.
        stamps = [] if config.corpus else [_stamp(file) for file in self.prompt_files]
        files = [str(file) for file in self.prompt_files]
        key = [files, stamps, config.validation_share, config.test_share, config.seed]
        key += [value for value in (config.prompt_column, config.encoding) if value is not None]
        outputs = tuple(target / f"{part}.jsonl" for part in PARTS)
        return Step("split", "split the prompts", key, outputs, run, start="")

    def _sample(self) -> Step:
        target = self.out / "cache.jsonl"
        settings = {
            **self._sampling(),
            "policy": self.policy,
            "reward": self.reward,
            "prompts": self._prompts("train"),
            "out": str(target),
            "num_samples": self.config.num_samples,
            "backend": self.config.backend,
            "seed": self.config.seed,
            "trust_remote_code": self.config.trust_remote_code,
            **self.config.sampling,
        }
        title = "sample and score the reward cache"
        work = self._work.of_sampling
        return self._step("sample", title, ["training", "sample"], settings, (target,), work)

    def _train(self, objective: str) -> Step:
        target = self.checkpoints[objective]
        settings = {
            **self._sampling(),
            "policy": self.policy,
            "reward": self.reward,
            "gold": self.gold,
            "cache": str(self.out / "cache.jsonl"),
            "heldout": self._prompts("validation"),
            "out": str(target),
            "seed": self.config.seed,
            "trust_remote_code": self.config.trust_remote_code,
            **self._training(objective),
        }
        flags = ["--num-samples", str(self.config.n)] if takes_n(objective) else []
        title = f"fine-tune with {objective}"
        program = ["training", objective]
        work = partial(self._work.of_training, objective)
        return self._step(f"train {objective}", title, program, settings, (target,), work, flags)

    def _training(self, objective: str) -> dict[str, Any]:
        """The further settings of an objective: those of all, and its own instead of them."""
        given = self.config.training
        shared = {key: value for key, value in given.items() if key not in self.config.objectives}
        return {**shared, **given.get(objective, {})}

    def _evaluate(self) -> Step:
        target = self.out / "evaluation"
        settings = {
            **self._sampling(),
            "policy": self.policy,
            "checkpoints": {name: str(path) for name, path in self.checkpoints.items()},
            "reward": self.reward,
            "gold": self.gold,
            "prompts": self._prompts("test"),
            "out": str(target),
            "num_samples": self.config.n,
            # Another seed than that of the training runs, whose samples chose nothing here.
            "seed": self.config.seed + 1,
            "trust_remote_code": self.config.trust_remote_code,
            **self.config.evaluation,
        }
        title = "evaluate on the test prompts"
        outputs = (target / "evaluation.json",)
        work = self._work.of_evaluation
        return self._step("evaluate", title, ["training", "evaluate"], settings, outputs, work)

    def _measure(self) -> Step:
        comparison, loadtest = self.out / "comparison.json", self.out / "loadtest"
        load = {
            "modes": self._modes(),
            "n": [self.config.n],
            "prompts": self._prompts("test"),
            "max_tokens": self.config.max_new_tokens,
            "temperature": self.config.temperature,
            "price_per_hour": self.config.price_per_hour,
            "currency": self.config.currency,
            "out": str(loadtest),
            "store": None,
            **self.config.loadtest,
        }

        def run() -> None:
            write_settings(self.out / "serve.toml", self._service())
            with self._served() as (url, pid):
                command("service", "compare", *self._compare_flags(url, pid, comparison))
                settings = self._written("loadtest", load)
                command("service.loadtest", "run", "--config", str(settings), "--url", url)

        key = [self._service(), load]
        outputs = (comparison, loadtest / "result.json", self.out / "serve.toml")
        title, work = "serve, compare and load-test", self._work.of_measuring
        return Step("measure", title, key, outputs, run, work, SERVED)

    def _report(self) -> Step:
        target = self.out / "report.html"
        return Step("report", "write the report", None, (target,), lambda: write_report(self.out))

    def _step(
        self,
        name: str,
        title: str,
        program: list[str],
        settings: dict[str, Any],
        outputs: tuple[Path, ...],
        work: Callable[[], Sequence[Work]],
        flags: list[str] | None = None,
    ) -> Step:
        """A step that runs one command with settings from a file, which stays beside its result."""
        more = flags or []

        def run() -> None:
            file = self._written(name.replace(" ", "-"), settings)
            replace = ["--replace"] if "evaluate" not in program else []
            command(*program, "--config", str(file), *more, *replace)

        return Step(name, title, [settings, more], outputs, run, work)

    def _sampling(self) -> dict[str, Any]:
        return {
            "max_new_tokens": self.config.max_new_tokens,
            "temperature": self.config.temperature,
        }

    def _prompts(self, part: str) -> str:
        return str(self.out / "prompts" / f"{part}.jsonl")

    def _modes(self) -> list[str]:
        return ["ref", "bon", *self.checkpoints]

    def _service(self) -> dict[str, Any]:
        """Settings of the service, with absolute paths so that they hold wherever they are used."""
        config = self.config
        policies = {"ref": self.policy, **{name: str(p) for name, p in self.checkpoints.items()}}
        base = {
            "policies": {name: _absolute(path) for name, path in policies.items()},
            "reward": _absolute(self.reward),
            "gold": None if self.gold is None else _absolute(self.gold),
            "evaluation": _absolute(str(self.out / "evaluation" / "evaluation.json")),
            "store": _absolute(str(self.out / "runs.db")),
            "default_n": config.n,
            "default_max_tokens": config.max_new_tokens,
            "trust_remote_code": config.trust_remote_code,
        }
        return {**base, **config.service}

    def _compare_flags(self, url: str, pid: int, target: Path) -> list[str]:
        config = self.config
        return [
            *("--url", url, "--while-pid", str(pid), "--wait-s", _START_S),
            *("--prompts", self._prompts("test"), "--modes", ",".join(self._modes())),
            *("--n", str(config.n), "--max-tokens", str(config.max_new_tokens)),
            *("--temperature", str(config.temperature), "--seed", str(config.seed)),
            *("--json", str(target)),
        ]

    @contextmanager
    def _served(self) -> Iterator[tuple[str, int]]:
        """The service on a free port while the block runs, with its log in ``server.log``."""
        port, log = _free_port(), self.out / "server.log"
        program = [sys.executable, "-m", "service", "serve", "--port", str(port)]
        self.console.print(f"the service starts; its log: {log}", highlight=False)
        with log.open("w") as handle:
            # A session of its own: Ctrl-C ends the measuring first, and the service afterwards.
            server = subprocess.Popen(
                [*program, "--config", str(self.out / "serve.toml")],
                stdout=handle,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield f"http://127.0.0.1:{port}", server.pid
        except StepFailedError as error:
            if server.poll() is not None:
                raise StepFailedError(f"the service ended early; see {log}") from error
            raise
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()

    def _written(self, name: str, settings: Mapping[str, Any]) -> Path:
        file = self.out / "settings" / f"{name}.toml"
        write_settings(file, settings)
        return file


def _absolute(spec: str) -> str:
    """A path made absolute; hub names, URLs and callables stay as they are."""
    return str(Path(spec).resolve()) if Path(spec).exists() else spec


def _stamp(file: Path) -> list[int]:
    try:
        found = file.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
