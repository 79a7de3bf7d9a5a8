r"""WIND (arXiv 2410.20727): win-rate dominance by regression onto the mirror-descent step.

The regularised game iterates, where P(y > q_t) is the probability that y beats a sample of q_t (ties 1/2):

    q_{t+1}  proportional to  [q_t p^(eta b) exp(eta P(y > q_t))]^(1 / (1 + eta b))

So at the step's target, h(y) = [(1 + eta b) log q - log q_t - eta b log p](y) / eta equals
P(y > q_t) + const. The fixed point is q = p exp(P(. > q)/b)/Z.

The paper leaves the normaliser and the estimators to the implementer. They are derived here, and have not
been compared with official code. Under q_t, E[P(y > q_t)] = 1/2 by symmetry. So h is centred over the G
samples of a prompt and 1/2 is added, which removes the constant: f = h - mean h + 1/2. The observed P^ of a
sample is its mean win over all G samples, where it ties with itself. This shrinks P^ toward 1/2 by
(G-1)/G, exactly as centring shrinks f. (With the other G - 1 samples only, the regression overshoots by
G/(G-1); the tests enumerate this.) Three losses have the same minimiser f = P:

- ``squared``: (f - P^)^2
- ``kl``: Bernoulli cross-entropy -P^ log f - (1 - P^) log(1 - f)
- ``nce``: the winner of a pair has density 2 P q_t, so winners are contrasted with all samples at
  the logit log 2f: -2 P^ log(2f/(1 + 2f)) + log(1 + 2f)

The last two need f in (0, 1). Where f is clamped to that range, the squared loss is added so that the
gradient does not vanish. Samples are drawn from q_t, then ``updates`` optimizer updates are made on disjoint
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
    step_size: float | None = Field(None, gt=0, description="eta; 1/beta if not given")
    updates: int = Field(4, ge=1, description="optimizer updates per batch of samples")

    @property
    def samples_needed(self) -> SamplesNeeded:
        """Samples of the policy, split among several updates."""
        return SamplesNeeded(policy=True, updates=self.updates)

    def loss(self, batch: StepBatch) -> torch.Tensor:
        """Loss of the regression of f onto the observed win rate."""
        import torch

        samples = samples_of(batch.policy)
        eta = 1 / self.beta if self.step_size is None else self.step_size
        pull = eta * self.beta
        sampled, reference = required(samples.sampled_logprob_B), required(samples.ref_logprob_B)
        h = ((1 + pull) * samples.logprob_B - sampled - pull * reference) / eta
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
    """Share of its prompt's samples that each sample beats, shape ``(B,)``.

    A sample is compared with itself too; ties count 1/2.
    """
    grouped = reward_B.view(-1, group_size)
    mine, theirs = grouped[:, :, None], grouped[:, None, :]
    wins = (mine > theirs).float() + 0.5 * (mine == theirs).float()
    return wins.mean(2).flatten()
