"""Turns published models into plain Hugging Face directories with safetensors weights."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

from training.real_model.sources import Source
from vbon.errors import CheckpointError


def load_policy(source: Source) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer.

    The weights of a GGUF file become float32 values of a plain model of the same shape, which can be trained
    and saved; what quantisation has rounded away stays lost.

    Raises:
        CheckpointError: the files are not those of a causal language model that transformers can read.
    """
    options = {}
    if source.gguf is not None:
        import_module("gguf")  # transformers would only say that a package is missing
        options = {"gguf_file": source.gguf}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.directory, **options)
        model = AutoModelForCausalLM.from_pretrained(
            source.directory,
            dtype=torch.float32 if options else "auto",
            use_safetensors=None if options else True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"cannot load the policy of {source.origin}: {error}") from error
    if tokenizer.eos_token_id is None:
        raise CheckpointError(
            f"the tokenizer of {source.origin} has no EOS token to end answers; give another model"
        )
    if source.gguf is not None:
        model = _plain(model)
    # Tokenizers of GGUF files know no limit.
    limit = int(getattr(model.config, "max_position_embeddings", 0) or tokenizer.model_max_length)
    tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    return model.eval(), tokenizer


def _plain(model: Any) -> Any:
    """The same weights in a model that no longer counts as quantised, which could not be saved."""
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain.to(torch.float32)


def load_encoder(source: Source) -> tuple[Any, Any]:
    """Load an encoder as a classifier with one new logit, and its tokenizer.

    Raises:
        CheckpointError: the files are not those of an encoder, or its tokenizer has no padding.
    """
    if source.gguf is not None:
        raise CheckpointError(
            f"the encoder of {source.origin} is a GGUF file; give an encoder with safetensors weights"
        )
    verbosity = transformers_logging.get_verbosity()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.directory)
        # The logit is new, as it should be; transformers would warn of it.
        transformers_logging.set_verbosity_error()
        model = AutoModelForSequenceClassification.from_pretrained(
            source.directory, num_labels=1, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"cannot load the encoder of {source.origin}: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    if tokenizer.pad_token_id is None:
        raise CheckpointError(
            f"the tokenizer of {source.origin} has no padding token; give an encoder, such as a BERT"
        )
    return model, tokenizer


def copy_licences(source: Source, directory: Path) -> None:
    """Copy the licence files of a model beside what was made of it."""
    for number, file in enumerate(source.licences):
        name = "LICENSE" if number == 0 else f"LICENSE-{number + 1}"
        shutil.copyfile(file, directory / name)
