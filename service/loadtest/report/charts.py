"""The charts of the report as data; ``report.js`` of the page draws them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

import numpy as np

from service.loadtest.analysis.text import number
from service.loadtest.config import LoadTestSettings
from service.loadtest.plan import BON
from service.loadtest.report.tables import load_text
from service.loadtest.schema import CellResult, LoadTestResult, Quality, ServedMode
from vbon.maths.distribution import kl_upper_bound, max_win_rate
from vbon.maths.intervals import MeanInterval
from vbon.storage.training_record import HeldoutFigures

CURVE = "best-of-n"
GOLD = "gold reward"


@dataclass(frozen=True, slots=True)
class Point:
    """One point; ends that are ``None`` have no bar.

    Attributes:
        text: label beside it.
        about: what the pointer shows.
    """

    x: float
    y: float
    x_low: float | None = None
    x_high: float | None = None
    y_low: float | None = None
    y_high: float | None = None
    text: str = ""
    about: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one variant, or of a curve in grey.

    Attributes:
        name: the variant, or the curve's name.
        line: how its points are connected; ``None`` if they are not.
        area: True for a band between the lower and the upper ends of y.
        marked: True if each point has a symbol.
    """

    name: str
    points: list[Point]
    line: str | None = None
    area: bool = False
    marked: bool = True


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis with its label; ``log`` for a logarithmic one."""

    label: str
    log: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart with its title and the caption below it; ``label`` describes it to who cannot see it."""

    title: str
    caption: str
    x: Axis
    y: Axis
    series: list[Series] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The title with both axes."""
        return f"{self.title}: {self.y.label} over {self.x.label}"


def variants_of(result: LoadTestResult) -> list[str]:
    """Every variant of the run, in the order of the first mention."""
    names = [cell.variant for cell in result.cells]
    names += [one.variant for one in result.quality]
    return list(dict.fromkeys(names + [one.variant for one in result.costs]))


def charts_of(result: LoadTestResult) -> list[Chart]:
    """Every chart that the result has figures for."""
    drawn = [
        reward_cost_chart(result),
        latency_chart(result),
        curve_chart(result),
        frontier_chart(result),
        reward_chart(result),
    ]
    return [chart for chart in drawn if any(one.points and one.marked for one in chart.series)]


def latency_chart(result: LoadTestResult) -> Chart:
    """P95 latency over throughput, with a line through the load levels of each variant."""
    series = []
    for kind, line in (("closed", "solid"), ("open", "dashed")):
        for variant in variants_of(result):
            own = [c for c in result.cells if c.variant == variant and c.load_kind == kind]
            cells = sorted((c for c in own if c.e2e_ms is not None), key=lambda c: c.load)
            if cells:
                series.append(Series(variant, [_latency_point(c) for c in cells], line))
    return Chart(
        "Throughput and latency",
        "P95 latency, with one line per mode through its load levels: requests in flight, or requests per "
        "second where marked so and dashed. Right and down is better.",
        Axis("requests per second, median of rounds", log=True),
        Axis("E2E p95, ms", log=True),
        series,
    )


def _latency_point(cell: CellResult) -> Point:
    assert cell.e2e_ms is not None
    rate, latency = cell.requests_per_s, cell.e2e_ms
    level = f"{cell.load:g}" if cell.load_kind == "closed" else f"{cell.load:g}/s"
    about = (
        f"{cell.variant}, {load_text(cell)}: {number(rate.median)} requests/s, E2E p50 {latency.p50:.0f}, "
        f"p95 {latency.p95:.0f}, p99 {latency.p99:.0f} ms"
    )
    low, high = (rate.low, rate.high) if rate.low > 0 else (None, None)
    return Point(rate.median, latency.p95, low, high, text=level, about=about)


def reward_cost_chart(result: LoadTestResult) -> Chart:
    """Mean reward over the price of 1,000 answers."""
    kind = _kind_of_reward(result)
    costs = {cost.variant: cost for cost in result.costs}
    series = []
    for one in result.quality:
        cost, reward = costs.get(one.variant), one.gold if kind == GOLD else one.reward
        if reward is None or cost is None:
            continue
        about = f"{one.variant}: {number(cost.per_1000)} per 1,000 answers, {kind} {reward}"
        point = Point(
            cost.per_1000,
            reward.mean,
            cost.low,
            cost.high,
            reward.low,
            reward.high,
            one.variant,
            about,
        )
        series.append(Series(one.variant, [point]))
    return Chart(
        "Reward and cost",
        "Bars: 95% interval over prompts, and range over rounds. Up and left is better.",
        Axis(f"{result.settings['currency']} per 1,000 answers", log=True),
        Axis(f"mean {kind}"),
        series,
    )


def _kind_of_reward(result: LoadTestResult) -> str:
    """The reward by which the verdict is, so that charts show the same."""
    return GOLD if any(pair.judged_by == "gold" for pair in result.break_even) else "reward"


def reward_chart(result: LoadTestResult) -> Chart:
    """The share of single answers whose reward is at most so high, a line per variant."""
    series = []
    for one in result.quality:
        rewards = np.sort(np.asarray(one.rewards, dtype=np.float64))
        if not len(rewards):
            continue
        shares = np.linspace(0, 1, min(len(rewards), 41))
        points = [
            Point(
                float(np.quantile(rewards, share)),
                float(share),
                about=f"{one.variant}: {share:.0%}",
            )
            for share in shares
        ]
        series.append(Series(one.variant, points, "solid"))
    return Chart(
        "Rewards of single answers",
        "Share of the answers with at most this reward. A line further right is better.",
        Axis("reward of an answer"),
        Axis("share of the answers"),
        series,
    )


def frontier_chart(result: LoadTestResult) -> Chart:
    """Win rate over KL for each variant, beside the theoretical curve of best-of-n."""
    largest = max([2, *(cell.n for cell in result.cells), *(one.n for one in result.quality)])
    ns = np.unique(np.geomspace(1, 2 * largest, 60))
    theory = [Point(float(kl_upper_bound(n)), float(max_win_rate(n))) for n in ns]
    series = [Series(CURVE, theory, "solid", marked=False)]
    modes = {mode.name: mode for mode in result.server.modes}
    for one in result.quality:
        found = _kl(one, modes.get(one.mode))
        if one.win_rate is None or found is None:
            continue
        (kl, low, high), label, heldout = found
        about = f"{one.variant}: {label} {kl:.3f} nats, win rate here {one.win_rate}"
        if heldout is not None:
            about += f", win rate in the training record {heldout.win_rate.mean:.3f}"
        win = one.win_rate
        point = Point(kl, win.mean, low, high, win.low, win.high, one.variant, about)
        series.append(Series(one.variant, [point]))
    return Chart(
        "KL and win rate",
        "Grey: best-of-n in theory, at its KL upper bound. The KL of tuned policies is from their training "
        "records; win rates were measured here.",
        Axis("KL from the reference policy, nats"),
        Axis("win rate against one reference sample"),
        series,
    )


def _kl(
    one: Quality, mode: ServedMode | None
) -> tuple[tuple[float, float, float], str, HeldoutFigures | None] | None:
    """KL of a variant with its ends, what it is, and held-out figures; ``None`` if it is unknown."""
    record = None if mode is None else mode.training
    heldout = None if record is None else record.heldout
    if one.mode == BON:
        return (kl_upper_bound(one.n),) * 3, "KL at most", heldout
    if mode is None or mode.reranks or heldout is None:
        return None
    held = heldout.kl_nats
    return (held.mean, held.low, held.high), "KL in the training record", heldout


def curve_chart(result: LoadTestResult) -> Chart:
    """Best-of-n's reward over n, with the tuned policies' rewards as horizontal lines."""
    kind = _kind_of_reward(result)
    curve = result.gold_curve if kind == GOLD else result.curve
    chart = Chart(
        "Reward of best-of-n",
        "Unbiased, from one batch of candidates, with its 95% interval; dashed: tuned policies. Where they "
        "meet, both have the same reward.",
        Axis("n of best-of-n", log=True),
        Axis(f"mean {kind}"),
    )
    if not curve:
        return chart
    points = [_interval_point(p.n, p.reward, f"best-of-{p.n}: {kind} {p.reward}") for p in curve]
    chart.series.append(Series(CURVE, points, area=True, marked=False))
    chart.series.append(
        Series(CURVE, [Point(p.x, p.y, about=p.about) for p in points], "solid", marked=True)
    )
    tuned = {pair.tuned for pair in result.break_even}
    for one in result.quality:
        reward = one.gold if kind == GOLD else one.reward
        if one.variant in tuned and reward is not None:
            ends = [Point(1, reward.mean, text=one.variant), Point(curve[-1].n, reward.mean)]
            chart.series.append(Series(one.variant, ends, "dashed", marked=False))
    return chart


def _interval_point(x: float, value: MeanInterval, about: str) -> Point:
    return Point(x, value.mean, y_low=value.low, y_high=value.high, about=about)


@dataclass(frozen=True, slots=True)
class WarningGroup:
    """Warnings that the same command mends."""

    heading: str
    command: str
    texts: list[str]


def grouped_warnings(result: LoadTestResult) -> list[WarningGroup]:
    """The run's warnings in at most three groups."""
    groups: dict[str, list[str]] = {heading: [] for heading in (_AGAIN, _QUALITY, _OTHER)}
    for text in result.warnings:
        words = text.lower()
        if any(word in words for word in ("reward", "score", "prompt", "sampling", "trained")):
            groups[_QUALITY].append(text)
        elif any(
            word in words for word in ("block", "load", "round", "rate", "interrupted", "p99")
        ):
            groups[_AGAIN].append(text)
        else:
            groups[_OTHER].append(text)
    return [
        WarningGroup(heading, _command(result, heading), texts)
        for heading, texts in groups.items()
        if texts
    ]


_AGAIN = "Speed: measure again, with more rounds at calibrated loads"
_QUALITY = "Quality: score more answers"
_OTHER = "Client and setup: send the load from another machine that has nothing else to do"


# Settings with which the same is asked of the same server.
_SAME = (
    *("api", "api_key_env", "prompts", "prompt_column", "encoding", "prompt_words", "prompt_count"),
    *("max_tokens", "temperature"),
)
_MOST_ROUNDS = 1000
_FIELDS = LoadTestSettings.model_fields


def _command(result: LoadTestResult, heading: str) -> str:
    """The load test of the same modes and prompts that mends what a heading says."""
    settings = dict(result.settings)
    flags: dict[str, object] = {"url": result.server.url}
    flags |= {name: ",".join(map(str, settings.get(name) or [])) for name in ("modes", "n")}
    if settings.get("supervised"):  # a load test of the page, whose file of prompts is gone
        settings |= {"prompts": None, "prompt_column": None, "encoding": None}
    flags |= {name: settings[name] for name in _SAME if _is_chosen(name, settings.get(name))}
    if heading == _AGAIN:
        flags["rounds"] = min(_MOST_ROUNDS, max(10, 2 * (settings.get("rounds") or 0)))
    elif heading == _QUALITY:
        scored = max(64, 4 * (settings.get("quality_prompts") or 0))
        flags["quality_prompts"] = scored
        known = settings.get("prompt_count") or _FIELDS["prompt_count"].default
        flags["prompt_count"] = max(known, scored)  # no more than are used can be scored
    words = ["vbon", "loadtest", "run"]
    for name, value in flags.items():
        words += [f"--{name.replace('_', '-')}", str(value)] if value != "" else []
    words += ["--ignore-eos"] if settings.get("ignore_eos") else []
    return shlex.join(words)


def _is_chosen(name: str, value: object) -> bool:
    """True if a setting is another than the default."""
    return value is not None and value != _FIELDS[name].default
