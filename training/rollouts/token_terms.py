"""Per-token log-probabilities and KL of responses, under policy and reference.

Shapes: B sequences, T response tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """Per-token log-probabilities and KL of responses; 0 on padding.

    Attributes:
        logprob_BT: ``log q`` of each token, with gradient.
        ref_logprob_BT: ``log p`` of each token.
        kl_BT: exact KL(q(.|y_<t) || p(.|y_<t)) at each position in nats, with gradient.
        mask_BT: True on response tokens, EOS included.
    """

    logprob_BT: torch.Tensor
    ref_logprob_BT: torch.Tensor
    kl_BT: torch.Tensor
    mask_BT: torch.Tensor


def token_terms(
    logits_BTV: torch.Tensor,
    ref_logits_BTV: torch.Tensor,
    tokens_BT: torch.Tensor,
    mask_BT: torch.Tensor,
) -> TokenTerms:
    """Compute the terms in float32 from the logits of policy and reference.

    Args:
        logits_BTV: logits that *predict* each token, so already shifted by one position.
        ref_logits_BTV: the same of the reference.
        mask_BT: True on response tokens.
    """
    log_q = torch.log_softmax(logits_BTV.float(), dim=-1)
    log_p = torch.log_softmax(ref_logits_BTV.float(), dim=-1)
    picked = tokens_BT[..., None]
    kl = (log_q.exp() * (log_q - log_p)).sum(-1)
    return TokenTerms(
        logprob_BT=log_q.gather(-1, picked)[..., 0] * mask_BT,
        ref_logprob_BT=log_p.gather(-1, picked)[..., 0] * mask_BT,
        kl_BT=kl * mask_BT,
        mask_BT=mask_BT,
    )


def token_logprobs(
    logits_BTV: torch.Tensor, tokens_BT: torch.Tensor, mask_BT: torch.Tensor
) -> torch.Tensor:
    """``log q`` of each token in float32, shape ``(B, T)``; 0 on padding.

    The logits are those that predict each token, as in :func:`token_terms`.
    """
    log_q = torch.log_softmax(logits_BTV.float(), dim=-1)
    return log_q.gather(-1, tokens_BT[..., None])[..., 0] * mask_BT
