"""Log-probabilities and KL of sampled sequences under language models.

Shapes: B sequences, P prompt tokens, T response tokens, L = P + T, N response tokens in all, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from training.rollouts.rollout import Rollout, positions
from training.rollouts.shared_prompts import (
    SharedPrompts,
    can_share_prompts,
    prompt_states,
    response_outputs,
    shared_prompts,
)
from training.rollouts.token_terms import Predictions, TokenTerms, token_logprobs, token_terms
from vbon.linear_layers import FastLinear

# Rows per forward pass. Rows of similar length go together, which wastes little on padding. On a CPU a
# small pass fits into its cache; it is a fifth faster than 128 rows at once.
CPU_CHUNK, GPU_CHUNK = 32, 256


@dataclass(frozen=True, slots=True)
class Passes:
    """A rollout in the parts that a model runs over.

    Attributes:
        order_B: the sequences by length.
        chunks: the sequences in this order.
        prompts: the prompts that sequences share; ``None`` to run over whole sequences.
        prompts_of_chunks: of each chunk, the prompt of each sequence.
    """

    order_B: torch.Tensor
    chunks: list[Rollout]
    prompts: SharedPrompts | None
    prompts_of_chunks: tuple[torch.Tensor, ...]

    @property
    def size(self) -> int:
        """The number of sequences in a chunk, at most."""
        return len(self.chunks[0].mask_BT)


@dataclass(frozen=True, slots=True)
class Predictor:
    """A language model as a source of the distributions that response tokens are drawn from.

    Attributes:
        model: may be a PEFT model, and wrapped by DDP or FSDP.
        temperature: what logits are divided by.
        autocast: True to compute in bfloat16.
    """

    model: Any
    temperature: float = 1.0
    autocast: bool = False

    def predictions(self, passes: Passes) -> Predictions:
        """The distributions of the response tokens of a rollout, in the order of its passes."""
        device = passes.order_B.device.type
        head = output_layer(self.model)
        with torch.autocast(device, torch.bfloat16, enabled=self.autocast):
            if head is None:
                logits = _joined(self._outputs(passes))
                return Predictions(logits, temperature=self.temperature, dtype=logits.dtype)
            with _left_out(head):
                hidden = _joined(self._outputs(passes))
            dtype = torch.bfloat16 if self.autocast else head.weight.dtype
            return Predictions(hidden, head.weight, head.bias, self.temperature, dtype)

    def _outputs(self, passes: Passes) -> list[torch.Tensor]:
        """The model's logits, or the hidden states in their place, that predict each chunk's tokens."""
        if passes.prompts is None:
            return [self._of_sequences(chunk)[chunk.mask_BT] for chunk in passes.chunks]
        states = prompt_states(self.model, passes.prompts, passes.size)
        return [
            response_outputs(self.model, chunk, prompt_B, states)[chunk.mask_BT]
            for chunk, prompt_B in zip(passes.chunks, passes.prompts_of_chunks, strict=True)
        ]

    def _of_sequences(self, rollout: Rollout) -> torch.Tensor:
        """The same for each place of the responses, from whole sequences."""
        outputs: torch.Tensor = self.model(
            input_ids=rollout.sequence_BL,
            attention_mask=rollout.attention_BL,
            position_ids=positions(rollout.attention_BL),
            logits_to_keep=rollout.response_BT.shape[1] + 1,
            use_cache=False,
        ).logits
        return outputs[:, :-1]


def terms_of(policy: Predictor, reference: Predictor, rollout: Rollout) -> TokenTerms:
    """Per-token terms of every sequence, with gradient only through ``policy``.

    The models run once over each prompt, then on chunks of responses of similar length; the result is the
    same as for all sequences at once. Both run in the same way, so that equal weights give a KL of zero.
    """
    passes = _passes(rollout, policy, reference)
    with torch.no_grad():
        theirs = reference.predictions(passes)
    ours = policy.predictions(passes)
    logprob, ref_logprob, kl = token_terms(ours, theirs, _tokens(passes.chunks))
    return TokenTerms(
        logprob_BT=_in_rows(logprob, passes.order_B, rollout),
        ref_logprob_BT=_in_rows(ref_logprob, passes.order_B, rollout),
        kl_BT=_in_rows(kl, passes.order_B, rollout),
        mask_BT=rollout.mask_BT,
    )


def logprobs_of(model: Predictor, rollout: Rollout) -> torch.Tensor:
    """``log`` probability of each response token under ``model``, with gradient, shape ``(B, T)``."""
    passes = _passes(rollout, model)
    logprob = token_logprobs(model.predictions(passes), _tokens(passes.chunks))
    return _in_rows(logprob, passes.order_B, rollout)


def _passes(rollout: Rollout, *models: Predictor) -> Passes:
    """The chunks of a rollout, by length; prompts are shared if all models can do so."""
    order = rollout.mask_BT.sum(1).argsort(stable=True)
    size = CPU_CHUNK if order.device.type == "cpu" else GPU_CHUNK
    starts = range(0, len(order), size)
    chunks = [rollout.rows(order[start : start + size]) for start in starts]
    prompts = None
    if all(can_share_prompts(one.model) for one in models):
        prompts = shared_prompts(rollout)
    shares = () if prompts is None else prompts.prompt_B[order].split(size)
    return Passes(order, chunks, prompts, shares)


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """All rows of all parts; a single part, which may be large, is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _tokens(parts: list[Rollout]) -> torch.Tensor:
    """The response tokens of all parts, without padding, shape ``(N,)``."""
    return torch.cat([part.response_BT[part.mask_BT] for part in parts])


def _in_rows(values_N: torch.Tensor, order: torch.Tensor, rollout: Rollout) -> torch.Tensor:
    """Values of tokens in the order of the chunks, at their places in the rollout; 0 on padding."""
    mask = rollout.mask_BT[order]
    rows = values_N.new_zeros(mask.shape).masked_scatter(mask, values_N)
    return rows[order.argsort()]


_KNOWN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def output_layer(model: Any) -> nn.Linear | None:
    """The model's output layer, if its logits are the plain product of hidden states and weights.

    ``None`` if the logits are processed further (soft caps, scales), the layer is of another kind
    (quantised, with an adapter), or FSDP has sharded its weights.
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    if not isinstance(inner, PreTrainedModel | PeftModel):
        return None
    head = inner.get_output_embeddings()
    if type(head) not in (nn.Linear, FastLinear):
        return None
    if inner not in _KNOWN:
        # FSDP replaces shards by whole weights during a step, so what is found first counts.
        sharded = isinstance(head.weight, DTensor)
        replaced = "forward" in vars(head)
        _KNOWN[inner] = not sharded and not replaced and _returns_its_logits(inner, head)
    return head if _KNOWN[inner] else None


@torch.no_grad()
def _returns_its_logits(model: Any, head: nn.Linear) -> bool:
    """True if whatever the output layer returns is what the model returns; tried with large numbers."""
    ids = torch.zeros((1, 2), dtype=torch.long, device=head.weight.device)
    tried = torch.linspace(-100, 100, 2 * head.out_features, device=ids.device)
    tried = tried.view(1, 2, head.out_features)
    with _replaced(head, lambda _: tried):
        found = model(input_ids=ids, logits_to_keep=2, use_cache=False).logits
    return found.shape == tried.shape and bool((found == tried).all())


def _left_out(head: nn.Linear) -> Any:
    """Let the layer return its input meanwhile, so that its model returns hidden states as logits."""
    return _replaced(head, lambda hidden: hidden)


@contextmanager
def _replaced(layer: nn.Module, function: Any) -> Iterator[None]:
    layer.forward = function
    try:
        yield
    finally:
        del layer.forward
