"""Stops a run that has diverged, and exports its last good state."""

from __future__ import annotations

from training.train.export import export_checkpoint, run_cost
from training.train.prepare import ActiveRun
from training.train.step_metrics import StepMetrics
from vbon.errors import DivergedError

ADVICE = "lower --learning-rate or raise the weight of the KL"
WARM_START_ADVICE = "lower --warm-start-learning-rate or give fewer --warm-start-steps"
# A rise of the imitation's loss after which the KL is measured. Steps of other prompts may differ by as much.
SUSPICIOUS_NATS = 5.0


def check_kl(step: int, kl_nats: float | None, max_kl: float) -> None:
    """Check that the policy is still near the reference; ``None`` passes.

    Raises:
        DivergedError: the KL is above ``max_kl``, or is not a number.
    """
    if kl_nats is not None and not kl_nats <= max_kl:
        raise DivergedError(
            f"step {step}: {kl_nats:.1f} nats from the reference policy, over --max-kl {max_kl:g}"
        )


def check_step(run: ActiveRun, step: int, metrics: StepMetrics) -> None:
    """Check a step that was just taken, before it is added to the history.

    A step on samples of the policy knows its KL. For the others it is measured at every resumable state, at
    the end of the warm start, and where the warm start's loss has risen. This loss is -log q of best-of-N's
    answers, which falls unless the learning rate is too high.

    Raises:
        DivergedError: the policy is too far from the reference, or gives best-of-N's answers less than half
            of their log-probability and --max-kl nats less.
    """
    config, kl = run.spec.config, metrics.kl_nats
    done, risen = step + 1, 0.0
    if metrics.phase == "warm-start" and run.history:
        first = run.history[0]["loss"]
        risen = metrics.loss - first
        if risen > config.max_kl and metrics.loss > 2 * first:
            raise DivergedError(
                f"step {step} of the warm start: the answers of best-of-N have {risen:.1f} nats less than at "
                f"its first step, over --max-kl {config.max_kl:g}"
            )
    due = done % config.checkpoint_every == 0 or done in {
        config.warm_start_steps,
        run.trainer.total_steps,
    }
    if kl is None and (due or risen > SUSPICIOUS_NATS):
        kl = run.trainer.kl_from_reference()
    check_kl(step, kl, config.max_kl)


def export_last_good(run: ActiveRun, error: DivergedError) -> DivergedError:
    """Export the newest resumable state, and return the error that says where it is."""
    warm = len(run.history) < run.spec.config.warm_start_steps
    advice = WARM_START_ADVICE if warm else ADVICE
    state = run.states.newest()
    if state is None or state.run["identity"] != run.spec.identity:
        return DivergedError(f"the run diverged at {error}; no earlier state was kept; {advice}")
    run.states.load(state)
    run.wait_for_everyone()  # the states are removed below, once all processes have read theirs
    run.history = list(state.run["history"])
    out = run.spec.config.out.with_name(f"{run.spec.config.out.name}.step{len(run.history)}")
    weights = run.trainer.gathered_weights()
    if run.is_main_process:
        export_checkpoint(out, run, weights, run_cost(run), None)
        run.states.clear()  # resuming with the same settings would diverge again
    return DivergedError(
        f"the run diverged at {error}; the last good checkpoint, after {len(run.history)} "
        f"steps, is {out}; {advice}"
    )
