"""The size and shape of a causal language model, read from its files without loading weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vbon.storage.checkpoints import weight_files
from vbon.storage.json_files import parse_json, read_json_file

# Names under which the configs of Gemma, Cohere and Granite say so.
_LOGIT_PROCESSING = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The figures that memory and sane settings depend on.

    Attributes:
        parameters: of all weights; weights that two layers share count once.
        layers: number of layers, 0 if the config does not tell.
        width: size of the hidden states, 0 if the config does not tell.
        vocabulary: number of logits, 0 if the config does not tell.
        processed_logits: True if the model caps or scales its logits after its output layer.
    """

    parameters: int
    layers: int = 0
    width: int = 0
    vocabulary: int = 0
    processed_logits: bool = False


def read_model_shape(directory: Path) -> ModelShape:
    """The shape of a checked model directory, from its config and the headers of its weights."""
    return shape_of(
        read_json_file(directory / "config.json"),
        sum(_parameters(file) for file in weight_files(directory)),
    )


def shape_of(config: Mapping[str, Any], parameters: int) -> ModelShape:
    """The shape that a config states under one of the usual names, with a known number of parameters."""
    nested = config.get("text_config")  # models of text and images keep it there
    values = nested if isinstance(nested, dict) else config

    def first(*names: str) -> int:
        found = [values[name] for name in names if isinstance(values.get(name), int)]
        return found[0] if found else 0

    return ModelShape(
        parameters,
        layers=first("num_hidden_layers", "n_layer"),
        width=first("hidden_size", "n_embd", "d_model"),
        vocabulary=first("vocab_size"),
        processed_logits=any(values.get(name) not in (None, 1) for name in _LOGIT_PROCESSING),
    )


def _parameters(file: Path) -> int:
    with file.open("rb") as handle:
        header = parse_json(handle.read(int.from_bytes(handle.read(8), "little")))
    return sum(math.prod(one["shape"]) for name, one in header.items() if name != "__metadata__")
