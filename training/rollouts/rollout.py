"""Batched sampling. Shapes: B sequences, P prompt tokens, T response tokens, L = P + T, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from training.rollouts.growing_cache import growing_cache, without_holes
from vbon.engine import FinishReason
from vbon.prompts import completion_decoder


@dataclass(frozen=True, slots=True)
class Rollout:
    """A batch of responses to prompts; prompts are padded on the left, responses on the right.

    Attributes:
        sequence_BL: token ids of prompt and response.
        attention_BL: 1 on real tokens, 0 on padding.
        response_BT: token ids of the response.
        mask_BT: True on response tokens, EOS included; False on the padding after it.
        sampled_logprob_BT: ``log`` probability of each token under the policy as it was when it drew the
            sample; ``None`` if not known, as for cached samples.
    """

    sequence_BL: torch.Tensor
    attention_BL: torch.Tensor
    response_BT: torch.Tensor
    mask_BT: torch.Tensor
    sampled_logprob_BT: torch.Tensor | None = None

    def texts(self, tokenizer: Any, extra_stop_ids: Sequence[int] = ()) -> list[str]:
        """Responses decoded after their prompts, as the service decodes them.

        Special tokens are left out, and so is a token of ``extra_stop_ids`` that ended a response.
        """
        sequence, attention = self.sequence_BL.cpu(), self.attention_BL.cpu().bool()
        width = sequence.shape[1] - self.response_BT.shape[1]
        found: list[str] = []
        context: list[int] | None = None
        for ids, real in zip(sequence, attention, strict=True):
            prompt = ids[:width][real[:width]].tolist()
            if prompt != context:  # rows of one prompt usually follow each other
                context, decode = prompt, completion_decoder(tokenizer, prompt)
            response = ids[width:][real[width:]].tolist()
            stopped = bool(response) and response[-1] in extra_stop_ids
            found.append(decode(response[:-1] if stopped else response))
        return found

    def finish_reasons(
        self, tokenizer: Any, extra_stop_ids: Sequence[int] = ()
    ) -> list[FinishReason]:
        """``stop`` for each response that ends with EOS or an extra stop, ``length`` if it was cut off."""
        ends = torch.tensor([tokenizer.eos_token_id, *extra_stop_ids])
        eos = torch.isin(self.response_BT, ends.to(self.response_BT.device)) & self.mask_BT
        return ["stop" if ended else "length" for ended in eos.any(1).tolist()]

    def rows(self, index: torch.Tensor | slice) -> Rollout:
        """A part of the sequences, without columns that are padding in all of them."""
        mask = self.mask_BT[index]
        length = int(mask.any(0).sum())
        width = self.sequence_BL.shape[1] - self.response_BT.shape[1] + length
        sampled = self.sampled_logprob_BT
        return Rollout(
            self.sequence_BL[index, :width],
            self.attention_BL[index, :width],
            self.response_BT[index, :length],
            mask[:, :length],
            None if sampled is None else sampled[index, :length],
        )


def row_uniforms(
    seeds: Sequence[int], num_samples: int, length: int, skip: int = 0
) -> torch.Tensor:
    """Uniform random numbers, one for each token to draw.

    They depend only on the prompt's seed and the sample's place among those of the prompt. So the samples of
    a prompt do not change with the batch or the process that they are drawn in.

    Args:
        skip: number of samples of each prompt that come before these.

    Returns:
        float64, shape ``(len(seeds) * num_samples, length)``.
    """
    count = skip + num_samples
    rows = [np.random.default_rng(seed).random((count, length))[skip:] for seed in seeds]
    return torch.from_numpy(np.concatenate(rows))


@torch.no_grad()
def sample_responses(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    num_samples: int,
    max_new_tokens: int,
    seeds: Sequence[int],
    temperature: float = 1.0,
    extra_stop_ids: Sequence[int] = (),
    skip: int = 0,
) -> Rollout:
    """Draw ``num_samples`` responses to each prompt from the policy itself.

    Each prompt is processed once, and all its samples start from its KV cache. Finished rows leave the
    batch, so the time is proportional to the number of tokens drawn, not to the longest response. Top-k and
    top-p are not available, because their log-probabilities would not be those of the policy being
    trained. A token is drawn by inverting the cdf, which is twelve times as fast on a CPU as
    ``torch.multinomial`` (docs/log.md).

    Args:
        prompts: token ids.
        seeds: one per prompt (:func:`row_uniforms`).
        extra_stop_ids: tokens that end a response besides the tokenizer's EOS.
        skip: number of samples of each prompt that were drawn before these.

    Returns:
        The responses; those of a prompt are consecutive rows.
    """
    # A model in training mode with gradient checkpointing does not keep a KV cache.
    training, _ = model.training, model.eval()
    try:
        ends = [tokenizer.eos_token_id, *extra_stop_ids]
        pad = padding_id(tokenizer)
        uniforms = row_uniforms(seeds, num_samples, max_new_tokens, skip)
        return _sample(model, pad, ends, prompts, num_samples, uniforms, temperature)
    finally:
        model.train(training)


def _sample(
    model: Any,
    pad: int,
    ends: Sequence[int],
    prompts: Sequence[list[int]],
    num_samples: int,
    uniforms: torch.Tensor,
    temperature: float,
) -> Rollout:
    device, max_new_tokens = next(model.parameters()).device, uniforms.shape[1]
    uniforms = uniforms.to(device)
    end_ids = torch.tensor(ends, device=device)
    prompt_ids, attention = _left_padded(prompts, pad, device)
    output = read_prompts(model, prompt_ids, attention)
    cache = growing_cache(output.past_key_values, num_samples)
    logits = output.logits[:, -1].repeat_interleave(num_samples, 0)
    attention = attention.repeat_interleave(num_samples, 0)
    total = len(prompts) * num_samples
    response = torch.full((total, max_new_tokens), pad, device=device)
    mask = torch.zeros((total, max_new_tokens), dtype=torch.bool, device=device)
    logprob = torch.zeros((total, max_new_tokens), device=device)
    rows = torch.arange(total, device=device)  # output row of each row that is still in the batch
    running_attention, position = attention, attention.sum(1)
    for step in range(max_new_tokens):
        log_q = torch.log_softmax(logits.float() / temperature, dim=-1)
        token = _inverse_cdf(log_q, uniforms[rows, step])
        response[rows, step] = token
        logprob[rows, step] = log_q.gather(1, token[:, None])[:, 0]
        mask[rows, step] = True
        running = without_holes(torch.isin(token, end_ids, invert=True))
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
    response, mask, logprob = response[:, :length], mask[:, :length], logprob[:, :length]
    sequence = torch.cat([prompt_ids.repeat_interleave(num_samples, 0), response], 1)
    return Rollout(sequence, torch.cat([attention, mask.long()], 1), response, mask, logprob)


def _inverse_cdf(log_q_BV: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """The token at which the cdf passes each uniform number.

    The cdf is float64, because float32 is too coarse for the many small probabilities of the tail.
    """
    cdf = log_q_BV.exp().cumsum(-1, dtype=torch.float64)
    token = torch.searchsorted(cdf, uniform_B[:, None] * cdf[:, -1:], right=True)[:, 0]
    return token.clamp(max=log_q_BV.shape[1] - 1)


def padding_id(tokenizer: Any) -> int:
    """The token id used for padding, which the attention mask hides."""
    pad = tokenizer.pad_token_id
    return int(pad if pad is not None else tokenizer.eos_token_id)


def rollout_of(
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    tokenizer: Any,
    device: torch.device,
) -> Rollout:
    """A rollout made of given responses, one prompt and one response per row."""
    pad = padding_id(tokenizer)
    prompt_ids, attention = _left_padded(prompts, pad, device)
    length = max(len(ids) for ids in responses)
    response = torch.full((len(responses), length), pad)
    mask = torch.zeros((len(responses), length), dtype=torch.bool)
    for row, ids in enumerate(responses):
        response[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = True
    response, mask = response.to(device), mask.to(device)
    return Rollout(
        torch.cat([prompt_ids, response], 1),
        torch.cat([attention, mask.long()], 1),
        response,
        mask,
    )


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


def read_prompts(model: Any, ids_BL: torch.Tensor, attention_BL: torch.Tensor) -> Any:
    """The model's output for prompts padded on the left: logits of the last token, and the KV cache."""
    return model(
        input_ids=ids_BL,
        attention_mask=attention_BL,
        position_ids=positions(attention_BL),
        logits_to_keep=1,
        use_cache=True,
    )


def positions(attention_BL: torch.Tensor) -> torch.Tensor:
    """Position ids that count only real tokens, so that left padding changes nothing."""
    return (attention_BL.cumsum(1) - 1).clamp(min=0)
