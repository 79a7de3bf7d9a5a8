"""Loads causal language models for training and evaluation."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from vbon.errors import CheckpointError
from vbon.linear_layers import speed_up_linear_layers
from vbon.storage.checkpoints import Checkpoint, check_checkpoint
from vbon.storage.model_shape import ModelShape, shape_of


def load_policy(
    path: str,
    *,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    checkpoint: Checkpoint | None = None,
) -> tuple[Any, Any, Checkpoint]:
    """Load a model, its tokenizer and its checked checkpoint.

    The model is in evaluation mode, and on the GPU if there is one. Dropout stays off in training too,
    because the policy that samples and the policy that learns must be the same distribution.

    Args:
        path: a directory or ``hf://org/name``.
        checkpoint: the result of an earlier check of ``path``; checking large weights takes a while.

    Raises:
        CheckpointError: the checkpoint is missing, truncated, or not a causal LM.
    """
    checkpoint = checkpoint or check_checkpoint(path, "causal-lm")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint.path, trust_remote_code=trust_remote_code, padding_side="left"
        )
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint.path,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"cannot load policy {path}: {error}") from error
    if tokenizer.eos_token_id is None:
        raise CheckpointError(
            f"the tokenizer of {path} has no EOS token; set eos_token in its config"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()
    speed_up_linear_layers(model)
    return model, tokenizer, checkpoint


def hub_shape(name: str, *, trust_remote_code: bool = False) -> ModelShape:
    """The size and shape of a model of the hub, from its config alone.

    Raises:
        CheckpointError: the config cannot be read, or is not that of a causal LM.
    """
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        with torch.device("meta"):  # the weights get shapes, and no memory
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"cannot load policy {name}: {error}") from error
    return shape_of(config.to_dict(), sum(weights.numel() for weights in model.parameters()))
