"""The search of training: trials on validation prompts, repeats with fresh seeds, and one test."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from training.cluster.session import check_ray, check_room, ray_session
from training.tune.cells import Candidate, CellTrainer, Trained, level_of
from training.tune.config import TuneTrainingConfig
from training.tune.space import TrainingSpace, default_space, read_training_space
from vbon.errors import DataError, InvalidInputError, VbonError
from vbon.maths.intervals import MeanInterval
from vbon.measured.target import Metric
from vbon.prompt_files import read_prompts
from vbon.storage.atomic import write_json
from vbon.storage.checksums import sha256_of
from vbon.storage.locks import sole_writer
from vbon.storage.provenance import provenance
from vbon.tuning.sole_search import sole_search
from vbon.tuning.studies import ended_trials, opened_study, restart_interrupted, storage_url

if TYPE_CHECKING:
    import optuna

VERSION = 1
_STARTUP = 8
_FIRST_REPEAT = 100_000  # seeds of repeats follow it, so that no trial has one of them

Status = Literal["recommended", "unmet", "interrupted"]


@dataclass(frozen=True, slots=True)
class Repeated:
    """A candidate that was trained again with fresh seeds: means over them, with the widest of their ends."""

    candidate: Candidate
    gain: MeanInterval
    kl: MeanInterval
    price: float
    seeds: int

    @property
    def label(self) -> str:
        """The candidate for people."""
        return self.candidate.label


@dataclass(slots=True)
class TrainingFindings:
    """Everything that a search of training has found so far."""

    status: Status = "interrupted"
    level: float | None = None
    tried: list[Trained] = field(default_factory=list)
    repeated: list[Repeated] = field(default_factory=list)
    recommended: Repeated | None = None
    tested: Trained | None = None
    nearest: str = ""
    failed: list[dict[str, Any]] = field(default_factory=list)
    trials: int = 0
    notes: list[str] = field(default_factory=list)


def tune_training(config: TuneTrainingConfig, say: Callable[[str], None]) -> TrainingFindings:
    """Search, choose and test. Ctrl-C ends the search, and what was found is kept.

    Raises:
        DataError: prompts, cache, space file or storage cannot be used, or every trial failed.
        InvalidInputError: the space does not fit the objectives, or no machine has room for a Ray worker.
    """
    space = default_space() if config.space is None else read_training_space(config.space)
    _check_prompts(config)
    if config.backend == "ray":
        check_ray()
    storage = storage_url(config.storage, config.out)
    with (
        sole_writer(config.out),
        sole_search(storage, "vbon-tune/training"),
        ray_session() if config.backend == "ray" else nullcontext(),
    ):
        if config.backend == "ray":
            check_room(config.worker_cpus, config.worker_gpus)
        config.out.mkdir(parents=True, exist_ok=True)
        search = _Search(config, space, say)
        try:
            search.run()
        except KeyboardInterrupt:
            search.found.status = "interrupted"
        search.found.failed = failed_trials(search.study)
        search.found.trials = len(ended_trials(search.study))
        write_json(config.out / "tune.json", _record(config, space, search.found))
        return search.found


class _Search:
    def __init__(
        self, config: TuneTrainingConfig, space: TrainingSpace, say: Callable[[str], None]
    ) -> None:
        assert config.heldout is not None
        self.config, self.space, self.say = config, space, say
        self.found = TrainingFindings()
        self._begun = time.monotonic()
        self._cell_s = 0.0
        goal = config.goal
        self._metric: Metric = goal.metric if goal is not None else config.maximise
        self._validation = CellTrainer(config, config.validation, config.out / "search", keep=False)
        asked = {
            **config.asked,
            "space": space.model_dump(mode="json"),
            "validation_sha256": sha256_of(config.validation),
            "heldout_sha256": sha256_of(config.heldout),
        }
        storage = storage_url(config.storage, config.out)
        startup = min(_STARTUP, max(1, config.trials // 2))
        self.study = opened_study(
            "vbon-tune/training", storage, config.sampler, config.seed, startup, asked
        )
        restart_interrupted(self.study)

    def run(self) -> None:
        self.say(self.space.describe())
        baseline = self._validation.baseline()
        goal = self.config.goal
        if goal is not None:
            self.found.level = level_of(goal, baseline)
        self._say_question()
        self._take_up_earlier()
        while len(ended_trials(self.study)) < self.config.trials and self._has_time():
            self._try_one()
        self._choose()

    def _say_question(self) -> None:
        config = self.config
        limit = (
            "" if config.kl_limit is None else f", with at most {config.kl_limit:.3f} nats of KL"
        )
        asked = (
            f"the highest {self._metric}"
            if config.goal is None
            else f"{config.goal} (here {self.found.level:.4g}) at the lowest {config.minimise}"
        )
        checks = config.finalists * config.repeats + 1
        self.say(
            f"Question: {asked}{limit}. {config.trials} trials train a cell of {config.steps} steps each; "
            f"{checks} more cells check the best."
        )

    def _has_time(self) -> bool:
        if self.config.budget is None:
            return True
        spent = time.monotonic() - self._begun
        checks = self.config.finalists * self.config.repeats + 1
        return spent + (1 + checks) * self._cell_s < self.config.budget

    def _take_up_earlier(self) -> None:
        earlier = ended_trials(self.study)
        for trial in earlier:
            kept = trial.user_attrs.get("kept")
            if kept is not None:
                candidate = Candidate(kept["objective"], tuple(map(tuple, kept["settings"])))
                self.found.tried.append(
                    self._validation.train(candidate, self._seed_of(trial.number), self._metric)
                )
        if earlier:
            self.say(f"Going on after {len(earlier)} trials of an earlier run.")

    def _seed_of(self, number: int) -> int:
        return self.config.seed + number

    def _try_one(self) -> None:
        import optuna

        trial = self.study.ask()
        objective, settings = self.space.sampled(trial)
        candidate = Candidate(objective, tuple(sorted(settings.items())))
        begun = time.monotonic()
        try:
            trained = self._validation.train(candidate, self._seed_of(trial.number), self._metric)
        except VbonError as error:
            trial.set_user_attr("error", str(error))
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            self.say(f"trial {len(ended_trials(self.study))}: failed: {error}")
            return
        self._cell_s = max(self._cell_s / 2, time.monotonic() - begun)
        self.found.tried.append(trained)
        self._tell(trial, trained)
        best = self._best(self.found.tried)
        so_far = "none is within the limits yet" if best is None else best.candidate.label
        self.say(
            f"trial {len(ended_trials(self.study))}: {candidate.label}: {self._metric} "
            f"{trained.gain.mean:.4g} at {trained.kl.mean:.3g} nats, {trained.seconds:.0f} s; best so far: "
            f"{so_far}"
        )

    def _tell(self, trial: optuna.Trial, trained: Trained) -> None:
        trial.set_user_attr(
            "kept",
            {
                "objective": trained.candidate.objective,
                "settings": [list(pair) for pair in trained.candidate.settings],
            },
        )
        if self.config.kl_limit is not None:
            trial.set_constraint("kl", trained.kl.mean / self.config.kl_limit - 1)
        if self.found.level is not None:
            trial.set_constraint("target", self.found.level - trained.gain.mean)
            self.study.tell(trial, trained.price(self.config.minimise))
        else:
            self.study.tell(trial, -trained.gain.mean)

    def _within(self, kl: MeanInterval, gain: MeanInterval, *, lower: bool) -> bool:
        limit, level = self.config.kl_limit, self.found.level
        reached = gain.low if lower else gain.mean
        return (limit is None or kl.mean <= limit) and (level is None or reached >= level)

    def _best(self, rows: Sequence[Trained]) -> Trained | None:
        within = [row for row in rows if self._within(row.kl, row.gain, lower=False)]
        if not within:
            return None
        if self.found.level is None:
            return max(within, key=lambda row: row.gain.mean)
        return min(within, key=lambda row: row.price(self.config.minimise))

    def _ranked(self) -> list[Trained]:
        """The tried cells, the best first; those outside the limits come last, the nearest first."""

        def place(row: Trained) -> tuple[bool, float, float]:
            within = self._within(row.kl, row.gain, lower=False)
            limit = self.config.kl_limit
            excess = 0.0 if limit is None else max(row.kl.mean / limit - 1, 0.0)
            if within and self.found.level is not None:
                return False, row.price(self.config.minimise), 0.0
            return not within, excess, -row.gain.mean

        return sorted(self.found.tried, key=place)

    def _choose(self) -> None:
        """Train the best again with fresh seeds, and test the one that holds on the held-out prompts."""
        found, config = self.found, self.config
        if not found.tried:
            reasons = [one["error"] for one in failed_trials(self.study)]
            first = reasons[0] if reasons else "no trial was made; raise --budget"
            raise DataError(
                f"every trial failed, so there is nothing to choose from: {first}; the records in "
                f"{config.out / 'search' / 'cells'} have more"
            )
        chosen = list({row.candidate: row for row in self._ranked()}.values())[: config.finalists]
        self.say(f"Training {len(chosen)} finalists again with {config.repeats} fresh seeds each.")
        seeds = [_FIRST_REPEAT + config.seed + number for number in range(config.repeats)]
        self._validation.train_side_by_side(
            [(row.candidate, seed) for row in chosen for seed in seeds]
        )
        found.repeated = [one for row in chosen if (one := self._repeat(row.candidate)) is not None]
        holding = [one for one in found.repeated if self._within(one.kl, one.gain, lower=True)]
        if found.level is None:
            holding.sort(key=lambda one: -one.gain.low)
        else:
            holding.sort(key=lambda one: one.price)
        if not holding:
            self._unmet("on the validation prompts, with fresh seeds")
            return
        self._test(holding[0])

    def _repeat(self, candidate: Candidate) -> Repeated | None:
        rows = []
        for number in range(self.config.repeats):
            try:
                seed = _FIRST_REPEAT + self.config.seed + number
                rows.append(self._validation.train(candidate, seed, self._metric))
            except VbonError as error:
                self.found.notes.append(f"{candidate.label} failed with a fresh seed: {error}")
                return None
        return Repeated(
            candidate,
            _pooled([row.gain for row in rows]),
            _pooled([row.kl for row in rows]),
            float(np.mean([row.price(self.config.minimise) for row in rows])),
            len(rows),
        )

    def _test(self, winner: Repeated) -> None:
        config = self.config
        assert config.heldout is not None
        self.say(f"Testing {winner.label} once on the held-out prompts.")
        trainer = CellTrainer(config, config.heldout, config.out / "test", keep=True)
        level = self.found.level
        if config.goal is not None and config.goal.best_of is not None:
            self.found.level = level_of(config.goal, trainer.baseline())
        tested = trainer.train(winner.candidate, _FIRST_REPEAT + config.seed, self._metric)
        self.found.tested = tested
        if self._within(tested.kl, tested.gain, lower=True):
            self.found.status, self.found.recommended = "recommended", winner
        else:
            self.found.repeated = [
                replace(one, gain=tested.gain, kl=tested.kl) if one is winner else one
                for one in self.found.repeated
            ]
            self._unmet("on the held-out prompts")
        self.found.level = level if level is not None else self.found.level

    def _unmet(self, where: str) -> None:
        found, config = self.found, self.config
        found.status = "unmet"
        if not found.repeated:
            found.nearest = "no finalist could be trained again"
            return
        level, limit = found.level, config.kl_limit

        def short(one: Repeated) -> float:
            missing = 0.0 if level is None else max(level - one.gain.low, 0.0)
            return missing + (0.0 if limit is None else max(one.kl.mean - limit, 0.0))

        near = min(found.repeated, key=short)
        said = [f"{self._metric} {near.gain}"]
        if level is not None:
            said.append(f"{level - near.gain.low:.3g} below the target at its lower bound")
        if limit is not None:
            said.append(f"KL {near.kl.mean:.3g} of {limit:.3g} nats")
        found.nearest = f"closest {where}: {near.label}: {', '.join(said)}"


def _pooled(figures: Sequence[MeanInterval]) -> MeanInterval:
    """The mean over seeds, with the lowest and the highest end of their intervals."""
    return MeanInterval(
        float(np.mean([one.mean for one in figures])),
        min(one.low for one in figures),
        max(one.high for one in figures),
        sum(one.count for one in figures),
    )


def failed_trials(study: optuna.Study) -> list[dict[str, Any]]:
    """The failed trials, with their parameters and reasons."""
    return [
        {"parameters": trial.params, "error": trial.user_attrs["error"]}
        for trial in ended_trials(study)
        if "error" in trial.user_attrs
    ]


def _check_prompts(config: TuneTrainingConfig) -> None:
    """Refuse prompts that have two roles.

    Raises:
        DataError: a prompt is both to choose and to test on, or a file cannot be read.
    """
    assert config.heldout is not None
    options = {"column": config.prompt_column, "encoding": config.encoding}
    validation = {prompt.key for prompt in read_prompts(config.validation, **options)}
    heldout = {prompt.key for prompt in read_prompts(config.heldout, **options)}
    common = sorted(validation & heldout)
    if common:
        raise DataError(
            f"{len(common)} prompts, {common[0][:60]!r} among them, are both to choose "
            f"({config.validation}) and to test on ({config.heldout}); the two must have no prompt in common"
        )
    if len(validation) < 2 or len(heldout) < 2:
        raise InvalidInputError("an interval over prompts needs two of them", field="validation")


def _record(
    config: TuneTrainingConfig, space: TrainingSpace, found: TrainingFindings
) -> dict[str, Any]:
    return {
        "version": VERSION,
        **provenance(config.recorded),
        "space": space.model_dump(mode="json"),
        "status": found.status,
        "level": found.level,
        "trials": found.trials,
        "failed_trials": found.failed,
        "tried": [_entry(row) for row in found.tried],
        "repeated": [
            {
                "label": one.label,
                "gain": asdict(one.gain),
                "kl": asdict(one.kl),
                "price": one.price,
                "seeds": one.seeds,
            }
            for one in found.repeated
        ],
        "recommendation": None
        if found.recommended is None
        else {
            "objective": found.recommended.candidate.objective,
            "settings": dict(found.recommended.candidate.settings),
        },
        "tested": None if found.tested is None else _entry(found.tested),
        "closest": found.nearest or None,
        "notes": found.notes,
    }


def _entry(row: Trained) -> dict[str, Any]:
    return {
        "objective": row.candidate.objective,
        "settings": dict(row.candidate.settings),
        "gain": asdict(row.gain),
        "kl": asdict(row.kl),
        "seconds": row.seconds,
        "samples": row.samples,
        "directory": str(row.directory),
    }
