"""A reward model that is a Hugging Face sequence classifier with one logit."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

from vbon.errors import CheckpointError, RewardError
from vbon.prompts import render_for_reward
from vbon.rewards.protocol import Scorable
from vbon.storage.checkpoints import check_checkpoint

logger = logging.getLogger(__name__)

MAX_LOGGED_REFUSALS = 20


class ClassifierReward:
    """The raw logit of an ``AutoModelForSequenceClassification`` with ``num_labels = 1``.

    If the tokenizer has no padding token of its own, texts are batched by equal length and never padded.
    A padding token that equals EOS does not count as one, since padded texts would then score alike.
    """

    def __init__(
        self,
        path: str,
        *,
        trust_remote_code: bool = False,
        batch_size: int = 64,
        device: str | None = None,
        threads: int | None = None,
    ) -> None:
        checkpoint = check_checkpoint(path, "reward")
        self.name, self.revision = path, checkpoint.revision
        self._path, self._trust, self._batch_size = checkpoint.path, trust_remote_code, batch_size
        self._device, self._threads = device, threads
        self._model: Any = None
        self._tokenizer: Any = None
        self._max_length = 0
        self._pads = False
        self._refusals: set[str] = set()

    def load(self) -> None:
        """Load tokenizer and weights, onto the GPU if there is one.

        Raises:
            CheckpointError: loading failed, or the model has more than one output label.
        """
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self._path, trust_remote_code=self._trust, padding_side="right"
            )
            model = AutoModelForSequenceClassification.from_pretrained(
                self._path, trust_remote_code=self._trust, use_safetensors=True, dtype="auto"
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(f"cannot load reward model {self._path}: {error}") from error
        if model.config.num_labels != 1:
            raise CheckpointError(
                f"{self._path} has {model.config.num_labels} output labels; a reward model needs exactly "
                "one (num_labels = 1)"
            )
        device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
        if self._threads is not None and device == "cpu":
            torch.set_num_threads(self._threads)
        self._model = model.to(device).eval()
        self._tokenizer = tokenizer
        self._max_length = int(getattr(model.config, "max_position_embeddings", 0) or 10**9)
        pad = tokenizer.pad_token_id
        self._pads = pad is not None and pad != tokenizer.eos_token_id
        if self._pads:
            self._model.config.pad_token_id = pad

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        """Score the items in batches of similar length.

        The score is ``None`` for a text that is too long for the model, and for a conversation that its
        chat template rejects.
        """
        import torch

        if self._model is None:
            raise RewardError(f"reward model {self.name} is not loaded")
        encoded = self._encode(items)
        scores: list[float | None] = [None] * len(items)
        try:
            with torch.inference_mode():
                for batch in self._batches(encoded):
                    for index, logit in zip(batch, self._logits(encoded, batch), strict=True):
                        scores[index] = logit if math.isfinite(logit) else None
        except RuntimeError as error:
            raise RewardError(f"reward model {self.name} failed: {error}") from error
        return scores

    def close(self) -> None:
        """Release the weights."""
        self._model = None

    def _encode(self, items: Sequence[Scorable]) -> list[list[int]]:
        rendered = [self._render(item) for item in items]
        encoded: list[list[int]] = [[] for _ in items]
        for add_special in (True, False):
            texts_of = {
                i: found[0] for i, found in enumerate(rendered) if found and found[1] is add_special
            }
            if not texts_of:
                continue
            # One call for all texts: a call alone costs as much as tokenizing a short text.
            found = self._tokenizer([*texts_of.values()], add_special_tokens=add_special)
            for index, ids in zip(texts_of, found["input_ids"], strict=True):
                encoded[index] = ids
        return encoded

    def _render(self, item: Scorable) -> tuple[str, bool] | None:
        """The text to score, and whether to add special tokens; ``None`` if the chat template rejects it.

        One rejected conversation must not fail the rest of its batch.
        """
        try:
            return render_for_reward(self._tokenizer, item.prompt, item.completion)
        except ValueError as error:
            refusal = str(error)
            if refusal not in self._refusals and len(self._refusals) < MAX_LOGGED_REFUSALS:
                self._refusals.add(refusal)  # each is logged once
                logger.warning("%s: %s; such texts get no reward", self.name, refusal)
            return None

    def _batches(self, encoded: list[list[int]]) -> Iterator[list[int]]:
        scorable = [i for i, ids in enumerate(encoded) if 0 < len(ids) <= self._max_length]
        scorable.sort(key=lambda i: len(encoded[i]))
        batch: list[int] = []
        for index in scorable:
            full = len(batch) == self._batch_size
            longer = bool(batch) and len(encoded[batch[0]]) != len(encoded[index])
            if full or (longer and not self._pads):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _logits(self, encoded: list[list[int]], batch: list[int]) -> list[float]:
        import torch

        width = max(len(encoded[i]) for i in batch)
        pad = self._tokenizer.pad_token_id if self._pads else 0
        ids = torch.full((len(batch), width), pad, dtype=torch.long)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for row, index in enumerate(batch):
            length = len(encoded[index])
            ids[row, :length] = torch.tensor(encoded[index])
            mask[row, :length] = 1
        device = self._model.device
        if len(batch) > 1 and not self._pads:
            # Decoder classifiers reject batches when no padding token is set. Texts of equal length need
            # no padding, and an id that no text contains keeps content from being taken for padding.
            self._model.config.pad_token_id = -1
        logits = self._model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        return [float(value) for value in logits[:, 0].float().cpu()]
