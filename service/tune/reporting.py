"""Reports of a run to the server that it measures, whose page shows it while it goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

import httpx
from pydantic import ValidationError

from service.loadtest.config import LoadTestSettings
from service.loadtest.load.server_description import request_headers
from service.tune.choice import best, closest, front
from service.tune.config import TuneSettings
from service.tune.latency import Timing
from service.tune.outputs import measured_setting, recommended_config
from service.tune.question import Priced, Question
from service.tune.search import Findings, Outcome
from service.tune.server import Served
from service.tune.setting import Setting
from vbon.maths.intervals import MeanInterval
from vbon.measured.table import MeasuredTable
from vbon.measured.tuning_run import (
    MOST_FILE,
    MOST_LABEL,
    MOST_SHOWN,
    MOST_TEXT,
    MOST_TRIALS,
    Status,
    TunedSetting,
    TuningCheck,
    TuningQuestion,
    TuningReport,
    TuningSearch,
    TuningStress,
    TuningTrial,
)

EVERY_S = 30.0  # between two reports where nothing is new
_PATIENCE = 4  # so many reports may be missed before the last one is stale
_LIMIT_S, _BEFORE_LOAD_S = 10.0, 2.0
# Statuses of a server that will not take the next report either.
_FOR_GOOD = {401, 403, 404, 405, 409, 413, 422}


@dataclass(frozen=True, slots=True)
class RunFacts:
    """All that a report says of a run besides its findings."""

    settings: TuneSettings
    served: Served
    space: str
    prompts: dict[str, int]
    load: str
    started: datetime = field(default_factory=lambda: datetime.now(UTC))


@contextmanager
def reporting(facts: RunFacts, run_id: str, say: Callable[[str], None]) -> Iterator[Reporter]:
    """Report a run until the block ends, and its failure if the block raises."""
    reporter = Reporter(facts, run_id, say)
    try:
        yield reporter
    except BaseException as error:
        reporter.failed(str(error) or type(error).__name__)
        raise
    finally:
        reporter.close()


class Reporter:
    """Tells the server of a run, from a thread of its own. It raises nothing, and waits only at the end."""

    def __init__(
        self,
        facts: RunFacts,
        run_id: str,
        say: Callable[[str], None],
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Begin to report, unless the settings say not to."""
        self._facts, self._say = facts, say
        self._path = f"/tune/runs/{run_id}"
        settings = facts.settings
        target = LoadTestSettings(url=settings.url, api_key_env=settings.api_key_env)
        self._client = httpx.Client(
            base_url=settings.url,
            headers=request_headers(target),
            timeout=_LIMIT_S,
            transport=transport,
        )
        self._found = Findings()
        self._waiting: TuningReport | None = None
        self._news, self._idle = threading.Event(), threading.Event()
        self._closing = False
        self._gave_up = not settings.report
        self._thread = threading.Thread(target=self._send_all, name="report-run", daemon=True)
        if settings.report:
            self._thread.start()

    def tell(self, found: Findings) -> None:
        """Report what has been found so far; a report that was not sent yet is left out.

        Before a measurement under load it waits a little, so that the report is not part of that load.
        """
        self._found = found
        self._idle.clear()
        self._put("")
        if found.phase == "load" and self._thread.is_alive():
            self._idle.wait(_BEFORE_LOAD_S)

    def ended(self, found: Findings, table: MeasuredTable | None) -> None:
        """Report the end of a run, after its table."""
        self._stop()
        self._found = found
        if table is not None:
            self._send_table(table.model_dump_json())
        self._send_last("")

    def failed(self, reason: str) -> None:
        """Report that the run has failed."""
        self._stop()
        self._send_last(reason)

    def close(self) -> None:
        """End the reports, and the connection."""
        self._stop()
        self._client.close()

    def _put(self, error: str) -> None:
        if self._gave_up:
            return
        try:
            self._waiting = report_of(self._facts, self._found, error)
        except ValidationError as problem:
            self._give_up(f"it cannot be reported: {problem.errors()[0]['msg']}")
        self._news.set()

    def _send_last(self, error: str) -> None:
        self._put(error)
        if self._waiting is not None and not self._gave_up:
            self._send(self._path, self._waiting.model_dump_json())

    def _send_table(self, content: str) -> None:
        """Send the table; a run that the server has lost, or has not heard of yet, is reported first."""
        path, kept = f"{self._path}/table", {404, 413, 422}
        response = None if self._gave_up else self._send(path, content, unless=kept)
        if response is not None and response.status_code == 404:
            self._send_last("")
            response = None if self._gave_up else self._send(path, content, unless=kept - {404})
        if response is not None and response.status_code in {413, 422}:
            why = _said(response)
            self._say(f"note: the server's page cannot apply the measured settings: {why}")

    def _stop(self) -> None:
        self._closing = True
        self._news.set()
        if self._thread.is_alive():
            self._thread.join(2 * _LIMIT_S)

    def _send_all(self) -> None:
        """Send the newest report whenever there is one, and again when nothing was new for a while."""
        while not self._gave_up:
            self._news.wait(EVERY_S)
            self._news.clear()
            if self._closing:
                return
            if self._waiting is not None:
                self._send(self._path, self._waiting.model_dump_json())
            if not self._news.is_set():
                self._idle.set()

    def _send(self, path: str, content: str, unless: Collection[int] = ()) -> httpx.Response | None:
        """Send something once; returns the answer, if one came.

        Args:
            unless: statuses that do not end the reports.
        """
        headers = {"content-type": "application/json"}
        try:
            response = self._client.put(path, content=content, headers=headers)
        except httpx.HTTPError:
            return None  # the server is away; the next report has all of this one
        if response.status_code in _FOR_GOOD and response.status_code not in unless:
            self._give_up(_said(response))
        return response

    def _give_up(self, why: str) -> None:
        self._gave_up = True
        self._say(f"note: the server's page does not show this run: {why}")


def _said(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"


def report_of(facts: RunFacts, found: Findings, error: str = "") -> TuningReport:
    """The report of a run.

    Args:
        error: why it failed; empty if it did not.

    Raises:
        ValidationError: a figure is not finite.
    """
    settings, served, question = facts.settings, facts.served, facts.settings.question
    status: Status = "failed" if error else found.status
    so_far = best(question, found.rows) or closest(question, found.rows)
    row = found.recommended
    concurrent = settings.rate is None
    return TuningReport(
        status=status,
        phase=found.phase if status == "running" else "ended",
        started=facts.started,
        next_within_s=_PATIENCE * EVERY_S,
        question=_question(facts, found),
        search=TuningSearch(
            sampler=settings.sampler,
            seed=settings.seed,
            workers=settings.workers,
            finalists=settings.finalists,
            trials=found.planned,
            budget_s=settings.budget,
            prompts=facts.prompts,
            space=facts.space[:MOST_FILE],
        ),
        policies=dict(served.policies),
        reward_revision=served.reward,
        gold_revision=served.gold,
        hardware=_short(served.hardware),
        trials_done=len(found.outcomes),
        trials=[_trial(question, one) for one in found.outcomes[-MOST_TRIALS:]],
        settings_measured=len({one.setting for one in found.rows}),
        front=[_setting(question, one) for one in front(question, found.rows)][:MOST_SHOWN],
        best=None if so_far is None else _setting(question, so_far),
        checks=_checks(question, found)[:MOST_SHOWN],
        stress=[_stress(*one) for one in found.stress[:20]],
        recommended=None if row is None else _setting(question, row),
        recommended_setting=None if row is None else measured_setting(row, concurrent),
        serve=None if row is None else recommended_config(question, row, served)[:MOST_FILE],
        out=_short(str(settings.out)),
        notes=[_short(note) for note in found.notes[:40]],
        error=_short(error) if error else None,
    )


def _question(facts: RunFacts, found: Findings) -> TuningQuestion:
    settings, question = facts.settings, facts.settings.question
    return TuningQuestion(
        text=_short(str(question)),
        metric=question.metric,
        target=None if question.target is None else str(question.target),
        level=found.level,
        price=question.price,
        price_per_hour=question.price_per_hour,
        currency=settings.currency,
        p95_ms=question.p95_ms,
        max_tokens_per_answer=question.most_tokens,
        load=_short(facts.load),
    )


def _trial(question: Question, one: Outcome) -> TuningTrial:
    winner = None if one.winner is None else _setting(question, one.winner)
    return TuningTrial(
        number=one.number,
        tried=one.tried[:MOST_LABEL],
        settings=one.settings,
        best=winner,
        error=_short(one.error or "unknown") if winner is None else None,
    )


def _setting(question: Question, row: Priced) -> TunedSetting:
    setting = row.setting
    return TunedSetting(
        label=setting.label[:MOST_LABEL],
        mode=setting.mode,
        policy=setting.drawing.policy,
        n=setting.n,
        gains=dict(row.gains),
        margin=row.margin,
        price=_price(question, row),
        reaches=row.reaches,
        over_limits=[_short(one) for one in row.over_limits],
    )


def _price(question: Question, row: Priced) -> MeanInterval | None:
    """The price with its interval; of money, whose interval is not known, the mean alone."""
    if row.price == float("inf"):
        return None
    if row.price == row.tokens.mean:
        return row.tokens
    if question.price == "latency" and row.expected is not None:
        return row.expected.mean_s
    return MeanInterval(row.price, row.price, row.price, 0)


def _checks(question: Question, found: Findings) -> list[TuningCheck]:
    """The finalists on the validation prompts, and those of the test, each with the trial that it is from."""
    trials = {one.what: one.number for one in found.outcomes if one.what is not None}

    def number(setting: Setting) -> int | None:
        return trials.get(setting if setting.live else setting.drawing)

    finalists = [row for row in found.validated if row.setting in found.finalists]

    def check(stage: Literal["validation", "test"], row: Priced) -> TuningCheck:
        setting = _setting(question, row)
        return TuningCheck(stage=stage, trial=number(row.setting), setting=setting)

    validated = [check("validation", row) for row in finalists]
    return [*validated, *(check("test", row) for row in found.tested)]


def _stress(setting: Setting, known: Timing | None, failure: str) -> TuningStress:
    return TuningStress(
        label=setting.label[:MOST_LABEL],
        failure=_short(failure) if failure else None,
        p95_ms=None if known is None else known.p95_s.mean * 1e3,
        answers_per_s=None if known is None else known.answers_per_s,
        requests=0 if known is None else known.requests,
        failed=0 if known is None else known.failed,
    )


def _short(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[: MOST_TEXT - 1]}…"
