"""The decision on a candidate checkpoint, and the test for a drift of the prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.collected import identity
from tests.unit.distil_loop import by_prompt, evaluated
from vbon.distil.decision import Decision, Spent, Verdict
from vbon.distil.loop.drift import FEWEST, find_drift, looks_due
from vbon.distil.loop.gate import Limits, decide, read_by_prompt
from vbon.distil.loop.stream import Collected, SeenPrompt
from vbon.errors import DataError


def limits(**changes: float) -> Limits:
    values: dict[str, float] = {
        "n": 4, "margin": 0.02, "bon_margin": 0.1, "max_kl": 2.0, "max_length_ratio": 1.5,
        "max_truncated": 0.1, "least_prompts": 20,
    }  # fmt: skip
    return Limits(**{**values, **changes})  # type: ignore[arg-type]


def verdict(candidate: dict[str, list[float]], **others: dict[str, list[float]]) -> Decision:
    return decide(evaluated(candidate, **others), limits(), Spent(training_s=1.0, tokens=2))


def shifted(figures: dict[str, list[float]], name: str, by: list[float]) -> dict[str, list[float]]:
    return {**figures, name: [a + b for a, b in zip(figures[name], by, strict=True)]}


def test_a_good_candidate_is_promoted_with_all_its_reasons() -> None:
    found = verdict(by_prompt(win_rate=0.78), live=by_prompt(win_rate=0.77))
    assert found.verdict == "promote"
    assert len(found.reasons) == 5
    assert found.reasons[0].startswith("Its win rate is -0.010 [-0.010, -0.010] below the live")
    assert found.figures.difference["win_rate"].mean == pytest.approx(0.01)
    assert found.figures.candidate.length.mean == pytest.approx(10.0)
    assert found.figures.bon.win_rate.mean == pytest.approx(0.8)
    assert Decision.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("name", "candidate", "words"),
    [
        ("the reference itself", by_prompt(win_rate=0.5, kl=0.0), "below that of best-of-4"),
        ("noised weights", by_prompt(win_rate=0.2, kl=9.0), "below the live checkpoint's"),
        ("one that memorised", by_prompt(win_rate=0.8, kl=3.0), "Its KL from the reference policy"),
        ("a long-winded one", by_prompt(win_rate=0.85, length=18.0), "times the length"),
        ("one that never ends", by_prompt(win_rate=0.85, cut_off=0.4), "that are cut off"),
        ("one that is worse than live", by_prompt(win_rate=0.74), "below the live checkpoint's"),
    ],
)
def test_a_bad_candidate_is_refused_with_its_reason_first(
    name: str, candidate: dict[str, list[float]], words: str
) -> None:
    found = verdict(candidate, live=by_prompt(win_rate=0.79))
    assert found.verdict == "refuse", name
    assert any(words in reason for reason in found.reasons)
    # Reasons of the verdict come first; each tells the figure and the limit.
    broken = ["is the limit" in reason for reason in found.reasons]
    assert broken == sorted(broken, reverse=True)
    assert broken[0]


def test_a_difference_that_few_prompts_cannot_tell_is_undecided() -> None:
    noise = list(np.random.default_rng(0).normal(0, 0.2, 40))
    found = verdict(
        shifted(by_prompt(win_rate=0.77), "win_rate", noise), live=by_prompt(win_rate=0.78)
    )
    assert found.verdict == "undecided"
    assert "cannot be told with so few prompts" in found.reasons[0]
    few = decide(
        {m: {k: v[:8] for k, v in f.items()} for m, f in evaluated(by_prompt()).items()},
        limits(),
        Spent(),
    )
    assert few.verdict == "undecided"
    assert few.reasons[0] == "There are only 8 held-out prompts; a decision needs 20."


def test_the_comparison_is_paired_by_prompt() -> None:
    """Prompts differ far more than the checkpoints do; only pairs show the difference."""
    hardness = list(np.random.default_rng(1).normal(0, 0.2, 40))
    live = shifted(by_prompt(win_rate=0.78), "win_rate", hardness)
    same = verdict(shifted(live, "win_rate", [0.001] * 40), live=live)
    worse = verdict(shifted(live, "win_rate", [-0.05] * 40), live=live)
    lost = [next(r for r in one.reasons if "live checkpoint" in r) for one in (same, worse)]
    assert "within the limit" in lost[0]
    assert "0.050 [0.050, 0.050]" in lost[1]
    assert "is the limit" in lost[1]
    interval = same.figures.candidate.win_rate
    assert interval.high - interval.low > 0.1


def test_a_ratio_of_lengths_is_that_of_the_means() -> None:
    lengths = [4.0, 20.0] * 20
    found = verdict({**by_prompt(), "tokens": lengths})
    said = next(reason for reason in found.reasons if "times the length" in reason)
    assert said.startswith("Its answers have 1.200 [")  # 12 / 10, not the mean of the ratios


def test_without_a_live_checkpoint_differences_are_those_from_best_of_n() -> None:
    found = verdict(by_prompt(win_rate=0.75))
    assert found.figures.live is None
    assert found.figures.difference["win_rate"].mean == pytest.approx(-0.05)
    assert set(found.figures.difference) == {
        "win_rate", "reward", "kl_nats", "length", "truncated_share",
    }  # fmt: skip


def test_gold_is_reported_where_there_is_one_and_decides_nothing() -> None:
    gold = {"gold": [0.1] * 40}
    methods = {m: {**f, **gold} for m, f in evaluated(by_prompt(win_rate=0.78)).items()}
    methods["candidate"]["gold"] = [-9.0] * 40
    found = decide(methods, limits(), Spent())
    assert found.verdict == "promote"
    assert found.figures.candidate.gold is not None
    assert found.figures.candidate.gold.mean == pytest.approx(-9.0)
    assert found.figures.difference["gold"].mean == pytest.approx(-9.1)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"candidate": 3}', '{"candidate": {"win_rate": ["x"]}}']
)
def test_damaged_figures_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "per-prompt.json").write_text(content)
    with pytest.raises(DataError, match=r"per-prompt.json is damaged"):
        read_by_prompt(tmp_path)


def test_missing_figures_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_by_prompt(tmp_path)
    (tmp_path / "per-prompt.json").write_text(json.dumps(evaluated(by_prompt())))
    assert set(read_by_prompt(tmp_path)) == {"candidate", "best-of-n", "reference"}


def test_errors_of_the_gate_by_simulation() -> None:
    """A candidate worse than live by just the margin is promoted in about 2.5% of rounds at most.

    Of 400 rounds, more than 22 would be promoted with probability 0.0003 if the share was 2.5%; the bootstrap
    of 40 prompts is a little narrow, so 5.5% is the bound here.
    """
    rng = np.random.default_rng(2)
    count, verdicts = 400, list[Verdict]()
    live = by_prompt(win_rate=0.78)
    for _ in range(count):
        noise = rng.normal(-0.02, 0.1, 40)
        candidate = shifted(live, "win_rate", list(noise))
        verdicts.append(decide_on_live_alone(candidate, live))
    assert verdicts.count("promote") / count <= 0.055


def decide_on_live_alone(
    candidate: dict[str, list[float]], live: dict[str, list[float]]
) -> Verdict:
    from vbon.distil.loop.gate import _estimate, _kept, _minus

    return _kept(_estimate(_minus(live["win_rate"], candidate["win_rate"])), 0.02, "{}").verdict


# -- drift


def test_equally_many_answers_of_both_times_are_compared() -> None:
    """30 answers before, each prompt asked three times; of 100 after, the newest 30 count."""
    collected = Collected(identity())
    for i in range(130):
        digest = f"p{i // 3}".encode()
        collected.add(digest, SeenPrompt(f"prompt {i // 3}", float(i), 0.0, 4, held_out=False))
        collected.asked.append((float(i), digest))
    before, after = collected.asked_around(29.0, 150)
    assert [one.text for one in before] == [f"prompt {i}" for i in range(10)]
    assert [one.text for one in after] == [f"prompt {i}" for i in range(33, 44)]
    before, after = collected.asked_around(29.0, 6)  # every fifth of the older ones
    assert [one.text for one in before] == [f"prompt {i // 3}" for i in (0, 5, 10, 15, 20, 25)]
    assert [one.text for one in after] == ["prompt 41", "prompt 42", "prompt 43"]


def test_prompts_add_up_their_answers() -> None:
    collected = Collected(identity())
    for time_s, samples in ((5.0, 4), (3.0, 0), (9.0, 4)):
        reward = 1.0 * time_s if samples else None
        collected.add(b"p", SeenPrompt("p", time_s, reward, samples, held_out=False))
    (one,) = collected.to_train_on(8)
    assert (one.time_s, one.reward, one.samples) == (3.0, 5.0, 8)
    assert collected.to_train_on(9) == []
    assert collected.to_train_on(8, since_s=3.0) == []


def seen(
    rng: np.random.Generator, count: int, *, mean: float = 0.0, word: float = 0.3
) -> list[SeenPrompt]:
    """Prompts with a reward, a length and words at random."""
    made = []
    for i in range(count):
        words = [f"w{chr(97 + k)}" for k in range(12) if rng.random() < 0.4]
        words += ["novel"] * int(rng.random() < word)
        text = " ".join(["the", *words])
        made.append(SeenPrompt(text, float(i), float(rng.normal(mean, 1)), 4, held_out=False))
    return made


def test_each_kind_of_change_is_found_and_named() -> None:
    rng = np.random.default_rng(0)
    before = seen(rng, 120)
    longer = [replace(one, text=f"{one.text} and so on and on") for one in seen(rng, 120)]
    for after, words in (
        (longer, "prompts had 5."),
        (seen(rng, 120, mean=1.0), "the reference policy's mean reward was"),
        (seen(rng, 120, word=0.9), "the word 'novel' was in"),
    ):
        found = find_drift(before, after, 0.01)
        assert found is not None
        assert any(one.startswith(words) for one in found.found)
        assert found.p_value <= 0.01


def test_too_few_prompts_and_missing_rewards_find_nothing() -> None:
    rng = np.random.default_rng(0)
    assert find_drift(seen(rng, FEWEST - 1), seen(rng, 100, mean=9), 0.01) is None
    assert find_drift(seen(rng, 100), seen(rng, FEWEST - 1, mean=9), 0.01) is None


def test_the_false_alarms_keep_their_level() -> None:
    """Of 60 pairs of samples of one distribution at the level 0.1: more than 15 with probability 0.0003."""
    rng = np.random.default_rng(3)
    alarms = sum(find_drift(seen(rng, 30), seen(rng, 30), 0.1) is not None for _ in range(60))
    assert alarms <= 15


@pytest.mark.parametrize(
    ("new", "wanted", "due"),
    [(0, 100, 0), (23, 40, 0), (24, 40, 6), (36, 40, 9), (29, 100, 2), (30, 100, 3), (99, 100, 9)],
)
def test_looks_come_at_each_tenth_of_the_new_prompts(new: int, wanted: int, due: int) -> None:
    assert looks_due(new, wanted) == due
