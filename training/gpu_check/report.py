"""The results of the check as markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vbon.storage.atomic import write_text

REPORT = "results.md"


def write_report(out: Path, results: Mapping[str, Any]) -> None:
    """Write ``results.md`` from results that may be incomplete."""
    write_text(out / REPORT, "\n".join(_lines(results)) + "\n")


def _lines(results: Mapping[str, Any]) -> Iterator[str]:
    versions, machine = results["versions"], results["machine"]
    yield "# GPU check"
    yield ""
    yield f"{results['created']}, revision {results['git_revision']}, {machine['system']}."
    yield f"{machine.get('device', 'no device')}; " + ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "transformers", "vllm") if name in versions
    )
    yield ""
    yield "| step | result | seconds | samples/s | GPU memory, GB | of the arithmetic | more |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, step in results["steps"].items():
        figures = step.get("figures", {})
        cells = [
            f"{name}: {step['title']}",
            step["status"],
            step.get("seconds", ""),
            figures.get("samples_per_s", ""),
            figures.get("peak_gpu_gb", ""),
            _of_arithmetic(figures),
            _more(step, figures),
        ]
        yield (
            "| "
            + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells)
            + " |"
        )
    yield ""
    yield (
        "Samples/s of a training leaves out its first step, and of a cache counts the start of the engine. "
        "GPU memory is the most that torch had allocated in the step's process; vLLM's is in a process of "
        "its own. The arithmetic is that of docs/scale.md without the reward model."
    )


def _of_arithmetic(figures: Mapping[str, Any]) -> str:
    if "of_arithmetic" not in figures:
        return ""
    return f"{figures['of_arithmetic']:.2f} of {figures['arithmetic_gb']} GB"


def _more(step: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    if step["status"] != "done":
        return str(step.get("reason", ""))
    if "first" in figures:
        return f"first {_pairs(figures['first'])}; last {_pairs(figures['last'])}"
    rows = {name: row for name, row in figures.items() if isinstance(row, Mapping)}
    return "; ".join(f"{name}: {_intervals(row)}" for name, row in rows.items())


def _pairs(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())


def _intervals(row: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
        if isinstance(value, Mapping)
        else f"{name} {value}"
        for name, value in row.items()
    )
