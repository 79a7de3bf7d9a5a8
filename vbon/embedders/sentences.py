"""Sentence embeddings from models in the layout of sentence-transformers, run with transformers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vbon.embedders.protocol import Float
from vbon.embedders.threaded import ThreadedEmbedder
from vbon.errors import CheckpointError

_BATCH = 32  # texts per forward pass
_NO_LIMIT = 10**6  # tokenizers without a limit state a larger one
# The modes of a pooling module that are supported, in the order in which their vectors are joined.
_POOLING = ("cls", "max", "mean", "mean_sqrt_len", "lasttoken")
_OLD_NAMES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


class SentenceEmbedder(ThreadedEmbedder):
    """Embeds texts with a sentence model, given by directory or by its name at the Hugging Face hub.

    The model's ``modules.json`` names its parts: a transformer, a pooling and often a normalisation. Without
    that file, the states of all tokens are averaged. Texts are cut at the model's own limit.
    """

    def __init__(self, model: str) -> None:
        super().__init__(f"sentences:{model}")
        self._path = model
        self._model: Any = None
        self._tokenizer: Any = None
        self._pooling: tuple[str, ...] = ("mean",)
        self._normalises, self._lowers = False, False
        self._limit = _NO_LIMIT
        self._prefix = ""

    def load(self) -> None:
        """Read the model's parts, and load its weights, onto the GPU if there is one."""
        import torch
        from transformers import AutoModel, AutoTokenizer

        from vbon.linear_layers import speed_up_linear_layers

        directory = _directory_of(self._path, self.name)
        transformer = self._read_parts(directory)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(transformer)
            self._model = AutoModel.from_pretrained(transformer, use_safetensors=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"cannot load embedder {self.name}: {error}") from error
        if self._limit == _NO_LIMIT:
            self._limit = min(self._tokenizer.model_max_length, _NO_LIMIT)
        self._model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        speed_up_linear_layers(self._model)

    def compute(self, texts: list[str]) -> Float:
        """The sentence embeddings, shape ``(texts, dimensions)``; zeros for a text without tokens."""
        width = int(self._model.config.get_text_config().hidden_size) * len(self._pooling)
        rows = np.zeros((len(texts), width))
        ids = [self._ids(text) for text in texts]
        # Texts of similar length share a batch, so that little of it is padding.
        order = sorted((row for row, found in enumerate(ids) if found), key=lambda r: len(ids[r]))
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            rows[batch] = self._pooled([ids[row] for row in batch])
        return rows

    def _read_parts(self, directory: Path) -> Path:
        """Read ``modules.json`` and the files that it names, and return the transformer's directory."""
        transformer = directory
        modules = _read(directory / "modules.json", [])
        for module in modules:
            kind, part = str(module["type"]).rpartition(".")[2], directory / str(module["path"])
            if kind == "Transformer":
                transformer = part
            elif kind == "Pooling":
                self._pooling = _pooling_modes(_read(part / "config.json", {}), self.name)
            elif kind == "Normalize":
                self._normalises = True
            else:
                raise CheckpointError(
                    f"embedder {self.name} has a part of type {kind}; only models of a transformer, a "
                    "pooling and a normalisation are supported. Use another model, or --embedder hidden:DIR"
                )
        settings = _read(transformer / "sentence_bert_config.json", {})
        self._limit = int(settings.get("max_seq_length") or _NO_LIMIT)
        self._lowers = bool(settings.get("do_lower_case"))
        prompts = _read(directory / "config_sentence_transformers.json", {})
        default = prompts.get("default_prompt_name")
        self._prefix = "" if default is None else str(prompts["prompts"][default])
        return transformer

    def _ids(self, text: str) -> list[int]:
        """The token ids of a text, cut at the limit; empty if it has none but special tokens."""
        if self._lowers:
            text = text.lower()
        if not self._tokenizer(text, add_special_tokens=False)["input_ids"]:
            return []
        whole = self._tokenizer(self._prefix + text, truncation=True, max_length=self._limit)
        return list(whole["input_ids"])

    def _pooled(self, sequences: list[list[int]]) -> Float:
        import torch

        width = max(map(len, sequences))
        pad = self._tokenizer.pad_token_id or 0
        device = self._model.device
        ids_BT = torch.tensor([ids + [pad] * (width - len(ids)) for ids in sequences]).to(device)
        mask_BT = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in sequences])
        mask_BT = mask_BT.to(device)
        with torch.inference_mode():
            states_BTD = self._model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        states_BTD, real_BT1 = states_BTD.float(), mask_BT[..., None] == 1
        length_B1 = mask_BT.sum(1, keepdim=True).float()
        sums_BD = states_BTD.masked_fill(~real_BT1, 0.0).sum(1)
        found = {
            "cls": states_BTD[:, 0],
            "max": states_BTD.masked_fill(~real_BT1, -torch.inf).amax(1),
            "mean": sums_BD / length_B1,
            "mean_sqrt_len": sums_BD / length_B1.sqrt(),
            "lasttoken": states_BTD[torch.arange(len(sequences)), mask_BT.sum(1) - 1],
        }
        pooled_BD = torch.cat([found[mode] for mode in self._pooling], 1)
        if self._normalises:
            pooled_BD = torch.nn.functional.normalize(pooled_BD, dim=1)
        rows: Float = pooled_BD.cpu().double().numpy()
        return rows


def _directory_of(model: str, name: str) -> Path:
    """The model's directory; a name without one is that of a model of the hub, downloaded if need be."""
    directory = Path(model).expanduser()
    if directory.is_dir():
        return directory
    if directory.is_absolute() or model.startswith("."):
        raise CheckpointError(f"cannot load embedder {name}: the directory does not exist")
    from huggingface_hub import snapshot_download

    hub = model.removeprefix("hf://")
    hub = hub if "/" in hub else f"sentence-transformers/{hub}"
    try:
        return Path(
            snapshot_download(hub, allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"])
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot load embedder {name}: there is no such directory, and {hub} could not be had from the "
            f"Hugging Face hub ({type(error).__name__})"
        ) from error


def _pooling_modes(config: dict[str, Any], name: str) -> tuple[str, ...]:
    """The pooling modes of a config, in its older form of one switch for each, or in its newer one."""
    named = config.get("pooling_mode")
    if named is not None:
        modes = set([named] if isinstance(named, str) else named)
    else:
        modes = {mode for mode, switch in _OLD_NAMES.items() if config.get(switch)}
        modes |= {
            switch
            for switch, on in config.items()
            if switch.startswith("pooling_mode_")
            and on is True
            and switch not in _OLD_NAMES.values()
        }
    unknown = modes - set(_POOLING)
    if unknown or not modes:
        raise CheckpointError(
            f"embedder {name} pools by {', '.join(sorted(unknown)) or 'no known rule'}; supported are "
            f"{', '.join(_POOLING)}"
        )
    return tuple(mode for mode in _POOLING if mode in modes)


def _read(path: Path, otherwise: Any) -> Any:
    """The JSON of a file, or ``otherwise`` if there is no such file."""
    if not path.is_file():
        return otherwise
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
