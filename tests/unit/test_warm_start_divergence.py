"""A diverging warm start is noticed at the step where it happens, with advice on its own setting."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.train

from training.train import run as running  # noqa: E402
from training.train.divergence import export_last_good  # noqa: E402
from training.train.step_metrics import StepMetrics  # noqa: E402
from vbon.errors import DivergedError  # noqa: E402


class Trainer:
    """Steps with given losses; the KL is measured from a given list, and the measurements are counted."""

    def __init__(self, losses: list[float], kl: float, warm: int, main_kl: float | None) -> None:
        self.losses, self.kl, self.warm, self.main_kl = losses, kl, warm, main_kl
        self.total_steps = len(losses)
        self.taken = 0
        self.probed: list[int] = []

    def step(self, step: int) -> StepMetrics:
        self.taken = step
        warm = step < self.warm
        return StepMetrics(
            step=step, phase="warm-start" if warm else "main", loss=self.losses[step], reward=None,
            log_cdf=None, truncated_share=None, kl_nats=None if warm else self.main_kl,
            response_tokens=5.0, grad_norm=1.0, learning_rate=1e-3, samples_drawn=0, tokens_drawn=0,
            sequences_trained=8, sample_s=0.0, score_s=0.0, learn_s=0.0,
        )  # fmt: skip

    def kl_from_reference(self) -> float:
        self.probed.append(self.taken)
        return self.kl


def active(
    losses: list[float], kl: float, warm: int, main_kl: float | None = 0.1, every: int = 1000
) -> Any:
    config = SimpleNamespace(
        warm_start_steps=warm,
        steps=len(losses) - warm,
        max_kl=20.0,
        checkpoint_every=every,
        replace=False,
    )
    states = SimpleNamespace(newest=lambda: None, save=lambda *_: None, clear=lambda: None)
    return SimpleNamespace(
        trainer=Trainer(losses, kl, warm, main_kl),
        spec=SimpleNamespace(
            config=config, identity={}, objective=SimpleNamespace(title="vBoN", label="N = 4")
        ),
        states=states, history=[], imitated=None,
    )  # fmt: skip


def take_steps(run: Any) -> None:
    running._take_steps(run, measures_imitation=False)


def test_a_sane_warm_start_is_measured_once_at_its_end() -> None:
    run = active([60.0, 58.0, 61.0, 57.0, 0.2, 0.1], kl=1.5, warm=4)
    take_steps(run)
    assert len(run.history) == 6
    assert run.trainer.probed == [3]


def test_steps_without_samples_are_measured_at_every_state_and_at_the_end() -> None:
    run = active([60.0, 58.0, 0.2, 0.2, 0.1], kl=1.5, warm=1, main_kl=None, every=2)
    take_steps(run)
    assert run.trainer.probed == [0, 1, 3, 4]


def test_a_risen_loss_is_suspicious_and_the_kl_decides() -> None:
    run = active([60.0, 58.0, 66.0, 59.0], kl=19.0, warm=4)
    take_steps(run)
    assert run.trainer.probed == [2, 3]
    run = active([60.0, 58.0, 66.0, 59.0], kl=21.0, warm=4)
    with pytest.raises(DivergedError, match=r"step 2: 21\.0 nats .* over --max-kl 20"):
        take_steps(run)
    assert len(run.history) == 2


def test_a_collapsed_policy_near_the_reference_is_noticed_by_its_loss() -> None:
    """One likely answer for all prompts is few nats away, and makes all others impossible."""
    run = active([60.0, 58.0, 300.0, 300.0], kl=3.0, warm=4)
    with pytest.raises(DivergedError, match=r"step 2 of the warm start: .* 240\.0 nats less"):
        take_steps(run)
    # Long answers differ more from prompt to prompt than --max-kl; that alone is no divergence.
    take_steps(active([400.0, 430.0, 395.0], kl=3.0, warm=3))


def test_a_kl_that_is_not_a_number_has_diverged() -> None:
    with pytest.raises(DivergedError, match="step 1"):
        take_steps(active([60.0, 58.0, 1.0], kl=float("nan"), warm=2))


def test_advice_names_the_learning_rate_of_the_phase() -> None:
    warm = active([60.0, 58.0], kl=21.0, warm=2)
    with pytest.raises(DivergedError) as caught:
        take_steps(warm)
    assert "--warm-start-learning-rate" in str(export_last_good(warm, caught.value))
    main = active([60.0, 58.0, 0.3], kl=1.0, warm=2, main_kl=30.0)
    with pytest.raises(DivergedError) as caught:
        take_steps(main)
    advice = str(export_last_good(main, caught.value))
    assert "lower --learning-rate" in advice
    assert "--warm-start-learning-rate" not in advice
