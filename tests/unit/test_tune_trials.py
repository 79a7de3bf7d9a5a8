"""The trials of `vbon tune`: the drawings that are tried, and how often."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("optuna")

import optuna

from service.tune.config import TuneSettings
from service.tune.drawing import Drawing
from service.tune.draws import DrawingFailedError
from service.tune.execute import _prompts
from service.tune.question import Question
from service.tune.search import Effort, Search
from service.tune.setting import Measured
from service.tune.space import Space
from service.tune.trials import Trials
from tests.unit.test_tune_choice import measured
from training.tune.config import TuneTrainingConfig
from vbon.errors import DataError, ExportError, InvalidInputError
from vbon.prompts import Prompt
from vbon.tuning.axes import Range, Values
from vbon.tuning.sole_search import LEASE_S, leased, sole_search


def space(**axes: Any) -> Space:
    """A space without live modes; what ``axes`` leaves out is fixed."""
    drawing = {
        "policy": Values(values=("ref", "vbon")), "temperature": Values(values=(1.0,)),
        "top_p": Values(values=(1.0,)), "top_k": Values(values=(0,)),
    }  # fmt: skip
    return Space(4, 8, drawing | axes, [], {})


def trials_of(tmp_path: Path, found: Space) -> Trials:
    return Trials(found, f"sqlite:///{tmp_path / 'study.db'}", "random", 0, 1, {"asked": 1})


@pytest.mark.parametrize(
    ("sampler", "error", "words"),
    [
        (
            "qlognei",
            ModuleNotFoundError,
            r"^the sampler 'qlognei' needs botorch, .* 'vbon\[botorch\]'",
        ),
        ("none", InvalidInputError, "^unknown sampler 'none'"),
    ],
)
def test_a_sampler_that_cannot_be_made_is_no_fault_of_the_storage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sampler: str,
    error: type[Exception],
    words: str,
) -> None:
    monkeypatch.setitem(sys.modules, "botorch", None)
    file = tmp_path / "study.db"
    with pytest.raises(error, match=words):
        Trials(space(), f"sqlite:///{file}", sampler, 0, 1, {"asked": 1})
    assert not file.exists()


@pytest.mark.parametrize("server", [0.5, 1.0])
def test_a_finite_space_is_tried_whole_and_nothing_twice(tmp_path: Path, server: float) -> None:
    """Also where the server's own temperature, at which the search begins, is not in the space."""
    found = space(temperature=Values(values=(0.5, 0.7)))
    trials = trials_of(tmp_path, found)
    trials.begin_with(Drawing("ref", server, 1.0, 8))
    trials.try_all()
    tried = []
    for number in range(int(found.drawings)):
        proposal = trials.ask(number)
        tried.append(proposal.drawing)
        trials.tell(proposal, 1.0, {}, {})
    assert set(tried) == {Drawing(p, t, 1.0, 8) for p in ("ref", "vbon") for t in (0.5, 0.7)}


def search(found: Space, trials: int | None, budget_s: float | None) -> Search:
    unused: Any = None
    return Search(
        Question(None, "reward", "tokens"), found, unused, {}, unused, unused,
        Effort(trials, budget_s, 1, 5, 1.0, 1.0), describe_again=unused, say=unused,
    )  # fmt: skip


def test_a_small_finite_space_ends_the_search_before_its_budget() -> None:
    """Or the same few drawings would be replayed until the time is over."""
    few = space()
    many = space(top_k=Range(low=0, high=1000, integer=True))
    real = space(temperature=Range(low=0.5, high=1.5))
    assert search(few, None, 1800.0)._planned_trials == 2
    assert search(few, None, None)._planned_trials == 2
    assert search(few, 1, 1800.0)._planned_trials == 1
    for found in (many, real):
        assert search(found, None, 1800.0)._planned_trials is None
        assert search(found, 7, 1800.0)._planned_trials == 7


def test_a_trial_that_was_cut_is_tried_again_and_is_no_failure(tmp_path: Path) -> None:
    found = space(temperature=Range(low=0.5, high=1.5))
    trials = trials_of(tmp_path, found)
    cut = trials.ask(0)
    trials.tell_failure(trials.ask(1), "no candidate could be scored")
    again = trials_of(tmp_path, found)
    assert (again.interrupted, again.done) == (1, 1)
    assert [one["error"] for one in again.failed()] == ["no candidate could be scored"]
    assert again.ask(1).drawing == cut.drawing


def test_a_copy_of_a_run_has_an_id_of_its_own_and_a_run_that_goes_on_or_was_moved_keeps_it(
    tmp_path: Path,
) -> None:
    def run_id(out: Path) -> str:
        url = f"sqlite:///{out / 'study.db'}"
        return Trials(space(), url, "random", 0, 1, {"asked": 1}, out).run_id

    first = tmp_path / "first"
    first.mkdir()
    known = run_id(first)
    assert run_id(first) == known
    copy = tmp_path / "copy"
    shutil.copytree(first, copy)
    own = run_id(copy)
    assert own != known
    assert (run_id(copy), run_id(first)) == (own, known)
    assert run_id(first.rename(tmp_path / "moved")) == known


def test_a_run_whose_storage_is_elsewhere_goes_on_under_its_id_from_any_directory(
    tmp_path: Path,
) -> None:
    """As with `--storage` and no `--out`, which makes a new directory at each start."""
    ids = set()
    for name in ("morning", "evening"):
        out = tmp_path / name
        out.mkdir()
        url = f"sqlite:///{tmp_path / 'shared.db'}"
        ids.add(Trials(space(), url, "random", 0, 1, {"asked": 1}, out).run_id)
    assert len(ids) == 1


@pytest.mark.parametrize("link", [False, True])
def test_a_second_search_on_a_storage_is_refused_whatever_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: bool
) -> None:
    """It would take the running trials of the first one for cut ones, and try them again."""
    monkeypatch.setattr("vbon.storage.locks.PATIENCE_S", 0)
    file = tmp_path / "study.db"
    other = tmp_path / "link.db" if link else file
    if link:
        other.symlink_to(file)
    with (
        sole_search(f"sqlite:///{file}", "decoding"),
        pytest.raises(ExportError, match=r"another process .*; wait .* give another --storage$"),
        sole_search(f"sqlite+pysqlite:///{other}", "decoding"),
    ):
        pass
    for again in (f"sqlite:///{file}", "sqlite://", "sqlite:///:memory:"):
        with sole_search(again, "decoding"):
            pass


def test_a_storage_without_a_file_has_a_lease_that_ends_with_its_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vbon.tuning.sole_search._SETTLE_S", 0.0)
    monkeypatch.setattr("vbon.tuning.sole_search._RENEW_S", 0.01)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with leased(url, "a"):
        holder = optuna.load_study(study_name="a/lease", storage=url)
        first = holder.user_attrs["vbon_holder"]
        words = r"\(pid \d+ of .*--storage; if that .* ends in \d+ s"
        with pytest.raises(ExportError, match=words), leased(url, "a"):
            pass
        with leased(url, "b"):  # another search
            pass
        for _ in range(2000):  # it is renewed
            if holder.user_attrs["vbon_holder"]["until"] > first["until"]:
                break
            time.sleep(0.005)
        assert holder.user_attrs["vbon_holder"]["until"] > first["until"]
    assert holder.user_attrs["vbon_holder"] is None
    # One that was killed released nothing, and its hold ends by itself.
    holder.set_user_attr("vbon_holder", first | {"until": time.time() + 60})
    with pytest.raises(ExportError, match="another search uses"), leased(url, "a"):
        pass
    holder.set_user_attr("vbon_holder", first | {"until": time.time() - 1})
    with leased(url, "a"):
        pass


def test_a_lease_that_another_search_took_meanwhile_is_neither_renewed_nor_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a process was stopped for longer than its lease: a third search must not come between."""
    monkeypatch.setattr("vbon.tuning.sole_search._SETTLE_S", 0.0)
    monkeypatch.setattr("vbon.tuning.sole_search._RENEW_S", 0.01)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with leased(url, "a"):
        holder = optuna.load_study(study_name="a/lease", storage=url)
        other = {"token": "another", "who": "pid 1 of elsewhere", "until": time.time() + 60}
        holder.set_user_attr("vbon_holder", other)
        for _ in range(2000):  # until the one that lost it has noticed
            if caplog.records:
                break
            time.sleep(0.005)
        assert "pid 1 of elsewhere" in caplog.text
        assert holder.user_attrs["vbon_holder"] == other
    assert holder.user_attrs["vbon_holder"] == other
    # One whose holder has ended or died is taken again.
    with leased(url, "b"):
        holder = optuna.load_study(study_name="b/lease", storage=url)
        holder.set_user_attr("vbon_holder", None)
        for _ in range(2000):
            if holder.user_attrs["vbon_holder"] is not None:
                break
            time.sleep(0.005)
        assert holder.user_attrs["vbon_holder"] is not None


def test_a_lease_holds_although_the_clocks_of_two_machines_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder has just renewed it, by a clock that is ahead of ours, or behind."""
    monkeypatch.setattr("vbon.tuning.sole_search._SETTLE_S", 0.0)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    holder = optuna.create_study(storage=url, study_name="a/lease")
    other = {"token": "another", "who": "pid 1 of elsewhere"}
    for ahead_s in (-50.0, 2.0, 50.0):
        until = time.time() + ahead_s + LEASE_S
        holder.set_user_attr("vbon_holder", other | {"until": until})
        with pytest.raises(ExportError, match="pid 1 of elsewhere"), leased(url, "a"):
            pass
    holder.set_user_attr("vbon_holder", other | {"until": time.time() + 3600})
    with leased(url, "a"):  # a clock that far ahead would hold it for an hour
        pass


SECRET = "postgresql+unknown://tuner:secret@localhost/studies?password=secret"


def test_a_password_of_the_storage_is_in_no_file_and_no_message(tmp_path: Path) -> None:
    """Records and messages get passed on."""
    for settings in (
        TuneSettings(target="reward >= 1", storage=SECRET),
        TuneTrainingConfig(storage=SECRET, heldout=tmp_path / "heldout.jsonl"),
    ):
        assert settings.storage == SECRET
        kept = json.dumps(settings.recorded)
        assert "tuner:***@localhost/studies" in kept
        assert "secret" not in kept
    with pytest.raises(DataError, match="cannot be used") as told:
        Trials(space(), SECRET, "random", 0, 1, {})
    assert "tuner:***@localhost/studies" in str(told.value)
    assert "secret" not in str(told.value)


async def test_a_run_without_any_setting_says_why(tmp_path: Path) -> None:
    found = search(space(), None, 1.0)
    found._trials = trials = trials_of(tmp_path, found._space)
    with pytest.raises(DataError, match="the time was over before the first trial; raise --budget"):
        await found._choose()
    trials.tell_failure(trials.ask(0), "ref: 64 of 64 requests failed (64 x HTTP 422: too hot)")
    with pytest.raises(DataError, match=r"the first trial failed: ref: .*HTTP 422: too hot"):
        await found._choose()


async def test_the_trials_of_an_earlier_run_stay_in_the_record(tmp_path: Path) -> None:
    def begun() -> Search:
        one = search(space(temperature=Range(low=0.5, high=1.5)), None, None)
        one._trials = trials_of(tmp_path, one._space)
        one._levels["tune"], one._say = None, lambda _: None

        async def rows(_: str, drawing: Drawing) -> list[Measured]:
            if drawing.temperature > 1.2:
                raise DrawingFailedError("too hot")
            return [measured(n, np.array([n, drawing.temperature]), drawing) for n in (1, 2)]

        one._rows_of_drawing = rows  # type: ignore[method-assign]
        return one

    first = begun()
    for number in range(6):
        await first._evaluate(first._trials.ask(number))
    assert first._trials.failed()
    assert len(first.found.history) == 6 - len(first._trials.failed())
    again = begun()
    await again._take_up_earlier()
    assert again.found.history == first.found.history


def test_settings_are_kept_without_the_figures_of_single_prompts() -> None:
    """Hundreds of settings a trial would keep megabytes otherwise; what the report needs stays."""
    one = search(space(), None, None)
    one._levels["tune"] = None
    rows = one._add([replace(measured(n, np.arange(500.0)), failed=2, unscored=3) for n in (1, 2)])
    assert one.found.rows == rows
    assert [row.gains["reward"].mean for row in rows] == [249.5, 249.5]
    assert [row.tokens.mean for row in rows] == [10, 20]
    for row in rows:
        assert (row.measured.failed, row.measured.unscored) == (2, 3)
        assert not row.measured.gains
        assert row.measured.tokens.nbytes == 0


def test_no_more_prompts_are_used_than_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Prompt] | None = [Prompt(text=f"prompt {number}") for number in range(9)]
    monkeypatch.setattr("service.tune.execute.evaluated_prompts", lambda _: shown)
    settings = TuneSettings(target="reward >= 1", prompt_count=7, out=tmp_path / "run")
    served: Any = None
    assert _prompts(settings, served, lambda _: None) == shown[:7]
    shown = None  # then those that are built in
    assert len(_prompts(settings, served, lambda _: None)) == 7
