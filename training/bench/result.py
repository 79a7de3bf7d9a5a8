"""The result of a benchmark: rates of both sides, their ratios, and the table to print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from rich.table import Table

from training.bench.steps import Step
from vbon.maths.intervals import MedianRange
from vbon.maths.statistics import median_range

Side = Literal["ours", "trl"]
Repeat = Sequence[Step]
SIDE_TITLES: dict[Side, str] = {"ours": "this project, kl-rl", "trl": "TRL, RLOOTrainer"}


def rate(repeat: Repeat, unit: Literal["samples", "tokens"]) -> float:
    """Samples or tokens per second over one repeat."""
    return sum(getattr(step, unit) for step in repeat) / sum(step.seconds for step in repeat)


def ratios(ours: Sequence[Repeat], trl: Sequence[Repeat]) -> dict[str, MedianRange]:
    """Our rate divided by TRL's, for samples and for tokens.

    Each ratio compares two neighbouring repeats, so that a slow drift of the machine cancels out.

    Raises:
        ValueError: the sides have different numbers of repeats, or none.
    """
    pairs = list(zip(ours, trl, strict=True))
    return {
        f"{unit}_per_second": median_range([rate(a, unit) / rate(b, unit) for a, b in pairs])
        for unit in ("samples", "tokens")
    }


def training_volume(repeats: Sequence[Repeat]) -> dict[str, float]:
    """The samples trained on, their tokens, and the mean tokens per sample."""
    steps = [step for repeat in repeats for step in repeat]
    samples, tokens = sum(s.samples for s in steps), sum(s.tokens for s in steps)
    return {"samples": samples, "tokens": tokens, "response_tokens": tokens / samples}


def side_figures(repeats: Sequence[Repeat]) -> dict[str, Any]:
    """One side's figures over its repeats, for JSON: spreads of rates and of seconds per step."""

    def per_step(name: str) -> dict[str, float | int]:
        means = [sum(getattr(s, name) for s in repeat) / len(repeat) for repeat in repeats]
        return asdict(median_range(means))

    return {
        **training_volume(repeats),
        "samples_per_second": asdict(median_range([rate(r, "samples") for r in repeats])),
        "tokens_per_second": asdict(median_range([rate(r, "tokens") for r in repeats])),
        **{name: per_step(name) for name in ("seconds", "sample_s", "score_s", "learn_s")},
        "repeats": [[asdict(step) for step in repeat] for repeat in repeats],
    }


def bench_result(measured: Mapping[Side, Sequence[Repeat]]) -> dict[str, Any]:
    """Both sides' figures, their ratios, and whether both trained on equally many samples."""
    counts = {side: training_volume(repeats)["samples"] for side, repeats in measured.items()}
    return {
        "sides": {side: side_figures(repeats) for side, repeats in measured.items()},
        "ratio": {name: asdict(value) for name, value in ratios(**dict(measured.items())).items()},
        "same_samples": len(set(counts.values())) == 1,
    }


def bench_table(result: Mapping[str, Any]) -> Table:
    """The table to print: median and [smallest, largest] of the repeats."""
    repeats = len(result["sides"]["ours"]["repeats"])
    table = Table(title=rf"median \[smallest, largest] of {repeats} repeats each")
    columns = (
        "",
        "samples/s",
        "tokens/s",
        "samples",
        "tokens per sample",
        "s per step",
        "sampling",
        "scoring",
        "learning",
    )
    for name in columns:
        table.add_column(name, justify="left" if not name else "right")
    for side, title in SIDE_TITLES.items():
        figures = result["sides"][side]
        table.add_row(
            title,
            _median_and_range(figures["samples_per_second"], 1),
            _median_and_range(figures["tokens_per_second"], 0),
            f"{figures['samples']:.0f}",
            f"{figures['response_tokens']:.1f}",
            _median_and_range(figures["seconds"], 3),
            *(f"{figures[name]['median']:.3f}" for name in ("sample_s", "score_s", "learn_s")),
        )
    table.add_section()
    ratio = result["ratio"]
    table.add_row(
        "ratio",
        _median_and_range(ratio["samples_per_second"], 2),
        _median_and_range(ratio["tokens_per_second"], 2),
        *[""] * 6,
    )
    return table


def _median_and_range(value: Mapping[str, float], digits: int) -> str:
    median, low, high = (f"{value[name]:.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} [{low}, {high}]"
