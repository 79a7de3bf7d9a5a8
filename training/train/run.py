"""One training run, from its settings to an exported checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from training.configs import TrainConfig
from training.evaluation.measure import PromptSamples
from training.outputs.identity import run_identity
from training.rollouts.batch_size import machine_memory
from training.train.config import objective_of
from training.train.divergence import check_step, export_last_good
from training.train.export import export_checkpoint, run_cost
from training.train.finished import FinishedRun, find_finished_run, warn_of_kept_figures
from training.train.heldout import (
    OnMeasured,
    card_inputs,
    measure_again,
    measure_captured,
    measure_heldout,
    measure_imitation,
    on_policy_change,
)
from training.train.inputs import TrainingInputs
from training.train.prepare import ActiveRun, RunSpec, prepare_run
from training.train.resume import remove_states_of, resume
from training.train.size_defaults import with_size_defaults
from training.train.step_metrics import StepMetrics
from vbon.errors import DivergedError
from vbon.progress_bar import ProgressBar
from vbon.storage.atomic import recover_directory
from vbon.storage.evaluation_record import CapturedNats, MethodRow
from vbon.storage.locks import sole_writer
from vbon.storage.training_record import OnPolicyChange
from vbon.work_report import MEASURED_ANSWERS, foresee_work

logger = logging.getLogger(__name__)

# One process measures and exports while the others wait. For a large model that takes longer than the
# half hour after which torch.distributed gives up by default.
LONGEST_WAIT = timedelta(hours=6)


def train(
    name: str,
    config: TrainConfig,
    inputs: TrainingInputs | None = None,
    on_measured: OnMeasured | None = None,
) -> FinishedRun:
    """Train a policy, resume an interrupted run, or reuse a finished one.

    Args:
        name: the objective's name.
        config: settings of the objective's command (``train_config_type``).
        inputs: models and data shared with other runs; loaded as ``config`` says if not given.
        on_measured: receives the held-out samples behind the figures. If the run is already finished,
            its checkpoint is measured again for this, with the current held-out prompts and gold reward
            model.

    Raises:
        CheckpointError, DataError, InvalidInputError, RewardError, ExportError, DivergedError.
    """
    # Created before any model is loaded, because it makes this process's GPU the default one. `cpu`
    # makes processes on a machine without GPUs know of each other; otherwise each would write the output.
    processes = PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)
    objective = objective_of(name, config)
    shared, inputs = inputs is not None, inputs or card_inputs(config)
    fingerprints = inputs.fingerprints
    # Runs that share their inputs share one reference too, which has its type already.
    kept = frozenset({"frozen_dtype"} if shared else ())
    config = with_size_defaults(
        name, config, objective, inputs.policy_shape, machine_memory(), kept=kept
    )
    if not shared:
        inputs.config = config
    identity = run_identity(name, config, fingerprints)
    spec = RunSpec(name, config, objective, inputs, identity)
    with _locked_for_all(config.out, processes):
        finished = find_finished_run(config, identity)
        if finished is None:
            return _train_and_export(spec, on_measured)
        logger.info("%s: already trained with these settings", config.out)
        return _reuse(spec, finished, on_measured) if processes.is_main_process else finished


@contextmanager
def _locked_for_all(out: Path, processes: PartialState) -> Iterator[None]:
    """Hold the output's lock in the main process on behalf of all processes.

    If the lock is taken, the main process fails and the launcher ends the others.
    """
    if not processes.is_main_process:
        processes.wait_for_everyone()
        yield
        return
    with sole_writer(out):
        recover_directory(out)
        processes.wait_for_everyone()
        yield


def _reuse(spec: RunSpec, finished: FinishedRun, on_measured: OnMeasured | None) -> FinishedRun:
    """Clean up after a finished run, and measure its checkpoint again if the caller wants samples."""
    remove_states_of(spec.config.out, spec.identity)
    if on_measured is None:
        warn_of_kept_figures(spec.config)
        return finished
    row = measure_again(spec.name, spec.config, spec.inputs, on_measured, spec.identity)
    return FinishedRun(finished.out, row, finished.cost)


def _train_and_export(spec: RunSpec, on_measured: OnMeasured | None) -> FinishedRun:
    _foresee(spec, measures_imitation=on_measured is None)
    run = prepare_run(spec)
    try:
        # A sweep measures each of its many runs once, so it is not told what the on-policy steps changed.
        _take_steps(run, measures_imitation=on_measured is None)
    except DivergedError as error:
        raise export_last_good(run, error) from error
    finally:
        run.generator.close()
    run.wait_for_everyone()
    cost = run_cost(run)
    if cost["unscored_samples"]:
        logger.warning(
            "%d of %d samples had no reward; another sample of the prompt stood in for each",
            cost["unscored_samples"],
            cost["samples_drawn"],
        )
    weights = run.trainer.gathered_weights()
    row = None
    if run.is_main_process:
        row, change = _heldout_row(run, on_measured)
        export_checkpoint(
            spec.config.out, run, weights, cost, row, change, _captured(run, on_measured)
        )
        run.states.clear()
        if row is not None:
            logger.info(
                "%s: held-out win rate %s at KL %s nats", spec.config.out, row.win_rate, row.kl_nats
            )
    run.wait_for_everyone()
    return FinishedRun(spec.config.out, row, cost)


def _take_steps(run: ActiveRun, *, measures_imitation: bool) -> None:
    """Take the remaining steps; each adds a row of history, and some save a resumable state."""
    trainer, config, objective = run.trainer, run.spec.config, run.spec.objective
    resumed = resume(run.states, run.spec.identity, replace=config.replace)
    run.history, run.imitated = list(resumed.get("history", [])), resumed.get("imitated")
    begun, total = time.perf_counter(), trainer.total_steps
    title = f"{objective.title} {objective.label}"
    with ProgressBar(title, total, len(run.history), work=_work_of_steps(run.spec)) as progress:
        for step in range(len(run.history), total):
            if step == config.warm_start_steps > 0 and measures_imitation:
                run.imitated = _imitated(run)
                progress.begin_again()
            metrics = trainer.step(step)
            check_step(run, step, metrics)
            run.history.append(asdict(metrics))
            progress.advance(1, _progress_line(metrics))
            if (step + 1) % config.checkpoint_every == 0:
                _save_state(run, step)
    logger.info("trained %d steps in %.0f s", total, time.perf_counter() - begun)


def _work_of_steps(spec: RunSpec) -> dict[str, int]:
    """Steps by kind of work: a step that imitates costs another time than one that samples."""
    title = f"{spec.objective.title} {spec.objective.label}"
    return {
        f"warm-start steps of {title}": spec.config.warm_start_steps,
        f"steps of {title}": spec.config.steps,
    }


def _foresee(spec: RunSpec, *, measures_imitation: bool) -> None:
    """Tell the steps and how many answers the model card will take, for an estimate of the time left."""
    for kind, steps in _work_of_steps(spec).items():
        foresee_work(kind, steps)
    inputs = spec.inputs
    policy_samples = inputs.policy_samples
    if measures_imitation and spec.config.warm_start_steps and spec.objective.samples_needed.policy:
        policy_samples *= 2
    answers = len(inputs.heldout) * (inputs.reference_samples + policy_samples)
    foresee_work(MEASURED_ANSWERS, answers)


def _save_state(run: ActiveRun, step: int) -> None:
    """Save a resumable state, unless the export follows at once."""
    if step + 1 < run.trainer.total_steps:
        state = {
            "identity": run.spec.identity,
            "history": run.history,
            "imitated": run.imitated,
        }
        run.states.save(step + 1, state)


def _imitated(run: ActiveRun) -> dict[str, Any] | None:
    """The held-out figures before the first on-policy step, in the main process."""
    spec, found = run.spec, None
    measurable = spec.inputs.heldout and not run.trainer.sharded
    if measurable and spec.objective.samples_needed.policy:
        if run.is_main_process:
            found = measure_imitation(spec.name, run.trainer.unwrapped, spec.inputs, spec.identity)
        run.wait_for_everyone()
    return found


def _heldout_row(
    run: ActiveRun, on_measured: OnMeasured | None
) -> tuple[MethodRow | None, OnPolicyChange | None]:
    """The held-out figures, and their change over the on-policy steps if both ends were measured."""
    if not run.spec.inputs.heldout:
        return None, None
    if run.trainer.sharded:
        logger.warning("held-out figures are not measured under FSDP; run `evaluate` on the result")
        return None, None
    spec, ours = run.spec, []  # type: tuple[RunSpec, list[PromptSamples]]

    def keep(samples: list[PromptSamples]) -> None:
        ours.extend(samples)
        if on_measured is not None:
            on_measured(samples)

    row = measure_heldout(spec.name, run.trainer.unwrapped, spec.inputs, keep, spec.identity)
    return row, None if run.imitated is None else on_policy_change(
        run.imitated, ours, spec.inputs.heldout_reference
    )


def _captured(run: ActiveRun, on_measured: OnMeasured | None) -> CapturedNats | None:
    """The captured nats, if the model card gets held-out figures at all.

    ``None`` under FSDP, and in a sweep, which measures each of its many runs once. They take two passes over
    a thousand cached samples, which for a real language model is longer than a short training.
    """
    if not run.spec.inputs.heldout or run.trainer.sharded or on_measured is not None:
        return None
    num_samples = getattr(run.spec.objective, "num_samples", None)
    return measure_captured(run.trainer.unwrapped, run.spec.inputs, num_samples)


def _progress_line(metrics: StepMetrics) -> str:
    facts = [f"loss {metrics.loss:.3f}"]
    if metrics.phase == "warm-start":
        facts.insert(0, "warm start")
    if metrics.reward is not None and metrics.log_cdf is not None:
        facts.append(f"reward {metrics.reward:+.2f}, log F {metrics.log_cdf:.3f}")
    if metrics.kl_nats is not None:
        facts.append(f"KL {metrics.kl_nats:.2f} nats")
    if metrics.unscored:
        facts.append(f"{metrics.unscored} unscored")
    return ", ".join([*facts, f"gradient {metrics.grad_norm:.2f}"])
