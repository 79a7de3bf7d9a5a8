"""Stops a run that has diverged, and exports its last good state."""

from __future__ import annotations

from training.train.export import export_checkpoint, run_cost
from training.train.prepare import ActiveRun
from vbon.errors import DivergedError

ADVICE = "lower --learning-rate or raise the weight of the KL"


def check_kl(step: int, kl_nats: float | None, max_kl: float) -> None:
    """Check that the policy is still near the reference; ``None`` passes.

    Raises:
        DivergedError: the KL is above ``max_kl``, or is not a number.
    """
    if kl_nats is not None and not kl_nats <= max_kl:
        raise DivergedError(
            f"step {step}: {kl_nats:.1f} nats from the reference policy, over --max-kl {max_kl:g}"
        )


def export_last_good(run: ActiveRun, error: DivergedError) -> DivergedError:
    """Export the newest resumable state, and return the error that says where it is."""
    state = run.states.newest()
    if state is None or state.run["identity"] != run.spec.identity:
        return DivergedError(f"the run diverged at {error}; no earlier state was kept; {ADVICE}")
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
        f"steps, is {out}; {ADVICE}"
    )
