"""The interface between the trainer and an objective. Shapes: B sequences, T response tokens.

An objective states which samples a step needs (:class:`SamplesNeeded`). The trainer draws and scores them
and runs the models. The objective then turns the result (:class:`StepBatch`) into one scalar loss. The
objective does not deal with models, files or processes, and the trainer does not deal with formulas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:  # listing an objective and its settings (--help) must not load torch
    import torch

CachedKind = Literal["best", "best-worst", "tilted", "uniform"]
KlEstimator = Literal["exact", "sampled"]
Baseline = Literal["leave-one-out", "none"]
AnchorKind = Literal["reference", "moving"]


@dataclass(frozen=True, slots=True)
class CachedChoice:
    """A rule for choosing from a prompt's cached reference samples.

    ``best``: independent bests of ``num_samples``. ``best-worst``: the best and the worst of the same
    ``num_samples``, as consecutive rows. ``tilted``: each sample as often as it would be the best of
    ``num_samples`` whose others are drawn anew. ``uniform``: any samples, without replacement.

    Attributes:
        num_samples: N; not used by ``uniform``. Only ``tilted`` takes a fraction.
        ref_logprob: True if ``log p`` of the samples is needed. Without samples of the policy it is computed
            once per cache and stored; with them, the reference runs in each step and computes it there.
    """

    kind: CachedKind
    num_samples: float = 1
    ref_logprob: bool = False


@dataclass(frozen=True, slots=True)
class SamplesNeeded:
    """The samples that one step needs for each of its prompts.

    Attributes:
        policy: True for ``samples_per_prompt`` fresh samples of the policy being tuned.
        cached: how to choose ``samples_per_prompt`` reference samples from the cache, if any are needed;
            a pair counts as two.
        anchor_samples: number of fresh samples of the anchor.
        anchor: the policy that ``kl_BT`` is measured against and that anchor samples come from: the
            frozen reference, or a moving average of the policy.
        anchor_rate: eta of ``anchor <- (1 - eta) anchor + eta policy`` after each step.
        updates: number of optimizer updates per batch of policy samples, on disjoint parts of it.
    """

    policy: bool = False
    cached: CachedChoice | None = None
    anchor_samples: int = 0
    anchor: AnchorKind = "reference"
    anchor_rate: float = 0.0
    updates: int = 1

    @property
    def stored_ref_logprob(self) -> bool:
        """True if ``log p`` of the cached samples is computed before the steps, and stored with the cache."""
        return self.cached is not None and self.cached.ref_logprob and not self.policy


@dataclass(frozen=True, slots=True)
class Samples:
    """Sequences from one source; the ``group_size`` rows of a prompt are consecutive.

    Attributes:
        logprob_BT: ``log q`` of each token with gradient, 0 on padding.
        mask_BT: True on response tokens, EOS included.
        reward_B: raw rewards.
        log_cdf_B: ``log F^``, where F is the share of the prompt's cached reference rewards that are
            strictly smaller.
        log_cdf_le_B: ``log F<=``, which counts equal rewards too.
        ref_logprob_B: ``log p(y)`` of the reference in nats, if needed.
        log_quantile_B: ``log((k - 1/2) / M)`` of a sample whose reward is the k-th smallest of the M cached
            ones; cached samples only.
        kl_BT: exact KL(q || anchor) at each position in nats, with gradient; policy samples only.
        sampled_logprob_B: ``log`` probability under the policy as it was when it drew the samples.
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
    log_quantile_B: torch.Tensor | None = None

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
    """The samples of some prompts, by source; ``None`` for a source that is not needed.

    All sources have the same prompts in the same order.
    """

    policy: Samples | None = None
    cached: Samples | None = None
    anchor: Samples | None = None


class Objective(BaseModel):
    """A training objective; its fields are its settings and become flags of its command.

    Attributes:
        title: its name on a model card.
        source: the paper it comes from.
        learning_rate: default peak learning rate of the main steps.
        strict_order: True if it assumes that no two samples of a prompt have the same reward.
        reads_cache: False if by default it uses neither cached samples nor ranks among their rewards.
        defaults: values of shared settings (``TrainConfig``) that suit it better than the shared defaults.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    title: ClassVar[str]
    source: ClassVar[str]
    learning_rate: ClassVar[float] = 1e-4
    strict_order: ClassVar[bool] = False
    reads_cache: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {}

    @property
    def uses_cache(self) -> bool:
        """True if it uses cached samples or ranks among their rewards, given the settings."""
        return self.reads_cache

    @property
    def samples_needed(self) -> SamplesNeeded:
        """The samples that a step needs."""
        raise NotImplementedError

    def loss(self, batch: StepBatch) -> torch.Tensor:
        """The loss to minimise: a scalar, the mean over the batch's prompts."""
        raise NotImplementedError

    def peak_learning_rate(self) -> float:
        """Default peak learning rate of the main steps, given the settings."""
        return self.learning_rate

    def least_samples(self) -> int:
        """The smallest ``samples_per_prompt`` that the objective can work with."""
        return 2

    @property
    def label(self) -> str:
        """A short form of the settings for titles: N or beta, and all values other than the defaults."""
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        shown = {
            name: value
            for name, value in self.model_dump().items()
            if name in {"num_samples", "beta"} or value != defaults[name]
        }
        return ", ".join(f"{name}={value}" for name, value in shown.items())


def required(value: torch.Tensor | None) -> torch.Tensor:
    """A tensor that must be present, because the objective's :class:`SamplesNeeded` asked for it."""
    if value is None:
        raise ValueError("the objective uses a tensor that its samples_needed did not ask for")
    return value


def samples_of(samples: Samples | None) -> Samples:
    """Samples that must be present, because the objective's :class:`SamplesNeeded` asked for them."""
    if samples is None:
        raise ValueError("the objective uses a source that its samples_needed did not ask for")
    return samples
