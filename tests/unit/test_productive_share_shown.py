"""The productive share leads in the table of ``evaluate`` and on model cards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from training.configs import EvaluateConfig
from training.evaluation import evaluate
from training.evaluation.measure import PromptSamples
from training.evaluation.rows import evaluation_rows, policy_row
from training.train.export import _figures
from vbon.maths.distribution import kl_upper_bound

pytestmark = pytest.mark.train


def samples(rewards: np.ndarray, kl: float) -> list[PromptSamples]:
    """The same samples for each of three prompts."""
    zeros = np.zeros(len(rewards))
    return [PromptSamples(rewards, None, zeros, zeros + kl, zeros + kl, zeros + 5, 0)] * 3


REFERENCE = samples(np.arange(40.0), 0.0)
# Every sample beats 32 of the 40 reference samples: win rate .8, that of best-of-4, at twice its KL.
TUNED = samples(np.full(8, 31.5), 2 * kl_upper_bound(4))


def test_table_leads_with_equivalent_n_and_productive_share() -> None:
    rows = evaluation_rows(REFERENCE, {"still": REFERENCE, "tuned": TUNED}, 4)
    table = evaluate.evaluation_table(rows, 4, 3)
    assert [column.header for column in table.columns][:3] == [
        "method", "equivalent n", "productive share",
    ]  # fmt: skip
    shown = {
        cells[0]: [text.split(" ")[0] for text in cells[1:3]]
        for cells in zip(*(column.cells for column in table.columns), strict=True)
    }
    assert shown["still"] == ["1.00", "0.00"]
    assert shown["tuned"] == ["4.00", "0.50"]
    assert shown["best-of-4"] == ["4", "-"]


def test_card_leads_with_equivalent_n_and_productive_share() -> None:
    figures = _figures(policy_row("vbon", TUNED, REFERENCE))
    worth, share = list(figures.items())[:2]
    assert "equivalent n" in worth[0]
    assert worth[1].mean == pytest.approx(4)
    assert "productive share" in share[0]
    assert share[1].mean == pytest.approx(0.5)


def test_an_evaluation_without_the_share_is_measured_again(tmp_path: Path) -> None:
    config = EvaluateConfig(out=tmp_path)
    rows = [row.model_dump() for row in evaluation_rows(REFERENCE, {"tuned": TUNED}, 4)]
    fingerprint = {"config": {}, "revisions": {"reference": "sha256:1"}}
    for name in evaluate.PLOTS:
        (tmp_path / name).write_text("drawn")
    for missing in (False, True):
        if missing:
            rows = [{k: v for k, v in row.items() if k != "productive_share"} for row in rows]
        record = {**fingerprint, "prompts": 3, "rows": rows}
        (tmp_path / evaluate.RECORD).write_text(json.dumps(record))
        assert (evaluate._kept(config, fingerprint) is None) is missing


def test_an_evaluation_with_gold_and_without_its_peak_is_measured_again(tmp_path: Path) -> None:
    rows = [row.model_dump() for row in evaluation_rows(REFERENCE, {"tuned": TUNED}, 4)]
    fingerprint = {"config": {}, "revisions": {"reference": "sha256:1"}}
    for name in evaluate.PLOTS:
        (tmp_path / name).write_text("drawn")
    record = {**fingerprint, "prompts": 3}
    half = {"mean": 0.5, "low": 0.4, "high": 0.6, "count": 3}
    peak = {"n": 3, "low": 2, "high": 5, "gold": half, "gold_at_largest": half, "largest": 7}
    config = EvaluateConfig(out=tmp_path)
    for has_gold, extra, kept in (
        (False, {}, True),
        (True, {}, False),
        (True, {"gold_peak": peak}, True),
    ):
        own = [{**row, "gold": half} for row in rows] if has_gold else rows
        (tmp_path / evaluate.RECORD).write_text(json.dumps({**record, "rows": own, **extra}))
        found = evaluate._kept(config, fingerprint)
        assert (found is not None) is kept
        if found is not None and extra:
            assert "peaks at n = 3 [2, 5]" in str(found.gold_peak)


def test_gold_lets_n_reach_all_but_one_sample() -> None:
    """17 samples with gold rewards are enough for best-of-16; gold equal to the reward wins 16/17."""
    rewards, zeros = np.arange(17.0), np.zeros(17)
    reference = [PromptSamples(rewards, rewards, zeros, zeros, zeros, zeros, 0)] * 3
    best = evaluation_rows(reference, {}, 16)[-1]
    assert best.gold_win_rate is not None
    assert (best.n, best.gold_win_rate.mean) == (16, pytest.approx(16 / 17))


def test_every_n_is_measured_where_it_is_asked_for() -> None:
    rows = evaluation_rows(REFERENCE, {}, 4, every_n_up_to=9)
    assert [row.n for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 32]
    assert [row.win_rate.mean for row in rows] == pytest.approx([r.n / (r.n + 1) for r in rows])
