"""Per-token log-probabilities and KL of sampled completions under policy and reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """Per-token quantities of sampled responses; padded positions are masked out by ``mask_BT``.

    Attributes:
        logprob_BT: ``log q`` of the sampled token, with gradient.
        ref_logprob_BT: ``log p`` of it.
        kl_BT: exact KL(q(.|y_<t) || p(.|y_<t)) in nats, with gradient.
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
    """From the logits that *predict* each token (already shifted by one), in float32."""
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
    """``log q`` of each token alone, shape ``(B, T)``, 0 on padding, in float32."""
    log_q = torch.log_softmax(logits_BTV.float(), dim=-1)
    return log_q.gather(-1, tokens_BT[..., None])[..., 0] * mask_BT
