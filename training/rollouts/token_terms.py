r"""Per-token log-probabilities and KL of responses, under policy and reference.

Shapes: N response tokens, C of them in a chunk, D features of a hidden state, V vocabulary.

The distributions of all tokens, N x V numbers, never exist at once. The output layer is applied to chunks of
tokens, and each chunk is reduced to three numbers per token. The backward pass computes the distributions
of each chunk again. With logits z, q = softmax(z), and the reference p,

    d log q(y) / dz = e_y - q          d KL(q || p) / dz = q (log q - log p - KL)

so the memory grows with C x V, whatever N is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from vbon.linear_layers import product

# Bytes of a chunk's logits. On a CPU a small chunk stays in its cache; a GPU needs larger products. A chunk
# has at least as many tokens as make a product efficient, whatever the vocabulary.
CPU_BYTES, GPU_BYTES = 2**22, 2**29
FEWEST_TOKENS = 128


def chunk_tokens(vocabulary: int, device_type: str) -> int:
    """Number of tokens in a chunk."""
    most = CPU_BYTES if device_type == "cpu" else GPU_BYTES
    return max(FEWEST_TOKENS, most // (4 * max(1, vocabulary)))


def chunk_bytes(vocabulary: int, device_type: str) -> int:
    """Bytes of the five float32 arrays that exist for a chunk: logits, log q, log p, q and a product."""
    return 5 * 4 * vocabulary * chunk_tokens(vocabulary, device_type)


@dataclass(frozen=True, slots=True)
class Predictions:
    """A model's next-token distributions at N places, not yet computed from the hidden states.

    Attributes:
        hidden_ND: what the output layer gets at each place; the logits themselves without ``weight_VD``.
        weight_VD: the output layer's weights; ``None`` if its logits are given.
        bias_V: the output layer's bias, if it has one.
        temperature: what logits are divided by.
        dtype: the type in which the output layer multiplies.
    """

    hidden_ND: torch.Tensor
    weight_VD: torch.Tensor | None = None
    bias_V: torch.Tensor | None = None
    temperature: float = 1.0
    dtype: torch.dtype = torch.float32

    @property
    def vocabulary(self) -> int:
        """V, the number of tokens that a distribution is over."""
        return len(self.weight_VD) if self.weight_VD is not None else self.hidden_ND.shape[1]

    def chunks(self) -> Iterator[slice]:
        """The places in chunks that are small enough for memory."""
        size = chunk_tokens(self.vocabulary, self.hidden_ND.device.type)
        for start in range(0, len(self.hidden_ND), size):
            yield slice(start, start + size)

    def log_probabilities(self, part: slice) -> torch.Tensor:
        """Log-probabilities of every token at some places in float32 (or float64), shape ``(C, V)``."""
        logits = self.hidden_ND[part]
        if self.weight_VD is not None:
            logits = product(logits.to(self.dtype), self.weight_VD.to(self.dtype))
        if self.bias_V is not None:
            logits = logits + self.bias_V.to(logits.dtype)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.temperature != 1:
            logits = logits / self.temperature
        return torch.log_softmax(logits, dim=-1)


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
    policy: Predictions, reference: Predictions, tokens_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``log q`` of each token, ``log p`` of it and KL(q || p) at its place, each of shape ``(N,)``.

    ``log q`` and the KL have gradients with respect to the policy's hidden states, weights and bias.
    """
    logprob, ref_logprob, kl = _TokenTerms.apply(
        policy.hidden_ND, policy.weight_VD, policy.bias_V, policy, reference, tokens_N
    )
    return logprob, ref_logprob, kl


def token_logprobs(policy: Predictions, tokens_N: torch.Tensor) -> torch.Tensor:
    """``log q`` of each token, shape ``(N,)``, with gradient as in :func:`token_terms`."""
    logprob: torch.Tensor = _TokenTerms.apply(
        policy.hidden_ND, policy.weight_VD, policy.bias_V, policy, None, tokens_N
    )[0]
    return logprob


class _TokenTerms(torch.autograd.Function):
    """The three terms per token; without a reference, ``log p`` and KL are 0."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor | None,
        bias_V: torch.Tensor | None,
        policy: Predictions,
        reference: Predictions | None,
        tokens_N: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        precise = torch.promote_types(policy.dtype, torch.float32)
        logprob, ref_logprob, kl = (
            hidden_ND.new_zeros(len(tokens_N), dtype=precise) for _ in range(3)
        )
        for part in policy.chunks():
            token = tokens_N[part, None]
            log_q = policy.log_probabilities(part)
            logprob[part] = log_q.gather(1, token)[:, 0]
            if reference is not None:
                log_p = reference.log_probabilities(part)
                ref_logprob[part] = log_p.gather(1, token)[:, 0]
                kl[part] = log_p.neg_().add_(log_q).mul_(log_q.exp_()).sum(1)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, tokens_N, kl)
        ctx.temperature, ctx.dtype, ctx.reference = policy.temperature, policy.dtype, reference
        ctx.mark_non_differentiable(ref_logprob)
        return logprob, ref_logprob, kl

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprob_N: torch.Tensor, _: torch.Tensor, grad_kl_N: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, tokens, kl = ctx.saved_tensors
        policy = Predictions(hidden, weight, bias, ctx.temperature, ctx.dtype)
        of_hidden, of_weight, of_bias, *_ = ctx.needs_input_grad
        grad_hidden = torch.zeros_like(hidden) if of_hidden else None
        grad_weight = torch.zeros_like(weight) if of_weight else None
        grad_bias = torch.zeros_like(bias) if of_bias else None
        for part in policy.chunks():
            grad = _grad_logits(policy, ctx.reference, part, tokens, kl, grad_logprob_N, grad_kl_N)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(ctx.dtype if weight is not None else hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad if weight is None else product(grad, weight.to(grad).mT)
            if grad_weight is not None:
                grad_weight += product(grad.mT, hidden[part].to(grad).mT)
        return grad_hidden, grad_weight, grad_bias, None, None, None


def _grad_logits(
    policy: Predictions,
    reference: Predictions | None,
    part: slice,
    tokens_N: torch.Tensor,
    kl_N: torch.Tensor,
    grad_logprob_N: torch.Tensor,
    grad_kl_N: torch.Tensor,
) -> torch.Tensor:
    """Gradient with respect to a chunk's logits before the temperature, shape ``(C, V)``."""
    of_logprob = grad_logprob_N[part, None]
    log_q = policy.log_probabilities(part)
    if reference is None:
        grad = log_q.exp_().mul_(-of_logprob)
    else:
        grad = reference.log_probabilities(part).neg_().add_(log_q)
        grad = grad.sub_(kl_N[part, None]).mul_(grad_kl_N[part, None]).sub_(of_logprob)
        grad = grad.mul_(log_q.exp_())
    grad.scatter_add_(1, tokens_N[part, None], of_logprob)
    return grad if policy.temperature == 1 else grad.div_(policy.temperature)
