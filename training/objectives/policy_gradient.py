"""The policy-gradient estimator for ``E_q[R(y)] - beta KL(q || p)``. Shapes: B sequences, T tokens.

Textbook RLOO gives every token the same sequence-level reward ``R - beta log(q/p)``
(``kl_estimator="sampled"``, the default of vBoN, whose optimum leaves it without noise). The estimator
``exact`` uses what is known exactly:

- the KL of each position is the exact KL between the two next-token distributions
  (Rao-Blackwellised), differentiated directly instead of by its sampled score;
- a token is credited only with the KL that comes after it (reward-to-go), because the KL before it does
  not depend on it;
- the baseline is the leave-one-out mean of the same quantity over the other samples of the prompt.

All three reduce the variance without changing the expected gradient (tested by enumeration).
"""

from __future__ import annotations

import torch

from training.objectives.protocol import Baseline


def leave_one_out(values: torch.Tensor, group_size: int) -> torch.Tensor:
    """Mean over the *other* members of each group of consecutive rows; same shape as the input.

    Raises:
        ValueError: a group has fewer than two members, so a member has no others.
    """
    if group_size < 2:
        raise ValueError(f"leave-one-out needs at least 2 samples per prompt, got {group_size}")
    grouped = values.view(-1, group_size, *values.shape[1:])
    others = (grouped.sum(1, keepdim=True) - grouped) / (group_size - 1)
    return others.view_as(values)


def policy_gradient_loss(
    logprob_BT: torch.Tensor,
    kl_BT: torch.Tensor,
    sequence_reward_B: torch.Tensor,
    kl_coefficient: float,
    group_size: int,
    *,
    baseline: Baseline = "leave-one-out",
) -> torch.Tensor:
    """A scalar whose gradient is an unbiased estimate of ``-grad (E_q[R] - beta KL(q || p))``.

    Args:
        logprob_BT: ``log q`` of each token with gradient; the samples of a prompt are consecutive.
        kl_BT: exact KL of each position with gradient.
        sequence_reward_B: R, the reward at the end of each sample.
        kl_coefficient: beta.
        group_size: samples per prompt, at least 2 for the leave-one-out baseline.
        baseline: the baseline to subtract; ``none`` is for ablations.
    """
    kl = kl_BT.detach()
    kl_after = kl.flip(1).cumsum(1).flip(1) - kl
    advantage = sequence_reward_B.detach()[:, None] - kl_coefficient * kl_after
    if baseline == "leave-one-out":
        advantage = advantage - leave_one_out(advantage, group_size)
    score = -(advantage * logprob_BT).sum(1)
    return (score + kl_coefficient * kl_BT.sum(1)).mean()


def sampled_kl_loss(
    logprob_BT: torch.Tensor,
    ref_logprob_B: torch.Tensor,
    sequence_reward_B: torch.Tensor,
    kl_coefficient: float,
    group_size: int,
    *,
    baseline: Baseline = "leave-one-out",
) -> torch.Tensor:
    """The textbook estimator: every token of a sample has the return ``R - beta (log q - log p)``."""
    logprob_B = logprob_BT.sum(1)
    value = sequence_reward_B.detach() - kl_coefficient * (logprob_B.detach() - ref_logprob_B)
    if baseline == "leave-one-out":
        value = value - leave_one_out(value, group_size)
    return -(value * logprob_B).mean()
