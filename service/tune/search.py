"""The search: trials on the tuning prompts, then checks on other prompts and under load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import Any, Literal

import numpy as np

from service.loadtest.analysis.text import duration
from service.tune.choice import (
    best,
    closest,
    finalists,
    passed,
    shortfall,
    test_order,
)
from service.tune.drawing import Drawing, Drawn, Float
from service.tune.draws import DrawingFailedError, PromptPart
from service.tune.latency import LatencyModel, LoadedServer, Timing, latency_settings
from service.tune.question import Priced, Question, level_of, priced
from service.tune.replay import (
    Opponents,
    opponents_of,
    replay_bon,
    replay_rule,
    rule_of,
    with_prior,
)
from service.tune.server import Asker, RequestFailedError, Served, changed
from service.tune.setting import BON, Measured, Setting
from service.tune.space import Space
from service.tune.trials import Proposal, Trials
from vbon.errors import DataError
from vbon.maths.intervals import MeanInterval
from vbon.measured.tuning_run import Phase
from vbon.prompts import Prompt

DEFAULT_TRIALS = 20
_REPLAY_S = 4e-4  # of one setting on one prompt, on a core of a usual machine
_PROBED = 4  # prompts that are answered before, to tell how long all will take
_MOST_FAILED_UNDER_LOAD = 0.01

Status = Literal["running", "recommended", "unmet", "interrupted"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A trial that has ended.

    Attributes:
        number: its place among those that have ended, from 1.
        tried: in words; ``what`` is the same, if it is known.
        settings: how many settings it measured.
        winner: the best of these; ``None`` if the trial failed.
        error: why it failed.
    """

    number: int
    tried: str
    what: Drawing | Setting | None = None
    settings: int = 0
    winner: Priced | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Effort:
    """The effort that a run may make.

    Attributes:
        budget_s: time of the whole run; ``None`` for any.
    """

    trials: int | None
    budget_s: float | None
    workers: int
    finalists: int
    block_s: float
    stress_s: float


@dataclass(slots=True)
class Findings:
    """Everything that a run has found so far, which its report is made of.

    Attributes:
        rows: measured settings on the tuning prompts.
        validated: settings of the finalists' families, on the validation prompts.
        tested: the settings of the test, in its order, on the test prompts.
        finalists: the settings that are measured again.
        planned: trials to make in all; ``None`` if only the budget ends them.
        outcomes: the trials that have ended, those of an earlier run and failed ones included.
        order: labels of the test's settings as it was fixed before.
        stress: the timing of each setting that was put under load, with the reason if it failed.
        notes: sentences for the report.
    """

    status: Status = "running"
    rows: list[Priced] = field(default_factory=list)
    validated: list[Priced] = field(default_factory=list)
    tested: list[Priced] = field(default_factory=list)
    recommended: Priced | None = None
    nearest: Priced | None = None
    stress: list[tuple[Setting, Timing | None, str]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    trials: int = 0
    seconds: float = 0.0
    level: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    phase: Phase = "latency"
    planned: int | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    finalists: list[Setting] = field(default_factory=list)


class Search:
    """One run against one server.

    Attributes:
        found: the findings so far; complete after :meth:`run`.
    """

    def __init__(
        self,
        question: Question,
        space: Space,
        asker: Asker,
        parts: Mapping[str, PromptPart],
        trials: Trials,
        loaded: LoadedServer,
        effort: Effort,
        *,
        describe_again: Callable[[], Served],
        say: Callable[[str], None],
        on_progress: Callable[[Findings], None] = lambda _: None,
        on_news: Callable[[Findings], None] = lambda _: None,
    ) -> None:
        self.found = Findings()
        self._question, self._space, self._asker = question, space, asker
        self._parts, self._trials, self._loaded, self._effort = parts, trials, loaded, effort
        self._describe_again, self._say, self._on_progress = describe_again, say, on_progress
        self._on_news = on_news
        self._latency = LatencyModel()
        self._levels: dict[str, Float | float | None] = {}
        self._opponents: dict[str, Opponents | None] = {}
        self._begun = perf_counter()
        self._drawing_s = 0.0

    @property
    def baseline(self) -> Drawing:
        """The reference policy at the server's own sampling, whose best-of-K is a target."""
        served = self._asker.served
        return Drawing(served.reference, served.temperature, 1.0, self._space.max_tokens)

    async def run(self) -> Findings:
        """Search, choose, and check.

        Raises:
            DrawingFailedError: the reference policy could not be measured at all.
            ServerError: the server's models have changed.
        """
        self.found.planned = self._planned_trials
        self._enter("latency")
        await self._tell_time()
        await self._measure_level("tune")
        await self._measure_latency()
        self._trials.begin_with(self.baseline)
        if self._space.drawings <= (self._planned_trials or 0) and not self._space.live:
            self._trials.try_all()
        self._enter("trials")
        await self._run_trials()
        await self._choose()
        self.found.phase, self.found.seconds = "ended", perf_counter() - self._begun
        return self.found

    def _enter(self, phase: Phase) -> None:
        self.found.phase = phase
        self._on_news(self.found)

    async def _tell_time(self) -> None:
        """Say how large the space is and how long the run takes, from a few answers."""
        part = self._parts["tune"]
        probed = min(_PROBED, len(part.prompts))
        begun = perf_counter()
        body = {**self.baseline.sampling, "n": self._space.n_max}

        async def one(prompt: Prompt) -> None:
            await self._asker.ask(f"/generate?mode={BON}", prompt, body)

        try:
            for prompt in part.prompts[:1]:
                await one(prompt)  # the first answer after a pause is slower than the others
            begun = perf_counter()
            await asyncio.gather(*(one(prompt) for prompt in part.prompts[:probed]))
        except RequestFailedError as error:
            raise DrawingFailedError(
                f"{self.baseline.label}: the server did not answer the first prompt: {error}"
            ) from error
        replay_s = _REPLAY_S * self._space.replayed
        self._drawing_s = ((perf_counter() - begun) / probed + replay_s) * len(part.prompts)
        self._say(self._space.describe())
        self._say(
            f"Prompts: {', '.join(f'{len(p.prompts)} to {name}' for name, p in self._parts.items())}."
        )
        trials = self._planned_trials
        said = f"{trials} trials" if trials is not None else "trials"
        if self._effort.budget_s is not None:
            self._say(f"Time: {said} within {duration(self._effort.budget_s)} in all.")
        else:
            assert trials is not None
            all_s = (1 + trials) * self._drawing_s + self._latency_s + self._checks_s
            self._say(f"Time: {said}, about {duration(all_s)} in all.")

    @property
    def _planned_trials(self) -> int | None:
        """The number of trials; ``None`` if only the budget ends them."""
        if self._space.one_drawing and not self._space.live:
            return 1
        asked = self._effort.trials or DEFAULT_TRIALS
        if not self._space.live and self._space.drawings <= asked:
            return int(self._space.drawings)
        if self._effort.trials is None and self._effort.budget_s is not None:
            return None
        return asked

    @property
    def _latency_s(self) -> float:
        policies = len(self._policies)
        return 4 * policies * self._effort.block_s * 1.2

    @property
    def _checks_s(self) -> float:
        """The time that the checks after the trials need."""
        sizes = {name: len(part.prompts) for name, part in self._parts.items()}
        share = (sizes["validate"] + sizes["test"]) / max(sizes["tune"], 1)
        return share * self._drawing_s * (1 + self._effort.finalists) + 1.2 * self._effort.stress_s

    @property
    def _policies(self) -> list[str]:
        values = self._space.drawing["policy"].values  # type: ignore[union-attr]
        return list(dict.fromkeys([*map(str, values), self._asker.served.reference]))

    async def _measure_level(self, part: str) -> Float | float | None:
        """Measure what the target asks for on a part of the prompts, and the rivals of win rates."""
        if part in self._levels:
            return self._levels[part]
        prompts = self._parts[part]
        target = self._question.target
        self._opponents[part] = None
        if self._question.metric == "win-rate":
            rivals = await prompts.draw(self.baseline, self._space.n_max, "rivals-")
            self._opponents[part] = opponents_of(rivals)
        if target is None or target.best_of is None:
            level = level_of(self._question, [])
        else:
            drawn = await prompts.draw(self.baseline, self._space.n_max)
            level = level_of(self._question, replay_bon(drawn, self._opponents[part]))
        self._levels[part] = level
        if part == "tune" and level is not None:
            self.found.level = float(np.nanmean(level))
            self._say(f"Target: {target}, here {self.found.level:.4g} on the tuning prompts.")
        return level

    async def _measure_latency(self) -> None:
        settings = latency_settings(self._policies, self.baseline, self._space.n_max)
        self._say(
            f"Latency under the stated load, at N {_listed_counts(settings)} of each policy; other N are "
            "interpolated linearly."
        )
        for setting in settings:
            timing = await self._loaded.measure(setting)
            if timing is None:
                self.found.notes.append(
                    f"The latency of {setting.label} could not be measured: no request was answered."
                )
                continue
            self._latency.add(setting, timing)

    async def _run_trials(self) -> None:
        planned, workers = self._planned_trials, self._effort.workers
        if planned == 1:
            self._say(
                "The space has one drawing, so there is nothing to search; its settings are replayed."
            )
        if self._trials.done:
            self._say(f"Going on after {self._trials.done} trials of an earlier run.")
            await self._take_up_earlier()
        while (planned is None or self._trials.done < planned) and self._has_time():
            number = self._trials.done
            left = workers if planned is None else min(workers, planned - number)
            self._check_models(await asyncio.to_thread(self._describe_again))
            proposals = [self._trials.ask(number + i) for i in range(left)]
            begun = perf_counter()
            await asyncio.gather(*(self._evaluate(one) for one in proposals))
            self._drawing_s = max(0.5 * self._drawing_s, perf_counter() - begun)
            self.found.trials = self._trials.done
            self.found.failed = self._trials.failed()
            self._on_progress(self.found)
        self.found.trials, self.found.failed = self._trials.done, self._trials.failed()

    def _has_time(self) -> bool:
        budget = self._effort.budget_s
        if budget is None:
            return True
        spent = perf_counter() - self._begun
        return spent + self._drawing_s + self._checks_s < budget

    def _check_models(self, now: Served) -> None:
        how = self._asker.served.changed_to(now)
        if how:
            raise changed(how)

    async def _take_up_earlier(self) -> None:
        """Measure the trials of an earlier run again from the candidates that it kept."""
        for number, trial in enumerate(self._trials.ended(), start=1):
            kept = trial.user_attrs.get("kept")
            if kept is None or trial.values is None:
                tried = ", ".join(f"{name} {value}" for name, value in trial.params.items())
                error = str(trial.user_attrs.get("error", "unknown"))
                self.found.outcomes.append(Outcome(number, tried or "no parameters", error=error))
                continue
            what: Drawing | Setting
            if "drawing" in kept:
                what = Drawing(**kept["drawing"])
                rows = self._add(await self._rows_of_drawing("tune", what))
            else:
                rows = self._take_up_live(kept)
                if not rows:
                    continue
                what = rows[0].setting
            winner = best(self._question, rows) or closest(self._question, rows)
            if winner is not None and np.isfinite(winner.price):
                self._remember(number, what, winner, len(rows))
        self._on_news(self.found)

    def _take_up_live(self, kept: Mapping[str, Any]) -> list[Priced]:
        record = dict(kept["live"])
        setting = Setting(
            record["mode"], Drawing(**record["drawing"]), record["n"], record["own"], live=True
        )
        arrays = {
            name: np.array([np.nan if v is None else v for v in values], dtype=float)
            for name, values in record["gains"].items()
        }
        tokens = np.array([np.nan if v is None else v for v in record["tokens"]], dtype=float)
        measured = Measured(setting, arrays, tokens)
        if record["timing"] is not None:
            self._latency.add(setting, _timing(record["timing"]))
        return self._add([measured])

    async def _evaluate(self, proposal: Proposal) -> None:
        """Measure one trial and report it; a failure is reported as one."""
        try:
            if proposal.drawing is not None:
                measured = await self._rows_of_drawing("tune", proposal.drawing)
                kept: dict[str, Any] = {"drawing": _plain(proposal.drawing)}
            else:
                assert proposal.setting is not None
                measured, kept = await self._measure_live(proposal.setting)
        except DrawingFailedError as error:
            self._fail(proposal, str(error))
            self._say(f"trial {self._trials.done}: failed: {error}")
            return
        rows = self._add(measured)
        winner = best(self._question, rows) or closest(self._question, rows)
        if winner is None or not np.isfinite(winner.price):
            self._fail(proposal, f"{proposal.label}: nothing could be measured")
            return
        value, constraints = _objective(self._question, winner)
        facts = {"best": winner.setting.label, "kept": kept, "settings": len(rows)}
        self._trials.tell(proposal, value, constraints, facts)
        self._report_trial(proposal, winner, len(rows))
        self._on_news(self.found)

    def _fail(self, proposal: Proposal, reason: str) -> None:
        self._trials.tell_failure(proposal, reason)
        what = proposal.drawing or proposal.setting
        outcome = Outcome(self._trials.done, proposal.label, what, error=reason)
        self.found.outcomes.append(outcome)
        self._on_news(self.found)

    def _remember(
        self, number: int, what: Drawing | Setting, winner: Priced, settings: int
    ) -> Priced | None:
        """Add a trial to the history; returns the best setting so far."""
        overall = best(self._question, self.found.rows)
        self.found.outcomes.append(Outcome(number, what.label, what, settings, winner))
        self.found.history.append(
            {
                "trial": number,
                "tried": what.label,
                "best": winner.setting.label,
                "price": winner.price,
                "gain": winner.gains[self._question.metric].mean,
                "feasible": winner.feasible,
                "best_so_far": None if overall is None else overall.setting.label,
                "best_price": None if overall is None else overall.price,
            }
        )
        return overall

    def _report_trial(self, proposal: Proposal, winner: Priced, settings: int) -> None:
        what = proposal.drawing or proposal.setting
        assert what is not None
        overall = self._remember(self._trials.done, what, winner, settings)
        so_far = "none reaches the target yet" if overall is None else overall.setting.label
        gain = winner.gains[self._question.metric]
        state = "" if winner.feasible else ", not enough"
        tried = f"{proposal.label}: " if proposal.setting is None else ""
        self._say(
            f"trial {self._trials.done}: {tried}{winner.setting.label} has "
            f"{self._question.metric} {gain.mean:.4g} at {price_text(self._question, winner.price)}{state}; "
            f"best so far: {so_far}"
        )

    def _add(self, measured: Sequence[Measured]) -> list[Priced]:
        """Price settings and keep them: hundreds per trial, of which only the figures are needed again."""
        rows = [
            replace(row, measured=row.measured.without_prompts())
            for row in priced(self._question, measured, self._levels["tune"], self._latency)
        ]
        self.found.rows += rows
        return rows

    async def _rows_of_drawing(self, part: str, drawing: Drawing) -> list[Measured]:
        """Every setting that is replayed from a drawing."""
        drawn = await self._parts[part].draw(drawing, self._space.n_max)
        return await asyncio.to_thread(self._replayed, drawn, part)

    def _replayed(self, drawn: Drawn, part: str) -> list[Measured]:
        opponents, served = self._opponents[part], self._asker.served
        rows = replay_bon(drawn, opponents)
        for rule in self._space.rules_for(reshaped=drawn.drawing.reshaped, tells=served.tells):
            rows += replay_rule(rule, drawn, self._space.counts, opponents)
            if rule.mode == "adaptive-bon":
                try:
                    prior = with_prior(rule, drawn)
                except DataError:  # too few prompts tell nothing about others
                    continue
                rows += replay_rule(prior, drawn, self._space.counts, opponents)
        return rows

    async def _measure_live(self, setting: Setting) -> tuple[list[Measured], dict[str, Any]]:
        measured = await self._parts["tune"].measure_live(setting, self._opponents["tune"])
        timing = await self._loaded.measure(setting)
        if timing is not None:
            self._latency.add(setting, timing)
        record = {
            "mode": setting.mode,
            "drawing": _plain(setting.drawing),
            "n": setting.n,
            "own": setting.own,
            "gains": {name: _listed(values) for name, values in measured.gains.items()},
            "tokens": _listed(measured.tokens),
            "timing": None if timing is None else _timing_record(timing),
        }
        return [measured], {"live": record}

    async def _choose(self) -> None:
        """Validate the finalists, test those that hold in a fixed order, and put the winner under load."""
        question, found = self._question, self.found
        chosen = finalists(question, found.rows, self._effort.finalists)
        if not chosen:
            failed = self._trials.failed()
            reason = (
                f"the first trial failed: {failed[0]['error']}"
                if failed
                else "the time was over before the first trial; raise --budget"
            )
            raise DataError(
                f"no setting could be measured, so there is nothing to choose from; {reason}"
            )
        self._say(
            f"Measuring {len(chosen)} finalists again on the validation prompts, with fresh seeds."
        )
        found.finalists = [row.setting for row in chosen]
        self._enter("validation")
        found.validated = await self._measure_again("validate", found.finalists)
        order = test_order(question, found.validated)
        if not order:
            self._unmet(found.validated, "on the validation prompts")
            return
        self._say(f"Testing {len(order)} settings once on the test prompts, the safest first.")
        self._enter("test")
        again = await self._measure_again("test", [row.setting for row in order])
        by_setting = {row.setting: row for row in again}
        found.tested = [by_setting[row.setting] for row in order if row.setting in by_setting]
        survivors = passed(question, found.tested)
        if not survivors:
            self._unmet(found.tested, "on the test prompts")
            return
        for row in survivors:
            self._enter("load")
            if await self._bears_load(row):
                measured = self._as_measured_under_load(row)
                found.tested = [measured if one is row else one for one in found.tested]
                found.status, found.recommended = "recommended", measured
                return
        found.status, found.nearest = "unmet", survivors[0]
        found.notes.append("No setting that reaches the target bore the stated load.")

    def _unmet(self, rows: Sequence[Priced], where: str) -> None:
        nearest = closest(self._question, rows)
        self.found.status, self.found.nearest = "unmet", nearest
        if nearest is not None:
            self.found.notes.append(
                f"No setting reaches the target {where}; the closest is {nearest.setting.label}: "
                f"{shortfall(self._question, nearest)}."
            )

    async def _measure_again(self, part: str, settings: Sequence[Setting]) -> list[Priced]:
        """Measure settings on other prompts, and on validation prompts their whole families."""
        level = await self._measure_level(part)
        families = part == "validate"
        measured: dict[Setting, Measured] = {}
        for setting in settings:
            try:
                rows = await self._again(part, setting, families=families)
            except DrawingFailedError as error:
                self.found.notes.append(f"{setting.label} could not be measured again: {error}.")
                continue
            measured |= {row.setting: row for row in rows}
        return priced(self._question, list(measured.values()), level, self._latency)

    async def _again(self, part: str, setting: Setting, *, families: bool) -> list[Measured]:
        prompts, opponents = self._parts[part], self._opponents[part]
        if setting.live:
            return [await prompts.measure_live(setting, opponents)]
        drawn = await prompts.draw(setting.drawing, self._space.n_max)
        if setting.single or setting.mode == BON:
            rows = replay_bon(drawn, opponents)
            return rows if families else [rows[setting.n - 1]]
        rule = rule_of(
            setting.mode,
            setting.settings,
            reshaped=setting.drawing.reshaped,
            tells=self._asker.served.tells,
        )
        counts = self._space.counts if families else [setting.n]
        return await asyncio.to_thread(replay_rule, rule, drawn, counts, opponents)

    async def _bears_load(self, row: Priced) -> bool:
        """Put a setting under the stated load."""
        self._say(
            f"Putting {row.setting.label} under the stated load for {self._effort.stress_s:g} s."
        )
        stretch = self._effort.stress_s / self._effort.block_s
        timing = await self._loaded.measure(row.setting, stretch)
        reason = self._stress_failure(timing)
        self.found.stress.append((row.setting, timing, reason))
        if timing is not None:
            self._latency.add(row.setting, timing)
        if reason:
            self.found.notes.append(f"{row.setting.label} did not bear the load: {reason}.")
        return not reason

    def _as_measured_under_load(self, row: Priced) -> Priced:
        """The row with its own latency in the place of one that was interpolated."""
        level = self._levels["test"]
        return priced(self._question, [row.measured], level, self._latency)[0]

    def _stress_failure(self, timing: Timing | None) -> str:
        if timing is None:
            return "no request was answered"
        share = timing.failed / (timing.failed + timing.requests)
        if share > _MOST_FAILED_UNDER_LOAD:
            return f"{share:.1%} of the requests failed"
        limit = self._question.p95_ms
        if limit is not None and timing.p95_s.mean * 1e3 > limit:
            return f"its p95 latency was {timing.p95_s.mean * 1e3:.4g} ms, over {limit:g} ms"
        return ""


def _objective(question: Question, row: Priced) -> tuple[float, dict[str, float]]:
    """The value and the constraints of a trial, from its best setting."""
    constraints = {}
    if row.margin is not None:
        constraints["target"] = -row.margin.low
    if question.p95_ms is not None:
        p95 = float("inf") if row.expected is None else row.expected.p95_s.mean * 1e3
        constraints["p95"] = min(p95 / question.p95_ms - 1, 1e6)
    if question.most_tokens is not None:
        constraints["tokens"] = row.tokens.mean / question.most_tokens - 1
    if question.target is None:
        return -row.gains[question.metric].low, constraints
    return row.price, constraints


def price_text(question: Question, price: float, currency: str = "") -> str:
    """A price with its unit."""
    if question.price == "latency":
        return f"{price * 1e3:.4g} ms"
    if question.price == "cost" and question.price_per_hour is not None:
        return f"{1000 * price:.4g} {currency or 'money'} per 1,000 answers"
    return f"{price:.4g} tokens"


def _listed_counts(settings: Sequence[Setting]) -> str:
    return ", ".join(map(str, sorted({setting.n for setting in settings})))


def _plain(drawing: Drawing) -> dict[str, Any]:
    return {**drawing.sampling, "policy": drawing.policy}


def _listed(values: Float) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _timing_record(timing: Timing) -> dict[str, Any]:
    return asdict(timing)


def _timing(record: Mapping[str, Any]) -> Timing:
    return Timing(
        MeanInterval(**record["mean_s"]),
        MeanInterval(**record["p95_s"]),
        record["answers_per_s"],
        record["requests"],
        record["failed"],
    )
