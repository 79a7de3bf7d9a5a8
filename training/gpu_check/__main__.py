"""``scripts/gpu-check``: what training on one GPU does, in ten minutes."""

from __future__ import annotations

import logging
import shlex
import sys
from typing import Any

import typer

from training.gpu_check.config import GpuCheckConfig
from training.gpu_check.plan import CheckStep, Plan, chosen, command_of
from vbon.cli.settings_command import INTERRUPTED, add_settings_command
from vbon.config import Settings
from vbon.errors import DataError

app = typer.Typer(add_completion=False)
INCOMPLETE = 3  # exit status if a step failed, or had no time


def _settings() -> type[Settings]:
    return GpuCheckConfig


def _run(config: GpuCheckConfig) -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    plan = Plan(config)
    try:
        steps = chosen(plan.steps(), config.only)
    except ValueError as error:
        raise DataError(str(error)) from error
    if config.dry_run:
        for step in steps:
            typer.echo(_described(step, plan))
        return 0
    try:
        results = _check(config, plan, steps)
    except KeyboardInterrupt:
        typer.echo("interrupted; give the same command again to go on", err=True)
        return INTERRUPTED
    statuses = {step["status"] for step in results["steps"].values()}
    return 0 if statuses <= {"done", "not here"} else INCOMPLETE


def _described(step: CheckStep, plan: Plan) -> str:
    words = shlex.join(command_of(step, plan.config.out / "logs" / f"{step.name}.json"))
    absent = f" (left out: {step.absent})" if step.absent else ""
    return f"{step.name}, at most {step.limit_s:.0f} s: {step.title}{absent}\n    {words}"


def _check(config: GpuCheckConfig, plan: Plan, steps: list[CheckStep]) -> dict[str, Any]:
    from training.gpu_check.figures import figures_of
    from training.gpu_check.report import REPORT, write_report
    from training.gpu_check.runner import CheckRunner
    from vbon.progress_bar import ProgressBar
    from vbon.storage.locks import sole_writer
    from vbon.storage.provenance import provenance

    settings = config.model_dump(mode="json", include={"models", "layer_class", "tiny"})
    record = provenance(settings)
    record["machine"]["device"] = _device(tiny=config.tiny)
    with sole_writer(config.out), ProgressBar("gpu-check", len(steps)) as bar:
        shown, names = 0, {step.name for step in steps}

        def report(results: dict[str, Any]) -> None:
            nonlocal shown
            write_report(config.out, results)
            # An earlier check may have done others too.
            finished = [step for name, step in results["steps"].items() if name in names]
            if finished and len(finished) > shown:
                step = finished[-1]
                bar.advance(len(finished) - shown, f"{step['title']}: {step['status']}")
                shown = len(finished)

        runner = CheckRunner(
            config.out,
            record,
            config.minutes * 60,
            lambda step, written: figures_of(step, plan, written),
            report,
        )
        results = runner.run(steps)
    typer.echo((config.out / REPORT).read_text(encoding="utf-8"))
    return results


def _device(*, tiny: bool) -> str:
    """The GPU's name, asked without holding memory of it.

    Raises:
        DataError: there is none, and this is not the trial.
    """
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    if not tiny:
        raise DataError(
            "torch sees no GPU here; run this where one is, or try the check itself with --tiny"
        )
    return "CPU"


add_settings_command(
    app,
    "gpu-check",
    "Measure training on a GPU in ten minutes: speed, memory, FSDP, vLLM, and vBoN against kl-rl.",
    _settings,
    _run,
)

if __name__ == "__main__":
    app(args=sys.argv[1:], prog_name="scripts/gpu-check")
