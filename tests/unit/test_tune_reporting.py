"""Reports of a tuning run: what they say of its findings, and what becomes of those that cannot be sent."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("optuna")

from service.tune.config import TuneSettings
from service.tune.drawing import Drawing
from service.tune.latency import LatencyModel, Timing
from service.tune.question import Priced, priced
from service.tune.reporting import Reporter, RunFacts, report_of, reporting
from service.tune.search import Findings, Outcome
from service.tune.server import Served
from tests.unit.test_tune_choice import TUNED, measured, setting
from vbon.maths.intervals import MeanInterval
from vbon.measured.table import MeasuredTable
from vbon.measured.tuning_run import MOST_TRIALS, TuningReport

REF = Drawing("ref", 1.0, 1.0, 40)
SPREAD = np.array([-0.1, 0.1] * 8)
SERVED = Served(
    url="http://x", policies={"ref": "r1", "vbon": "v1"}, paths={"ref": "m/ref", "vbon": "m/vbon"},
    modes={}, reward="w1", gold=None, hardware="a machine", max_tokens=40, temperature=1.0, max_n=16,
)  # fmt: skip


def facts(tmp_path: Path, **changes: Any) -> RunFacts:
    values = {"url": "http://x", "target": "reward >= 1", "out": tmp_path / "run", **changes}
    return RunFacts(TuneSettings(**values), SERVED, "n_max = 4\n", {"tune": 64}, "8 in flight")


def rows(run: RunFacts, latency: LatencyModel | None = None) -> list[Priced]:
    """N = 2 misses the target at its lower bound; N = 4 and one sample of vbon, for 10 tokens, meet it."""
    found = [
        measured(2, SPREAD + 1.02), measured(4, SPREAD + 1.3), measured(1, SPREAD + 1.2, TUNED),
    ]  # fmt: skip
    return priced(run.settings.question, found, 1.0, latency or LatencyModel())


def findings(run: RunFacts) -> Findings:
    miss, dear, cheap = rows(run)
    found = Findings(rows=[miss, dear, cheap], level=1.0, phase="trials", planned=8)
    found.outcomes = [
        Outcome(1, REF.label, REF, 2, dear),
        Outcome(2, "treebon", setting(4), error="HTTP 503"),
        Outcome(3, TUNED.label, TUNED, 1, cheap),
    ]
    return found


def test_a_report_has_the_trials_the_front_and_the_best_so_far(tmp_path: Path) -> None:
    """The front is vbon alone of the two that cost more for less, and N = 4 for its higher reward."""
    run = facts(tmp_path)
    told = report_of(run, findings(run))
    assert (told.status, told.phase, told.trials_done, told.search.trials) == (
        "running", "trials", 3, 8,
    )  # fmt: skip
    assert [(one.number, one.error, one.settings) for one in told.trials] == [
        (1, None, 2), (2, "HTTP 503", 0), (3, None, 1),
    ]  # fmt: skip
    assert [one.label for one in told.front] == [setting(1, TUNED).label, setting(4).label]
    assert told.best is not None
    assert (told.best.policy, told.best.n, told.best.reaches) == ("vbon", 1, True)
    assert told.best.price == MeanInterval(10.0, 10.0, 10.0, 16)
    assert told.best.margin is not None
    assert told.best.margin.mean == pytest.approx(0.2)
    assert (told.question.target, told.question.level) == ("reward >= 1", 1.0)
    assert told.recommended is None


def test_what_misses_says_so_and_the_closest_is_the_best_so_far(tmp_path: Path) -> None:
    run = facts(tmp_path, max_tokens_per_answer=15)
    miss = rows(run)[0]
    told = report_of(run, Findings(rows=[miss]))
    assert told.best is not None
    assert not told.best.reaches
    assert told.best.over_limits == ["20 tokens an answer, over 15"]


def test_checks_name_the_trial_and_leave_out_what_was_no_finalist(tmp_path: Path) -> None:
    run = facts(tmp_path)
    found = findings(run)
    miss, dear, cheap = found.rows
    found.finalists = [dear.setting, cheap.setting]
    found.validated, found.tested, found.recommended = [miss, dear, cheap], [cheap], cheap
    found.status = "recommended"
    timing = Timing(MeanInterval(0.1, 0.1, 0.1, 9), MeanInterval(0.2, 0.1, 0.3, 9), 40.0, 99, 1)
    found.stress = [(dear.setting, None, "no request was answered"), (cheap.setting, timing, "")]
    told = report_of(run, found)
    assert [(one.stage, one.trial, one.setting.policy) for one in told.checks] == [
        ("validation", 1, "ref"), ("validation", 3, "vbon"), ("test", 3, "vbon"),
    ]  # fmt: skip
    assert [(one.failure, one.p95_ms) for one in told.stress] == [
        ("no request was answered", None), (None, 200.0),
    ]  # fmt: skip
    assert told.recommended_setting is not None
    assert (told.recommended_setting.mode, told.recommended_setting.n) == ("vbon", 1)
    assert told.serve is not None
    assert 'default_mode = "tuned"' in told.serve
    assert told.phase == "ended"


def test_prices_of_money_have_no_interval_and_those_of_latency_have(tmp_path: Path) -> None:
    latency = LatencyModel()
    seconds = MeanInterval(0.3, 0.2, 0.4, 9)
    latency.add(setting(1, TUNED), Timing(seconds, seconds, 36.0, 9, 0))
    money = facts(tmp_path, minimise="cost", price_per_hour=3.6)
    row = rows(money, latency)[2]
    told = report_of(money, Findings(rows=[row])).best
    assert told is not None
    price = 3.6 / 3600 / 36
    assert told.price == MeanInterval(*[pytest.approx(price)] * 3, 0)
    slow = facts(tmp_path, minimise="latency")
    told = report_of(slow, Findings(rows=[rows(slow, latency)[2]])).best
    assert told is not None
    assert told.price == seconds


def test_long_runs_keep_to_the_limits_of_a_report(tmp_path: Path) -> None:
    run = facts(tmp_path)
    winner = rows(run)[1]
    found = Findings(rows=[winner], notes=["x" * 2000] * 60)
    found.outcomes = [Outcome(n + 1, "y" * 999, REF, 9, winner) for n in range(MOST_TRIALS + 20)]
    told = report_of(run, found)
    assert (told.trials_done, len(told.trials), told.trials[0].number) == (520, 500, 21)
    assert len(told.model_dump_json()) < 500_000  # of a megabyte that a body may have
    assert TuningReport.model_validate_json(told.model_dump_json()) == told


class Server:
    """Takes reports, and answers them with a status or, for 0, breaks the connection."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.got = threading.Semaphore(0)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append((request.url.path, json.loads(request.content)))
        status = self.statuses.pop(0) if self.statuses else 204
        self.got.release()
        if status == 0:
            raise httpx.ConnectError("refused")
        return httpx.Response(status, json={"error": {"message": "only admins may"}})


def reporter(tmp_path: Path, server: Server, said: list[str], **changes: Any) -> Reporter:
    transport = httpx.MockTransport(server)
    return Reporter(facts(tmp_path, **changes), "0123456789ab", said.append, transport)


def test_a_server_that_is_away_gets_the_next_report_and_the_table_before_the_last(
    tmp_path: Path,
) -> None:
    server, said = Server(0, 503), list[str]()
    sending = reporter(tmp_path, server, said)
    found = findings(sending._facts)
    for _ in range(3):
        sending.tell(found)
        assert server.got.acquire(timeout=60)
    table = MeasuredTable.model_construct(rows=[])
    found.status = "interrupted"
    sending.ended(found, table)
    sending.close()
    run = "/tune/runs/0123456789ab"
    assert [path for path, _ in server.seen] == [run, run, run, f"{run}/table", run]
    assert server.seen[-1][1]["status"] == "interrupted"
    assert said == []


def test_a_run_that_the_server_does_not_have_is_made_known_before_its_table(tmp_path: Path) -> None:
    """Every report got lost, or the run was removed from the page before it ended."""

    class Keeping(Server):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            known = any(not path.endswith("/table") for path, _ in self.seen)
            if request.url.path.endswith("/table") and not known:
                self.statuses.insert(0, 404)
            return super().__call__(request)

    server, said = Keeping(), list[str]()
    sending = reporter(tmp_path, server, said)
    found = findings(sending._facts)
    found.status = "interrupted"
    sending.ended(found, MeasuredTable.model_construct(rows=[]))
    sending.close()
    run = "/tune/runs/0123456789ab"
    assert [path for path, _ in server.seen][-3:] == [run, f"{run}/table", run]
    assert server.seen[-1][1]["status"] == "interrupted"
    assert said == []


@pytest.mark.parametrize("status", [413, 422])
def test_a_table_that_is_refused_does_not_keep_the_end_of_the_run_back(
    tmp_path: Path, status: int
) -> None:
    """Of a table over the limit of a body, the page would show a run that goes on and then is silent."""
    server, said = Server(204, status), list[str]()
    sending = reporter(tmp_path, server, said)
    found = findings(sending._facts)
    sending.tell(found)
    assert server.got.acquire(timeout=60)
    found.status = "interrupted"
    sending.ended(found, MeasuredTable.model_construct(rows=[]))
    sending.close()
    assert server.seen[-1][1].get("status") == "interrupted"
    assert said == ["note: the server's page cannot apply the measured settings: only admins may"]


@pytest.mark.parametrize("status", [401, 403, 404, 405, 409, 422])
def test_a_server_that_refuses_is_asked_no_more_and_it_is_said_once(
    tmp_path: Path, status: int
) -> None:
    server, said = Server(status), list[str]()
    sending = reporter(tmp_path, server, said)
    sending.tell(Findings())
    assert server.got.acquire(timeout=60)
    sending._thread.join(60)
    for _ in range(2):
        sending.tell(Findings())
    sending.ended(Findings(), MeasuredTable.model_construct(rows=[]))
    sending.close()
    assert len(server.seen) == 1
    assert said == ["note: the server's page does not show this run: only admins may"]


def test_a_run_that_shall_not_report_sends_nothing(tmp_path: Path) -> None:
    server, said = Server(), list[str]()
    sending = reporter(tmp_path, server, said, report=False)
    sending.tell(Findings())
    sending.failed("why")
    sending.close()
    assert (server.seen, said) == ([], [])


def test_a_failure_is_reported_with_what_was_found_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    client = httpx.Client

    def mocked(**options: Any) -> httpx.Client:
        return client(**{**options, "transport": httpx.MockTransport(server)})

    monkeypatch.setattr("service.tune.reporting.httpx.Client", mocked)
    run = facts(tmp_path)

    def fail() -> None:
        with reporting(run, "0123456789ab", print) as sending:
            sending.tell(findings(run))
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    last = server.seen[-1][1]
    assert (last["status"], last["error"], last["trials_done"]) == ("failed", "broken", 3)
