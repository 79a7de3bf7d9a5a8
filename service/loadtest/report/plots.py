"""Draws the plots of the report; texts of a run are escaped, because plotly interprets markup in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from service.loadtest.analysis.text import number
from service.loadtest.plan import BON
from service.loadtest.report.tables import load_text
from service.loadtest.schema import BreakEven, CellResult, LoadTestResult, Quality, ServedMode
from vbon.maths.distribution import kl_upper_bound, max_win_rate
from vbon.maths.intervals import MeanInterval
from vbon.report_html.page import COLOURS, markup_safe
from vbon.storage.training_record import HeldoutFigures

CURVE_COLOUR = "#808080"
CURVE_NAME = "best-of-n"
GOLD = "gold reward"
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "star", "cross")


def variant_styles(result: LoadTestResult) -> dict[str, tuple[str, str]]:
    """Colour and symbol of each variant, the same in every plot."""
    names = dict.fromkeys([cell.variant for cell in result.cells])
    names |= dict.fromkeys([one.variant for one in result.quality])
    names |= dict.fromkeys([one.variant for one in result.costs])
    return {
        name: (COLOURS[i % len(COLOURS)], _SYMBOLS[i % len(_SYMBOLS)])
        for i, name in enumerate(names)
    }


Styles = dict[str, tuple[str, str]]


def latency_figure(result: LoadTestResult, styles: Styles) -> go.Figure:
    """Plot of p95 latency over throughput, with a line through the load levels of each variant."""
    figure = _figure("requests per second (median of rounds)", "E2E latency, ms")
    for kind in ("closed", "open"):
        for variant, (colour, symbol) in styles.items():
            line = [c for c in result.cells if c.variant == variant and c.load_kind == kind]
            cells = sorted((c for c in line if c.e2e_ms is not None), key=lambda c: c.load)
            if not cells:
                continue
            dash = "solid" if kind == "closed" else "dot"
            figure.add_scatter(
                x=[c.requests_per_s.median for c in cells],
                y=[c.e2e_ms.p95 for c in cells if c.e2e_ms],
                error_x=_bars(
                    [
                        (c.requests_per_s.median, c.requests_per_s.low, c.requests_per_s.high)
                        for c in cells
                    ]
                ),
                mode="lines+markers+text",
                text=[_level(c) for c in cells],
                textposition="top center",
                textfont={"size": 10},
                meta=variant,
                line={"color": colour, "dash": dash},
                marker={"color": colour, "symbol": symbol, "size": 9},
                hovertext=[_hover(c) for c in cells],
                hovertemplate="%{hovertext}<extra></extra>",
            )
    figure.update_yaxes(type="log")
    figure.update_xaxes(type="log")
    return figure


def _level(cell: CellResult) -> str:
    """The load level, short enough for a label in the plot."""
    return f"{cell.load:g}" if cell.load_kind == "closed" else f"{cell.load:g}/s"


def _hover(cell: CellResult) -> str:
    lines = [f"<b>{markup_safe(cell.variant)}</b>, {load_text(cell)}"]
    lines.append(f"{number(cell.requests_per_s.median)} requests/s")
    lines.append(f"{number(cell.returned_tokens_per_s.median)} returned tokens/s")
    for name, found in (("E2E", cell.e2e_ms), ("TTFT", cell.ttft_ms)):
        if found is not None:
            lines.append(f"{name} p50 {found.p50:.0f}, p95 {found.p95:.0f}, p99 {found.p99:.0f} ms")
    return "<br>".join(lines)


def reward_cost_figure(result: LoadTestResult, styles: Styles) -> go.Figure:
    """Plot of mean reward over the price of 1,000 answers."""
    currency = markup_safe(result.settings["currency"])
    kind = _kind_of_reward(result)
    figure = _figure(f"{currency} per 1,000 answers", f"mean {kind}")
    costs = {cost.variant: cost for cost in result.costs}
    for one in result.quality:
        cost = costs.get(one.variant)
        reward, win_rate = one.reward, one.win_rate
        if kind == GOLD:
            reward, win_rate = one.gold, one.gold_win_rate
        if reward is None or cost is None:
            continue
        hover = (
            f"<b>{markup_safe(one.variant)}</b><br>{number(cost.per_1000)} {currency} per 1,000"
            f"<br>{kind} {_text(reward)}<br>win rate {_text(win_rate)}"
        )
        price = (cost.per_1000, cost.low, cost.high)
        _add_point(figure, one.variant, styles[one.variant], price, reward, hover)
    figure.update_xaxes(type="log")
    return figure


def _kind_of_reward(result: LoadTestResult) -> str:
    """The reward by which the verdict is, so that plots show the same."""
    return GOLD if any(pair.judged_by == "gold" for pair in result.break_even) else "reward"


def reward_figure(result: LoadTestResult, styles: Styles) -> go.Figure:
    """Plot of the distribution of single answers' rewards."""
    figure = _figure("reward of an answer", "")
    for one in reversed(result.quality):
        if not one.rewards:
            continue
        colour, _ = styles[one.variant]
        figure.add_violin(
            x=one.rewards,
            name=markup_safe(one.variant),
            orientation="h",
            side="positive",
            width=1.6,
            points=False,
            meanline={"visible": True},
            line={"color": colour},
            meta=one.variant,
            hoveron="violins",
            spanmode="hard",
        )
    figure.update_yaxes(showgrid=False)
    return figure


def frontier_figure(result: LoadTestResult, styles: Styles) -> go.Figure:
    """Plot of win rate over KL for each variant, beside the theoretical curve of best-of-n."""
    figure = _figure("KL from the reference policy, nats", "win rate against one reference sample")
    largest = max([2, *(cell.n for cell in result.cells), *(one.n for one in result.quality)])
    ns = np.unique(np.geomspace(1, 2 * largest, 60))
    figure.add_scatter(
        x=[kl_upper_bound(n) for n in ns],
        y=[max_win_rate(n) for n in ns],
        mode="lines",
        line={"color": CURVE_COLOUR},
        meta=CURVE_NAME,
        hoverinfo="skip",
    )
    modes = {mode.name: mode for mode in result.server.modes}
    for one in result.quality:
        found = _kl(one, modes.get(one.mode))
        if one.win_rate is None or found is None:
            continue
        kl, label, heldout = found
        hover = (
            f"<b>{markup_safe(one.variant)}</b><br>{label} {kl[0]:.3f} nats"
            f"<br>win rate here {_text(one.win_rate)}"
        )
        if heldout is not None:
            hover += f"<br>win rate in the training record {heldout.win_rate.mean:.3f}"
        _add_point(figure, one.variant, styles[one.variant], kl, one.win_rate, hover)
    return figure


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


def decided_pairs(result: LoadTestResult) -> list[BreakEven]:
    """The pairs with a decision and a known cost of training."""
    return [p for p in result.break_even if p.training_cost is not None and p.state == "decided"]


def break_even_figure(result: LoadTestResult, styles: Styles) -> go.Figure:
    """Plot of total cost over answers served; where lines cross, the fine-tune has paid for itself."""
    currency = markup_safe(result.settings["currency"])
    figure = _figure("answers served", f"total cost, {currency}")
    costs = {cost.variant: cost.per_1000 / 1000 for cost in result.costs}
    paid = decided_pairs(result)
    crossings = [pair.requests for pair in paid if pair.requests is not None]
    middle = float(np.median(crossings)) if crossings else 1e6
    served = np.geomspace(middle / 100, middle * 100, 81)
    fixed = {pair.tuned: pair.training_cost or 0.0 for pair in paid}
    fixed |= {pair.sampled: 0.0 for pair in paid}
    for variant, training in fixed.items():
        colour, _ = styles[variant]
        figure.add_scatter(
            x=served,
            y=training + served * costs[variant],
            mode="lines",
            meta=variant,
            line={"color": colour},
            hovertext=[
                f"<b>{markup_safe(variant)}</b><br>{number(float(n))} answers<br>"
                f"{number(float(training + n * costs[variant]))} {currency}"
                for n in served
            ],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    for pair in paid:
        if pair.requests is not None and pair.requests_high is not None:
            at = (pair.training_cost or 0.0) + pair.requests * costs[pair.tuned]
            figure.add_scatter(
                x=[pair.requests],
                y=[at],
                mode="markers+text",
                meta=pair.tuned,
                text=[f"{number(pair.requests)} answers"],
                textposition="bottom right",
                marker={"color": CURVE_COLOUR, "size": 9, "symbol": "x"},
                hoverinfo="skip",
            )
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    return figure


def curve_figure(result: LoadTestResult, styles: Styles) -> go.Figure:
    """Plot of best-of-n's reward over n, with the tuned policies' rewards as horizontal lines."""
    kind = _kind_of_reward(result)
    curve = result.gold_curve if kind == GOLD else result.curve
    figure = _figure("n of best-of-n", f"mean {kind}")
    ns = [point.n for point in curve]
    figure.add_scatter(
        x=[*ns, *ns[::-1]],
        y=[p.reward.high for p in curve] + [p.reward.low for p in curve][::-1],
        fill="toself",
        fillcolor="rgba(128,128,128,0.2)",
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        meta=CURVE_NAME,
    )
    figure.add_scatter(
        x=ns,
        y=[p.reward.mean for p in curve],
        mode="lines+markers",
        meta=CURVE_NAME,
        line={"color": CURVE_COLOUR},
        marker={"size": 5},
        hovertext=[f"best-of-{p.n}<br>{kind} {_text(p.reward)}" for p in curve],
        hovertemplate="%{hovertext}<extra></extra>",
    )
    tuned = {pair.tuned for pair in result.break_even}
    for one in result.quality:
        reward = one.gold if kind == GOLD else one.reward
        if one.variant not in tuned or reward is None:
            continue
        colour, _ = styles[one.variant]
        figure.add_scatter(
            x=[1, ns[-1]],
            y=[reward.mean] * 2,
            mode="lines+text",
            meta=one.variant,
            text=[markup_safe(one.variant), ""],
            textposition="top right",
            line={"color": colour, "dash": "dash"},
            hovertext=[f"<b>{markup_safe(one.variant)}</b><br>{kind} {_text(reward)}"] * 2,
            hovertemplate="%{hovertext}<extra></extra>",
        )
    figure.update_xaxes(
        type="log", tickvals=[n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n <= ns[-1]]
    )
    return figure


def _add_point(
    figure: go.Figure,
    variant: str,
    style: tuple[str, str],
    x: tuple[float, float, float],
    y: MeanInterval,
    hover: str,
) -> None:
    """Add a variant's labelled point with bars; ``x`` is a value with its low and high end."""
    colour, symbol = style
    figure.add_scatter(
        x=[x[0]],
        y=[y.mean],
        mode="markers+text",
        meta=variant,
        text=[markup_safe(variant)],
        textposition="bottom center",
        error_x=_bars([x]),
        error_y=_bars([(y.mean, y.low, y.high)]),
        marker={"color": colour, "symbol": symbol, "size": 11},
        hovertext=[hover],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _text(value: MeanInterval | None) -> str:
    return "-" if value is None else f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _bars(values: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "thickness": 1,
        "width": 0,
        "array": [high - mid for mid, _, high in values],
        "arrayminus": [mid - low for mid, low, _ in values],
    }


def _figure(x: str, y: str) -> go.Figure:
    figure = go.Figure(layout={"template": "none"})
    figure.update_layout(
        showlegend=False,
        height=400,
        autosize=True,
        hovermode="closest",
        margin={"l": 64, "r": 16, "t": 24, "b": 52},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        xaxis={"title": {"text": x}, "zeroline": False, "exponentformat": "none"},
        yaxis={
            "title": {"text": y},
            "zeroline": False,
            "automargin": True,
            "exponentformat": "none",
        },
    )
    return figure
