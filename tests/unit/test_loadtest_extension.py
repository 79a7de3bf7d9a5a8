"""A load test gets more rounds, once, if the width of its ranges is all that a decision lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.loadtest.analysis import extension as extensions
from service.loadtest.analysis.comparison_words import levels_statement
from service.loadtest.analysis.extension import extended_rounds, extension_words, too_long, wanted
from service.loadtest.analysis.verdict import width_reasons
from service.loadtest.config import LoadTestSettings
from service.loadtest.load import load_test
from service.loadtest.schema import BreakEven, CellResult, Extension
from tests.unit.slow_server import SlowServer, listening
from tests.unit.test_loadtest import CLOCKED, Quiet, measure
from tests.unit.virtual_clock import virtually
from vbon.maths.intervals import MedianRange


def pair(
    ratio: tuple[float, float], requests: tuple[float, float] | None = None, *reasons: str
) -> BreakEven:
    """A pair with these ranges of its price ratio and break-even, and further reasons."""
    low, high = requests or (None, None)
    found = BreakEven.model_construct(
        tuned="vbon",
        sampled="bon",
        cost_ratio=MedianRange(ratio[0], *ratio, 5),
        requests_low=low,
        requests_high=high,
    )
    return found.model_copy(update={"reasons": [*width_reasons(found), *reasons]})


@pytest.mark.parametrize(("rounds", "total"), [(5, 9), (6, 10), (7, 9), (8, 10), (9, 13), (10, 12)])
def test_an_extension_leaves_out_one_more_round_at_each_end(rounds: int, total: int) -> None:
    """Of 9 rounds one is left out at each end, of 12 two, and rounds come in pairs."""
    assert extended_rounds(rounds) == total


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (pair((1.0, 1.6)), "the price ratio differed between rounds by a factor of 1.6 (at most 1.5)"),
        (pair((1.0, 2.25)), "factor of 2.25"),
        (pair((1.0, 2.3)), None),  # more than slightly
        (pair((0.0, 1.0)), None),  # a round without a price
        (pair((1.0, 1.4)), None),  # decided
        (pair((1.0, 1.4), (100, 440)), "the break-even point differed between rounds by a factor of 4.4"),
        (pair((1.0, 1.6), (100, 460)), None),
        (pair((1.0, 1.6), (0, 460)), None),
        (pair((1.0, 1.6), None, "one side was streamed"), None),  # more rounds would not decide
    ],
)  # fmt: skip
def test_who_profits_from_more_rounds(found: BreakEven, words: str | None) -> None:
    extension = wanted([pair((1.0, 1.1)), found], 5)
    if words is None:
        assert extension is None
        return
    assert extension is not None
    assert (extension.rounds, extension.added, extension.coverage) == (9, 4, 0.918)
    assert words in extension.because
    assert extension_words(extension).startswith(
        "4 more rounds were added because, for vbon and bon: after 5 rounds, the "
    )
    assert wanted([found], 4) is None


def test_time_limits_an_extension() -> None:
    extension = Extension(rounds=9, added=4, because="vbon and bon: wide", coverage=0.9)
    settings = LoadTestSettings(max_s=100)
    assert too_long(settings, extension, 22.2) is None
    assert "run the same command with --rounds 9" in str(too_long(settings, extension, 22.3))
    allowed = settings.model_copy(update={"limit_s": 150.0})
    assert too_long(allowed, extension, 16.6) is None
    assert "(at most 2.5 minutes: " in str(too_long(allowed, extension, 16.7))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of rounds after which an analysis that always wants two more rounds was asked."""
    rounds: list[int] = []

    def always(pairs: Any, count: int) -> Extension:
        rounds.append(count)
        return Extension(rounds=count + 2, added=2, because="it must be", coverage=0.9)

    monkeypatch.setattr(load_test, "wanted", always)
    return rounds


SHORT: dict[str, Any] = {"duration_s": 0.1, "warmup_s": 0, "concurrency": [1]}


@virtually(*CLOCKED)
async def test_added_rounds_are_measured_once_and_told(tmp_path: Path, asked: list[int]) -> None:
    quiet = Quiet()
    async with listening(SlowServer(first_s=0.005, tokens=1)) as server:
        result = await measure(server, tmp_path, quiet, rounds=2, **SHORT)
        assert quiet.blocks == [f"ref, 1 in flight, round {i}" for i in range(4)]
        assert result.extension is not None
        assert (result.complete, result.blocks_planned, result.extension.added) == (True, 4, 2)
        told = "2 more rounds were added because, for it must be."
        assert any(told in line for line in result.warnings)
        assert any(told in line for line in quiet.notes)
        # The same command goes on with the same run: there is no second look.
        again = Quiet()
        assert (await measure(server, tmp_path, again, rounds=2, **SHORT)).blocks_done == 4
        assert (again.blocks, asked) == ([], [2])


@pytest.mark.parametrize("changes", [{"extend": False}, {"max_s": 0.3}, {"requests": 2}])
@virtually(*CLOCKED)
async def test_no_rounds_are_added(
    tmp_path: Path, asked: list[int], changes: dict[str, Any]
) -> None:
    quiet = Quiet()
    async with listening(SlowServer(first_s=0.005, tokens=1)) as server:
        result = await measure(server, tmp_path, quiet, **{"rounds": 4, **SHORT, **changes})
    assert len(quiet.blocks) == 4
    assert result.extension is None
    assert any("more rounds might decide" in note for note in quiet.notes) == ("max_s" in changes)


def cell(variant: str, load: float, kind: str = "closed") -> Any:
    return CellResult.model_construct(variant=variant, load=load, load_kind=kind)


def test_a_comparison_names_levels_that_differ_and_how_to_measure_them_again() -> None:
    """Calibrations of two runs may choose different levels, whose cells are not compared."""
    a = [cell("bon", load) for load in (1, 2)] + [cell("vbon", load) for load in (1, 16, 32)]
    b = [cell("bon", load) for load in (1, 2)] + [cell("vbon", load) for load in (1, 12, 24)]
    assert levels_statement(a, a) == ""
    assert levels_statement(a, b) == (
        "Only equal load levels are compared, and these differ: vbon 1, 16, 32 in A and 1, 12, 24 in B. "
        "To compare the others too, measure B again with --concurrency 1,2,16,32."
    )
    searched = [cell("bon", 4.5, "open")]
    assert levels_statement(searched, [cell("bon", 4, "open")]).endswith("--rate 4.5.")
    assert levels_statement(a, [cell("other", 3), *searched]) == ""  # in one run only


def test_the_documented_share_is_the_computed_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "loadtest.md").read_text(encoding="utf-8")
    assert f"{extensions.least_coverage(5, 9):.0%}" == "92%"
    assert "at least 92%" in page
