r"""WIND (arXiv 2410.20727): win-rate dominance by regression onto the mirror-descent step.

The regularised game's iteration, with P(y > q_t) the chance that y beats a sample of q_t (ties 1/2):

    q_{t+1}  proportional to  [q_t p^(eta b) exp(eta P(y > q_t))]^(1 / (1 + eta b))

so at the step's target  h(y) = [(1 + eta b) log q - log q_t - eta b log p](y) / eta  equals
P(y > q_t) + const. Its fixed point is q = p exp(P(. > q)/b)/Z.

Derived here (the paper leaves the normaliser and the estimators open to the implementer; not
compared with official code): under q_t, E[P(y > q_t)] = 1/2 by symmetry, so the constant goes by
centring h over the G samples of a prompt and adding 1/2: f = h - mean h + 1/2. The observed P^ of a
sample is its mean win over all G, itself a tie: as centring shrinks f toward 1/2 by (G-1)/G, so must P^ be
(with the other G - 1 alone the regression overshoots by G/(G-1); enumerated in the tests). Three losses
with the same minimiser f = P:

- ``squared``: (f - P^)^2
- ``kl``: Bernoulli cross-entropy -P^ log f - (1 - P^) log(1 - f)
- ``nce``: the winner of a pair has density 2 P q_t, so winners are contrasted with all samples at
  the logit log 2f: -2 P^ log(2f/(1 + 2f)) + log(1 + 2f)

f must lie in (0, 1) for the last two; it is clamped, and where it is clamped the squared loss keeps its
gradient alive. Samples are drawn from q_t, then ``updates`` optimizer updates are made on disjoint
parts of them. eta defaults to 1/b.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from training.objectives.protocol import Objective, SamplesNeeded, StepBatch, required, samples_of
from training.objectives.settings import Regularised

if TYPE_CHECKING:
    import torch

MARGIN = 0.02


class Wind(Regularised, Objective):
    """WIND: win-rate dominance by regression, iterated."""

    title: ClassVar[str] = "WIND"
    source: ClassVar[str] = "Faster WIND, arXiv 2410.20727"
    learning_rate: ClassVar[float] = 2e-4

    regression: Literal["squared", "kl", "nce"] = Field(
        "squared", description="loss of the regression onto the win rate"
    )
    step_size: float | None = Field(None, gt=0, description="eta; default 1/beta")
    updates: int = Field(4, ge=1, description="optimizer updates a batch of samples")

    @property
    def samples_needed(self) -> SamplesNeeded:
        """Samples of the policy, used for several updates."""
        return SamplesNeeded(policy=True, updates=self.updates)

    def loss(self, batch: StepBatch) -> torch.Tensor:
        """Regression loss of f onto the observed win rate."""
        import torch

        samples = samples_of(batch.policy)
        eta = 1 / self.beta if self.step_size is None else self.step_size
        pull = eta * self.beta
        drawn, reference = required(samples.sampled_logprob_B), required(samples.ref_logprob_B)
        h = ((1 + pull) * samples.logprob_B - drawn - pull * reference) / eta
        grouped = h.view(-1, samples.group_size)
        f = (grouped - grouped.mean(1, keepdim=True) + 0.5).flatten()
        win = win_in_group(samples.reward_B, samples.group_size)
        squared = (f - win) ** 2
        if self.regression == "squared":
            return squared.mean()
        inside = (f > MARGIN) & (f < 1 - MARGIN)
        safe = f.clamp(MARGIN, 1 - MARGIN)
        if self.regression == "kl":
            losses = -win * safe.log() - (1 - win) * (1 - safe).log()
        else:
            losses = -2 * win * (2 * safe / (1 + 2 * safe)).log() + (1 + 2 * safe).log()
        return torch.where(inside, losses, losses.detach() + squared).mean()


def win_in_group(reward_B: torch.Tensor, group_size: int) -> torch.Tensor:
    """Share of its prompt's samples, itself included, that each sample beats, ties 1/2: ``(B,)``."""
    grouped = reward_B.view(-1, group_size)
    mine, theirs = grouped[:, :, None], grouped[:, None, :]
    wins = (mine > theirs).float() + 0.5 * (mine == theirs).float()
    return wins.mean(2).flatten()
