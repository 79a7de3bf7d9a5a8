"""Batched sampling and scoring of token sequences. Shapes: B sequences, P prompt and T new tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bestofn.engine import FinishReason
from training.policy_gradient import TokenTerms, token_terms

# Rows per forward pass. On CPU small passes stay in cache (a third faster than 256 at once); rows
# of like length together waste little on padding.
CHUNK = 64

Logits = Callable[["Rollout"], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Rollout:
    """Samples of one batch; prompts are padded on the left, responses on the right.

    Attributes:
        sequence_BL: prompt and response ids, L = P + T.
        attention_BL: 1 on real tokens.
        response_BT: the response ids.
        mask_BT: True on response tokens, the EOS included, False on what follows it.
    """

    sequence_BL: torch.Tensor
    attention_BL: torch.Tensor
    response_BT: torch.Tensor
    mask_BT: torch.Tensor

    def texts(self, tokenizer: Any) -> list[str]:
        """Decoded responses without special tokens."""
        return [
            tokenizer.decode(ids[mask], skip_special_tokens=True)
            for ids, mask in zip(self.response_BT.cpu(), self.mask_BT.cpu(), strict=True)
        ]

    def finish_reasons(self, tokenizer: Any) -> list[FinishReason]:
        """``stop`` where a response ended with EOS, ``length`` where it was cut off."""
        eos = (self.response_BT == tokenizer.eos_token_id) & self.mask_BT
        return ["stop" if ended else "length" for ended in eos.any(1).tolist()]

    def rows(self, index: torch.Tensor | slice) -> Rollout:
        """Some of the sequences, without the columns that only the others needed."""
        mask = self.mask_BT[index]
        length = int(mask.any(0).sum())
        width = self.sequence_BL.shape[1] - self.response_BT.shape[1] + length
        return Rollout(
            self.sequence_BL[index, :width],
            self.attention_BL[index, :width],
            self.response_BT[index, :length],
            mask[:, :length],
        )


@torch.no_grad()
def sample_responses(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    num_samples: int,
    max_new_tokens: int,
    temperature: float = 1.0,
) -> Rollout:
    """``num_samples`` responses to each prompt from the policy itself (no top-k, no top-p).

    Rows of one prompt are consecutive. Each prompt is read once and its KV cache shared out to its
    samples; rows that have ended leave the batch, so time goes with the tokens drawn, not with the
    longest response. Truncated sampling is not offered: its log-probabilities would not be those of
    the policy being trained. Randomness is torch's global generator of the model's device.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    device = next(model.parameters()).device
    prompt_ids, attention = _left_padded(prompts, pad, device)
    output = model(
        input_ids=prompt_ids,
        attention_mask=attention,
        position_ids=_positions(attention),
        logits_to_keep=1,
        use_cache=True,
    )
    cache = output.past_key_values
    cache.batch_repeat_interleave(num_samples)
    logits = output.logits[:, -1].repeat_interleave(num_samples, 0)
    attention = attention.repeat_interleave(num_samples, 0)
    total = len(prompts) * num_samples
    response = torch.full((total, max_new_tokens), pad, device=device)
    mask = torch.zeros((total, max_new_tokens), dtype=torch.bool, device=device)
    rows = torch.arange(total, device=device)  # of the batch in the output
    running_attention, position = attention, attention.sum(1)
    for step in range(max_new_tokens):
        probabilities = torch.softmax(logits.float() / temperature, dim=-1)
        token = torch.multinomial(probabilities, 1)[:, 0]
        response[rows, step] = token
        mask[rows, step] = True
        running = (token != tokenizer.eos_token_id).nonzero()[:, 0]
        if len(running) == 0 or step + 1 == max_new_tokens:
            break
        if len(running) < len(rows):
            cache.batch_select_indices(running)
            rows, token, position = rows[running], token[running], position[running]
            running_attention = running_attention[running]
        running_attention = torch.nn.functional.pad(running_attention, (0, 1), value=1)
        output = model(
            input_ids=token[:, None],
            attention_mask=running_attention,
            position_ids=position[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        logits, position = output.logits[:, -1], position + 1
    length = int(mask.any(0).sum())
    response, mask = response[:, :length], mask[:, :length]
    sequence = torch.cat([prompt_ids.repeat_interleave(num_samples, 0), response], 1)
    return Rollout(sequence, torch.cat([attention, mask.long()], 1), response, mask)


def _left_padded(
    prompts: Sequence[list[int]], pad: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(ids) for ids in prompts)
    prompt_ids = torch.full((len(prompts), width), pad)
    attention = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, ids in enumerate(prompts):
        prompt_ids[row, width - len(ids) :] = torch.tensor(ids)
        attention[row, width - len(ids) :] = 1
    return prompt_ids.to(device), attention.to(device)


def _positions(attention_BL: torch.Tensor) -> torch.Tensor:
    """Positions that count real tokens only, so that padding on the left changes nothing."""
    return (attention_BL.cumsum(1) - 1).clamp(min=0)


def response_logits(model: Any, rollout: Rollout, temperature: float = 1.0) -> torch.Tensor:
    """Logits that predict each response token, divided by the temperature, shape (B, T, V)."""
    length = rollout.response_BT.shape[1]
    logits = model(
        input_ids=rollout.sequence_BL,
        attention_mask=rollout.attention_BL,
        position_ids=_positions(rollout.attention_BL),
        logits_to_keep=length + 1,
        use_cache=False,
    ).logits
    return logits[:, :-1] / temperature


def terms_of(policy: Logits, reference: Logits, rollout: Rollout) -> TokenTerms:
    """Per-token terms of every sequence, in order, gradients through ``policy`` only.

    Works through chunks of rows of like length; the result is as if done at once.
    """
    total, width = rollout.response_BT.shape
    order = rollout.mask_BT.sum(1).argsort()
    parts: list[TokenTerms] = []
    for start in range(0, total, CHUNK):
        part = rollout.rows(order[start : start + CHUNK])
        with torch.no_grad():
            reference_logits = reference(part)
        parts.append(token_terms(policy(part), reference_logits, part.response_BT, part.mask_BT))
    back = order.argsort()

    def joined(name: str) -> torch.Tensor:
        pieces = [getattr(part, name) for part in parts]
        padded = [torch.nn.functional.pad(p, (0, width - p.shape[1])) for p in pieces]
        return torch.cat(padded)[back]

    return TokenTerms(
        logprob_BT=joined("logprob_BT"),
        ref_logprob_BT=joined("ref_logprob_BT"),
        kl_BT=joined("kl_BT"),
        mask_BT=rollout.mask_BT,
    )
