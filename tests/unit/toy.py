"""A policy small enough to enumerate: three tokens (0 ends a text), at most three tokens a text.

There are 15 texts, each with its own reward, and a table of logits per prefix, so every expectation is
a finite sum. :func:`batch_for` draws what the trainer would draw and runs the same code on it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from training.objectives.protocol import CachedChoice, Objective, Samples, StepBatch
from training.rollouts import token_terms as tokens
from training.rollouts.token_terms import Predictions, TokenTerms

VOCABULARY, LENGTH, EOS = 3, 3, 0
SMALLEST = 1e-300  # log F of the worst text is -inf


def all_texts() -> list[tuple[int, ...]]:
    texts = []
    for length in range(1, LENGTH + 1):
        for text in itertools.product(range(VOCABULARY), repeat=length):
            ended = text[-1] == EOS or length == LENGTH
            if ended and EOS not in text[:-1]:
                texts.append(text)
    return texts


TEXTS = all_texts()
PREFIXES = [
    prefix
    for length in range(LENGTH)
    for prefix in itertools.product(range(1, VOCABULARY), repeat=length)
]
TOKENS = torch.zeros(len(TEXTS), LENGTH, dtype=torch.long)
MASK = torch.zeros(len(TEXTS), LENGTH, dtype=torch.bool)
STATE = torch.zeros(len(TEXTS), LENGTH, dtype=torch.long)
for row, text in enumerate(TEXTS):
    for t, token in enumerate(text):
        TOKENS[row, t], MASK[row, t] = token, True
        STATE[row, t] = PREFIXES.index(text[:t])


def table(seed: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(len(PREFIXES), VOCABULARY, generator=generator, dtype=torch.float64)


def log_probability(logits: torch.Tensor) -> torch.Tensor:
    """Log-probability of every text, shape (15,)."""
    steps = torch.log_softmax(logits, -1)[STATE].gather(-1, TOKENS[..., None])[..., 0]
    return (steps * MASK).sum(1)


REFERENCE = table(0)
LOG_P = log_probability(REFERENCE)
P = LOG_P.exp()
REWARD = torch.randn(len(TEXTS), generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def cdf(probability: torch.Tensor, inclusive: bool) -> torch.Tensor:
    """P[reward < r] (or <=) of every text, differentiable in the probabilities."""
    compare = REWARD[None, :] <= REWARD[:, None] if inclusive else REWARD[None, :] < REWARD[:, None]
    return (compare * probability[None, :]).sum(1)


STRICT, UP_TO = cdf(P, False), cdf(P, True)


def bon(probability: torch.Tensor, n: float) -> torch.Tensor:
    """Best-of-n of a distribution, form (a); any real n >= 1; differentiable."""
    return cdf(probability, True).clamp(max=1) ** n - cdf(probability, False) ** n


def kl(q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    return torch.where(q > 0, q * (q.clamp(min=1e-300).log() - p.log()), 0.0).sum()


def win_rate(q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """P[a sample of q beats one of p], ties 1/2."""
    return (q * (cdf(p, False) + cdf(p, True)) / 2).sum()


@dataclass(frozen=True)
class Toy:
    """A random number generator and how much to draw."""

    generator: torch.Generator
    groups: int
    group_size: int

    def pick(self, probability: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        count = int(torch.tensor(shape).prod())
        drawn = torch.multinomial(
            probability.detach(), count, replacement=True, generator=self.generator
        )
        return drawn.view(shape)

    def cached(self, choice: CachedChoice, p: torch.Tensor) -> torch.Tensor:
        """Texts of the reference as an endless cache would give them, shape (groups * group_size,).

        There, ``tilted`` samples are bests of n.
        """
        if choice.kind == "uniform":
            return self.pick(p, (self.groups * self.group_size,))
        if choice.kind == "tilted":  # n may be a fraction
            return self.pick(bon(p, choice.num_samples), (self.groups * self.group_size,))
        pairs = choice.kind == "best-worst"
        count = self.groups * self.group_size // (2 if pairs else 1)
        subset = self.pick(p, (count, int(choice.num_samples)))
        best = subset.gather(1, REWARD[subset].argmax(1, keepdim=True))
        if not pairs:
            return best[:, 0]
        worst = subset.gather(1, REWARD[subset].argmin(1, keepdim=True))
        return torch.cat([best, worst], 1).flatten()


def token_terms(
    logits_BTV: torch.Tensor,
    ref_logits_BTV: torch.Tensor,
    tokens_BT: torch.Tensor,
    mask_BT: torch.Tensor,
) -> TokenTerms:
    """The trainer's terms per token, from logits that predict each token."""
    found = tokens.token_terms(
        Predictions(logits_BTV[mask_BT].float()),
        Predictions(ref_logits_BTV[mask_BT].float()),
        tokens_BT[mask_BT],
    )
    in_rows = (one.new_zeros(mask_BT.shape).masked_scatter(mask_BT, one) for one in found)
    return TokenTerms(*in_rows, mask_BT=mask_BT)


def samples_of_texts(
    logits: torch.Tensor, index: torch.Tensor, group_size: int, anchor: torch.Tensor, *, own: bool
) -> Samples:
    # The terms of a sample are those of its text: each text's are computed once.
    terms = token_terms(logits[STATE], anchor[STATE], TOKENS, MASK)
    return Samples(
        logprob_BT=terms.logprob_BT[index],
        mask_BT=MASK[index],
        group_size=group_size,
        reward_B=REWARD[index].float(),
        log_cdf_B=STRICT.clamp(min=SMALLEST).log()[index].float(),
        log_cdf_le_B=UP_TO.clamp(max=1).log()[index].float(),
        ref_logprob_B=LOG_P[index].float(),
        kl_BT=terms.kl_BT[index] if own else None,
        sampled_logprob_B=log_probability(logits).detach()[index].float() if own else None,
        log_quantile_B=None if own else UP_TO.clamp(max=1).log()[index].float(),
    )


def batch_for(
    objective: Objective,
    logits: torch.Tensor,
    toy: Toy,
    anchor: torch.Tensor = REFERENCE,
    drawn_from: torch.Tensor | None = None,
) -> StepBatch:
    """A batch as the trainer would make it; the policy's samples come from ``drawn_from`` if given."""
    needed = objective.samples_needed
    parts: dict[str, Samples] = {}
    if needed.policy:
        source = logits if drawn_from is None else drawn_from
        index = toy.pick(log_probability(source).exp(), (toy.groups * toy.group_size,))
        against = anchor if needed.anchor == "moving" else REFERENCE
        parts["policy"] = samples_of_texts(logits, index, toy.group_size, against, own=True)
        if drawn_from is not None:
            drawn = log_probability(drawn_from).detach()[index].float()
            object.__setattr__(parts["policy"], "sampled_logprob_B", drawn)
    if needed.cached is not None:
        index = toy.cached(needed.cached, P)
        parts["cached"] = samples_of_texts(logits, index, toy.group_size, REFERENCE, own=False)
    if needed.anchor_samples:
        shape = (toy.groups * needed.anchor_samples,)
        index = toy.pick(log_probability(anchor).exp(), shape)
        parts["anchor"] = samples_of_texts(logits, index, needed.anchor_samples, anchor, own=False)
    return StepBatch(**parts)
