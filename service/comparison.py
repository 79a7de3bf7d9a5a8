"""The terminal output of ``vbon compare``: the verdict of a comparison and its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.loadtest.analysis.decision_rewards import difference_words, reward_side
from service.loadtest.analysis.text import interval_text, number
from vbon.maths.intervals import MeanInterval
from vbon.report_html import ReportTable
from vbon.terminal import print_tables, print_verdict, print_warnings

_REFERENCE = "ref"  # its policy's name on every server
Result = Mapping[str, Any]  # the response of /compare, or a part of it


def print_comparison(console: Console, results: Sequence[Result], *, full: bool = False) -> None:
    """Print the verdict in three sentences and one table; all tables and answers if ``full``.

    Args:
        results: one response of ``/compare`` for each concurrency.
    """
    print_verdict(console, verdict(results))
    if full:
        for result in results:
            console.print(comparison_table(result))
        console.print(answers_table(results[0]))
    else:
        print_tables(console, [summary_table(results)])
    warnings = [
        f"{mode['mode']}: {difference}"
        for mode in results[0]["modes"]
        for difference in mode.get("sampling_differences", [])
    ]
    print_warnings(console, warnings, full=full, rest="with --full")
    if not full:
        console.print("every figure and the answers: the same command with --full", style="dim")


@dataclass(frozen=True, slots=True)
class _Pair:
    """The two modes that a verdict is about.

    Attributes:
        decides: True if they are one fine-tuned sample and several samples of a policy.
    """

    one: Result
    other: Result
    decides: bool


def verdict(results: Sequence[Result]) -> list[str]:
    """The conclusions of a comparison: speed under load, reward, and latency without load."""
    loaded = max(results, key=lambda result: result["concurrency"])
    pair = _pair(loaded)
    if pair is None:
        return ["Only one mode was asked, so nothing is compared: give several with --modes."]
    kind, given_up = _given_up(loaded, pair)
    one, other = _name(pair.one), _name(pair.other)
    rates = [mode["requests_per_s"]["median"] for mode in (pair.one, pair.other)]
    reward = {
        "better": f"and has more {kind}",
        "worse": f"and has less {kind}",
        "unclear": f"and their {kind}s are too close to call",
    }[reward_side(given_up)]
    if given_up is None:
        reward = "and their rewards were not measured"
    speed = (
        f"{one} answers {number(rates[0] / rates[1])} times as many requests/s as {other} "
        f"at {loaded['concurrency']} in flight, {reward}."
    )
    lines = [speed]
    if given_up is not None:
        rates_won = _win_rates(loaded, pair, kind)
        lines.append(
            f"{kind.capitalize()} of {one}: {difference_words(other, given_up)}{rates_won}."
        )
    return [*lines, " ".join([*_alone(results, pair), *_whether_it_pays(pair)])]


def _pair(result: Result) -> _Pair | None:
    """A fine-tuned sample against the largest N if both were asked, otherwise a mode against the baseline."""
    modes = list(result["modes"])
    base = next(mode for mode in modes if mode["mode"] == result["baseline"])
    others = [mode for mode in modes if mode is not base]
    sampled = max(modes, key=lambda mode: int(mode["n"]))
    # Not the baseline: without ref among the modes, that is the first of them, which may be the checkpoint.
    policies = [mode["policy"] for mode in modes]
    reference = next((one for one in policies if one["name"] == _REFERENCE), sampled["policy"])
    tuned = [mode for mode in modes if mode["n"] == 1 and mode["policy"] != reference]
    if sampled["n"] > 1 and tuned:
        return _Pair(tuned[0], sampled, decides=True)
    return _Pair(others[0], base, decides=False) if others else None


def _given_up(result: Result, pair: _Pair) -> tuple[str, MeanInterval | None]:
    """The reward that the first mode of a pair gives up against the second, by gold if it was measured."""
    one, other = pair.one["mode"], pair.other["mode"]
    for found in result["head_to_head"]:
        if {found["mode"], found["against"]} != {one, other}:
            continue
        for kind, name in (("gold reward", "gold_difference"), ("reward", "reward_difference")):
            if found.get(name) is not None:
                gained = MeanInterval(**found[name])
                return kind, gained if found["mode"] == other else _negative(gained)
    return "reward", None


def _negative(value: MeanInterval) -> MeanInterval:
    return MeanInterval(-value.mean, -value.high, -value.low, value.count)


def _win_rates(result: Result, pair: _Pair, kind: str) -> str:
    name = "gold_win_rate" if kind == "gold reward" else "win_rate"
    found = [_interval(mode[name]) for mode in (pair.one, pair.other)]
    if found[0] is None:  # it is the baseline, or was not scored
        return ""
    told = [interval_text(rate) for rate in found if rate is not None]
    return f"; win rate against {result['baseline']} {' instead of '.join(told)}"


def _alone(results: Sequence[Result], pair: _Pair) -> list[str]:
    """The latency without load, if it was measured."""
    alone = next((result for result in results if result["concurrency"] == 1), None)
    if alone is None:
        return []
    p50 = {mode["mode"]: mode["e2e_ms"]["p50"] for mode in alone["modes"]}
    one, other = (p50[mode["mode"]] for mode in (pair.one, pair.other))
    return [f"A request by itself takes {number(one)} ms instead of {number(other)} ms (p50)."]


def _whether_it_pays(pair: _Pair) -> list[str]:
    if not pair.decides:
        return [
            "Compare a fine-tuned checkpoint with a mode of several samples to see what it saves."
        ]
    return [
        f"`vbon loadtest run --modes {pair.one['mode']},{pair.other['mode']},ref --n {pair.other['n']}` "
        "measures after how many answers fine-tuning pays."
    ]


def summary_table(results: Sequence[Result]) -> ReportTable:
    """One row per mode: rewards, speed at the highest concurrency, latency at the lowest."""
    loaded = max(results, key=lambda result: result["concurrency"])
    idle = min(results, key=lambda result: result["concurrency"])
    golden = any(mode["gold_reward"] is not None for mode in loaded["modes"])
    both = idle is not loaded
    alone = {mode["mode"]: mode["e2e_ms"]["p50"] for mode in idle["modes"]}
    at = loaded["concurrency"]
    cells: list[tuple[str, Callable[[Result], str]]] = [
        ("mode", _name),
        ("reward", lambda mode: _interval_text(mode["reward"])),
        *([("gold reward", lambda mode: _interval_text(mode["gold_reward"]))] if golden else []),
        (f"win rate against {loaded['baseline']}", lambda mode: _interval_text(mode["win_rate"])),
        (f"requests/s at {at}", lambda mode: number(mode["requests_per_s"]["median"])),
        (f"p95 at {at}, ms", lambda mode: f"{mode['e2e_ms']['p95']:,.0f}"),
        *(
            [(f"p50 at {idle['concurrency']}, ms", lambda mode: f"{alone[mode['mode']]:,.0f}")]
            if both
            else []
        ),
    ]
    sampling = loaded["sampling"]
    caption = (
        f"{len(loaded['prompts'])} prompts x {loaded['repeats']} repeats, temperature "
        f"{sampling['temperature']:g}, max_tokens {sampling['max_tokens']}. Means [95% interval over "
        f"prompts]; speed at {at} requests in flight, the median of the repeats."
    )
    rows = tuple(tuple(cell(mode) for _, cell in cells) for mode in loaded["modes"])
    columns = tuple(name for name, _ in cells)
    return ReportTable("comparison", "Each mode in a line", caption, columns, rows, None)


def _name(mode: Result) -> str:
    return f"{mode['mode']} (N={mode['n']})" if mode["n"] > 1 else str(mode["mode"])


def _interval(value: dict[str, Any] | None) -> MeanInterval | None:
    return None if value is None else MeanInterval(**value)


def _interval_text(value: dict[str, Any] | None) -> str:
    return interval_text(_interval(value))


def _ratio(value: dict[str, float]) -> str:
    return f"{value['median']:.2f}x [{value['low']:.2f}, {value['high']:.2f}]"


def comparison_table(result: Result) -> Table:
    """One comparison as a table with one column per mode."""
    sampling = result["sampling"]
    load = "idle engine" if result["concurrency"] == 1 else "loaded engine"
    table = Table(
        title=f"{len(result['prompts'])} prompts x {result['repeats']} repeats, concurrency "
        f"{result['concurrency']} ({load}), temperature {sampling['temperature']:g}, "
        f"max_tokens {sampling['max_tokens']}",
        caption=escape("means [95% interval over prompts], medians [range over repeats]; ")
        + f"win rate and ratios against {result['baseline']}; gold reward never selects",
    )
    table.add_column("")
    for mode in result["modes"]:
        table.add_column(_name(mode), justify="right")
    rows: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
        ("mean reward", lambda m: _interval_text(m["reward"])),
        ("win rate", lambda m: _interval_text(m["win_rate"])),
        ("mean gold reward", lambda m: _interval_text(m["gold_reward"])),
        ("gold win rate", lambda m: _interval_text(m["gold_win_rate"])),
        (
            "E2E latency p50 / p95, ms",
            lambda m: f"{m['e2e_ms']['p50']:.0f} / {m['e2e_ms']['p95']:.0f}",
        ),
        ("E2E latency ratio", lambda m: _ratio(m["ratio_e2e"])),
        ("requests/s", lambda m: f"{m['requests_per_s']['median']:.2f}"),
        ("requests/s ratio", lambda m: _ratio(m["ratio_requests_per_s"])),
        ("generated tokens/s", lambda m: f"{m['generated_tokens_per_s']['median']:.0f}"),
        ("returned tokens/s", lambda m: f"{m['returned_tokens_per_s']['median']:.0f}"),
        (
            "tokens generated / returned",
            lambda m: f"{m['generated_tokens']} / {m['returned_tokens']}",
        ),
    )
    for name, cell in rows:
        table.add_row(name, *(cell(mode) for mode in result["modes"]))
    for pair in result["head_to_head"]:
        if {pair["mode"], pair["against"]} == {"bon", "vbon"}:
            table.add_row(
                f"{pair['mode']} against {pair['against']}",
                f"{pair['wins']} won, {pair['losses']} lost, {pair['ties']} tied",
            )
    return table


def answers_table(result: Result, rows: int = 4) -> Table:
    """The first prompts with the answer of each mode."""
    table = Table(title="the same prompts, answered live", show_lines=True)
    table.add_column("prompt", ratio=1)
    names = [mode["mode"] for mode in result["modes"]]
    for name in names:
        table.add_column(name, ratio=2)
    for row in result["prompts"][:rows]:
        cells = []
        for name in names:
            answer = row["answers"][name]
            reward = "-" if answer["reward"] is None else f"{answer['reward']:+.2f}"
            cells.append(escape(f"[{reward}]{answer['text']}"))
        table.add_row(escape(row["prompt"]), *cells)
    return table
