"""What the trainer and an objective say to each other. Shapes: B sequences, T response tokens.

An objective says what a step needs (:class:`SamplesNeeded`), the trainer draws, scores and runs the models,
and the objective turns the result (:class:`StepBatch`) into one scalar loss. It knows no model, no
file and no process; the trainer knows no formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:  # naming an objective and its settings (--help) must not load torch
    import torch

CachedKind = Literal["best", "best-worst", "uniform"]
KlEstimator = Literal["exact", "sampled"]
Baseline = Literal["leave-one-out", "none"]
AnchorKind = Literal["reference", "moving"]


@dataclass(frozen=True, slots=True)
class CachedChoice:
    """Which of a prompt's cached reference samples a step takes.

    ``best``: independent draws of the best of ``num_samples``; ``best-worst``: best and worst of the
    same ``num_samples``, as consecutive rows; ``uniform``: any sample, without replacement.

    Attributes:
        num_samples: N; not used by ``uniform``.
        ref_logprob: whether ``log p`` of the samples is needed.
    """

    kind: CachedKind
    num_samples: int = 1
    ref_logprob: bool = False


@dataclass(frozen=True, slots=True)
class SamplesNeeded:
    """What one step needs for each of its prompts.

    Attributes:
        policy: samples of the policy being tuned (``samples_per_prompt`` of them).
        cached: reference samples from the cache (as many, counting both of a pair).
        anchor_samples: fresh samples of the anchor.
        anchor: what ``kl_BT`` is measured against and anchor samples come from: the frozen reference,
            or a moving average of the policy.
        anchor_rate: eta of ``anchor <- (1 - eta) anchor + eta policy`` after each step.
        updates: optimizer updates made from one batch of policy samples, on disjoint parts of it.
    """

    policy: bool = False
    cached: CachedChoice | None = None
    anchor_samples: int = 0
    anchor: AnchorKind = "reference"
    anchor_rate: float = 0.0
    updates: int = 1


@dataclass(frozen=True, slots=True)
class Samples:
    """Sequences of one source; the ``group_size`` rows of a prompt are consecutive.

    Attributes:
        logprob_BT: ``log q`` of each token with gradient, 0 on padding.
        mask_BT: True on response tokens, EOS included.
        reward_B: raw rewards.
        log_cdf_B: ``log F^``, F strict, among the cached reference rewards of the prompt.
        log_cdf_le_B: the same with ``<=``.
        ref_logprob_B: ``log p(y)`` of the reference in nats, where it was asked for.
        kl_BT: exact KL(q || anchor) of each position in nats with gradient; policy samples only.
        sampled_logprob_B: ``log`` probability under the policy that drew them, at the time.
    """

    logprob_BT: torch.Tensor
    mask_BT: torch.Tensor
    group_size: int
    reward_B: torch.Tensor
    log_cdf_B: torch.Tensor
    log_cdf_le_B: torch.Tensor
    ref_logprob_B: torch.Tensor | None = None
    kl_BT: torch.Tensor | None = None
    sampled_logprob_B: torch.Tensor | None = None

    @property
    def logprob_B(self) -> torch.Tensor:
        """``log q(y)`` in nats, with gradient."""
        return self.logprob_BT.sum(1)

    @property
    def log_ratio_B(self) -> torch.Tensor:
        """``log q(y) - log p(y)`` in nats, with gradient."""
        return self.logprob_B - required(self.ref_logprob_B)


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The samples of some prompts, each source in the same order of prompts; ``None`` if not asked for."""

    policy: Samples | None = None
    cached: Samples | None = None
    anchor: Samples | None = None


class Objective(BaseModel):
    """A way to tune a policy; its fields are its settings, and flags of its command.

    Attributes:
        title: what a card calls it.
        source: the paper.
        learning_rate: peak of the main steps, where the run names none.
        strict_order: whether it assumes that no two samples have the same reward.
        defaults: common settings (``TrainConfig``) that suit it better than the common defaults.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    title: ClassVar[str]
    source: ClassVar[str]
    learning_rate: ClassVar[float] = 1e-4
    strict_order: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Any]] = {}

    @property
    def samples_needed(self) -> SamplesNeeded:
        """What a step needs."""
        raise NotImplementedError

    def loss(self, batch: StepBatch) -> torch.Tensor:
        """Scalar: the mean over the batch's prompts, to be minimised."""
        raise NotImplementedError

    def peak_learning_rate(self) -> float:
        """Of the main steps, where the run names none."""
        return self.learning_rate

    def least_samples(self) -> int:
        """Fewest ``samples_per_prompt`` it can work with."""
        return 2

    @property
    def label(self) -> str:
        """Its settings in short, for titles: N or beta, and what is not as usual."""
        usual = {name: field.default for name, field in type(self).model_fields.items()}
        shown = {
            name: value
            for name, value in self.model_dump().items()
            if name in {"num_samples", "beta"} or value != usual[name]
        }
        return ", ".join(f"{name}={value}" for name, value in shown.items())


def required(value: torch.Tensor | None) -> torch.Tensor:
    """A tensor that the objective's own :class:`SamplesNeeded` promised."""
    if value is None:
        raise ValueError("the objective uses what its draws did not ask for")
    return value


def samples_of(samples: Samples | None) -> Samples:
    """Samples that the objective's own :class:`SamplesNeeded` promised."""
    if samples is None:
        raise ValueError("the objective uses a source its draws did not ask for")
    return samples
