"""A reward model that is a Hugging Face sequence classifier with one logit."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vbon.errors import CheckpointError, RewardError
from vbon.prompts import render_for_reward
from vbon.rewards.batches import BatchLimits, cut
from vbon.rewards.isolation import TextError, TextIsolator
from vbon.rewards.protocol import RewardOptions, Scorable
from vbon.rewards.user_errors import describe
from vbon.storage.checkpoints import check_checkpoint, has_changed, refuse_changed
from vbon.storage.json_files import read_json_file

_NO_LIMIT = 10**9

# On a CPU, the widest activations of a batch of so many bytes stay in the cache, and a call without texts
# takes as long as some dozens of tokens. On other devices calls are the dearest part.
_CPU_BATCH_BYTES, _CPU_CALL_TOKENS = 12 * 2**20, 64
_LEAST_BATCH_TOKENS = 512


class ClassifierReward:
    """The raw logit of an ``AutoModelForSequenceClassification`` with ``num_labels = 1``.

    If the tokenizer has no padding token of its own, texts are batched by equal length and never padded.
    A padding token that equals EOS does not count as one, since padded texts would then score alike.

    Args:
        append_eos: whether EOS follows each text that does not come from a chat template; ``None`` asks the
            model's own files (:func:`is_trained_with_eos`).
    """

    def __init__(
        self,
        path: str,
        *,
        trust_remote_code: bool = False,
        batch_size: int = 64,
        device: str | None = None,
        threads: int | None = None,
        append_eos: bool | None = None,
    ) -> None:
        self.name, self._asked_eos = path, append_eos
        self._check()
        self._path, self._trust, self._batch_size = (
            self._checkpoint.path,
            trust_remote_code,
            batch_size,
        )
        self._device, self._threads = device, threads
        self._model: Any = None
        self._tokenizer: Any = None
        self._max_length = 0
        self._pads = False
        self._limits = BatchLimits(batch_size, _NO_LIMIT, _NO_LIMIT)
        self._isolate = TextIsolator(path, self._score_together)

    def load(self) -> None:
        """Load tokenizer and weights, onto the GPU if there is one.

        Raises:
            CheckpointError: loading failed, or the model has more than one output label.
        """
        import torch
        from transformers import AutoModelForSequenceClassification

        from vbon.linear_layers import speed_up_linear_layers

        if has_changed(self._checkpoint):  # a restart loads what is there now
            self._check()
        self.load_tokenizer()
        tokenizer = self._tokenizer
        try:
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
        model = model.to(device).eval()
        refuse_changed(self._checkpoint)
        self._model = model
        self._max_length = max_tokens_of(model)
        pad = tokenizer.pad_token_id
        self._pads = pad is not None and pad != tokenizer.eos_token_id
        if self._pads:
            self._model.config.pad_token_id = pad
        self._limits = self._batch_limits()
        speed_up_linear_layers(model)

    def load_tokenizer(self) -> None:
        """Load the tokenizer alone, which is all that :meth:`encode` needs.

        Raises:
            CheckpointError: it cannot be loaded, or lacks the EOS that texts are to end with.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self._path, trust_remote_code=self._trust, padding_side="right"
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(f"cannot load reward model {self._path}: {error}") from error
        if self._append_eos and tokenizer.eos_token_id is None:
            raise CheckpointError(
                f"the tokenizer of {self._path} has no EOS to append; set eos_token in its config, or write "
                "without-eos: before its path"
            )
        self._tokenizer = tokenizer

    def _check(self) -> None:
        """Check the files, and determine the revision and whether EOS is appended."""
        self._checkpoint = check_checkpoint(self.name, "reward")
        self._append_eos = self._asked_eos
        if self._append_eos is None:
            self._append_eos = is_trained_with_eos(self._checkpoint.path)
        # Rewards of texts with and without EOS are not comparable.
        self.revision = self._checkpoint.revision + ("+eos" if self._append_eos else "")

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        """Score the items in batches of similar length.

        The score is ``None`` for a text that is too long for the model, for a conversation that its
        chat template rejects, and for any other text on which the model fails.
        """
        if self._model is None:
            raise RewardError(f"reward model {self.name} is not loaded")
        return self._isolate(items)

    def _score_together(self, items: Sequence[Scorable]) -> list[float | None]:
        import torch

        scores: list[float | None] = [None] * len(items)
        try:
            encoded = self.encode(items)
            with torch.inference_mode():
                for batch in self._batches(encoded):
                    for index, logit in zip(batch, self._logits(encoded, batch), strict=True):
                        scores[index] = logit if math.isfinite(logit) else None
        except Exception as error:  # tokenizers, templates and models of others may raise anything
            raise TextError(f"reward model {self.name} failed: {describe(error)}") from error
        return scores

    def close(self) -> None:
        """Release the weights."""
        self._model = None

    def encode(self, items: Sequence[Scorable]) -> list[list[int]]:
        """The token ids that the model reads for each item; none where its chat template rejects it."""
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
                encoded[index] = self._ended(ids)
        return encoded

    def _ended(self, ids: list[int]) -> list[int]:
        """The token ids with EOS at their end, if the model was trained with it.

        Chats end as their template writes them, as in training with TRL.
        """
        eos = self._tokenizer.eos_token_id
        if not self._append_eos or self._tokenizer.chat_template or ids[-1:] == [eos]:
            return ids
        return [*ids, eos]

    def _render(self, item: Scorable) -> tuple[str, bool] | None:
        """The text to score, and whether to add special tokens; ``None`` if the chat template rejects it.

        One rejected conversation must not fail the rest of its batch.
        """
        try:
            return render_for_reward(self._tokenizer, item.prompt, item.completion)
        except ValueError as error:
            self._isolate.report(str(error))
            return None

    def _batch_limits(self) -> BatchLimits:
        if self._model.device.type != "cpu":
            return BatchLimits(self._batch_size, _NO_LIMIT, _NO_LIMIT, self._pads)
        import torch

        layers = [m for m in self._model.modules() if isinstance(m, torch.nn.Linear)]
        widest = max((layer.out_features for layer in layers), default=1)
        tokens = max(_LEAST_BATCH_TOKENS, _CPU_BATCH_BYTES // (4 * widest))
        return BatchLimits(self._batch_size, tokens, _CPU_CALL_TOKENS, self._pads)

    def _batches(self, encoded: list[list[int]]) -> list[list[int]]:
        scorable = [i for i, ids in enumerate(encoded) if 0 < len(ids) <= self._max_length]
        batches = cut([len(encoded[i]) for i in scorable], self._limits)
        return [[scorable[place] for place in batch] for batch in batches]

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
        if not self._pads and (len(batch) > 1 or self._append_eos):
            # Decoder classifiers reject batches when no padding token is set. Texts of equal length need
            # no padding, and an id that no text contains keeps content from being taken for padding.
            self._model.config.pad_token_id = -1
        logits = self._model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        return [float(value) for value in logits[:, 0].float().cpu()]


def max_tokens_of(model: Any) -> int:
    """The most tokens that a text may have for a model.

    RoBERTa and its relatives number positions from ``padding_idx + 1`` on, so that many of the positions in
    their table are never used. A model without a limit has none in its config, or -1 (XLNet).
    """
    positions = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 0)
    if positions <= 0:
        return _NO_LIMIT
    unused = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("embeddings.position_embeddings")
        and getattr(module, "padding_idx", None) is not None
    ]
    return positions - max(unused, default=0)


def open_with_eos(path: str, options: RewardOptions) -> ClassifierReward:
    """Open the classifier of ``with-eos:DIR``, which scores each text with EOS at its end."""
    return open_classifier(path, options, append_eos=True)


def open_without_eos(path: str, options: RewardOptions) -> ClassifierReward:
    """Open the classifier of ``without-eos:DIR``, which scores the texts alone."""
    return open_classifier(path, options, append_eos=False)


def open_classifier(
    path: str, options: RewardOptions, *, append_eos: bool | None = None
) -> ClassifierReward:
    """Open a classifier with the settings that all reward models share."""
    return ClassifierReward(
        path,
        trust_remote_code=options.trust_remote_code,
        batch_size=options.batch_size,
        threads=options.threads,
        append_eos=append_eos,
    )


def is_trained_with_eos(path: str) -> bool:
    """Tell whether a model's files say that it was trained with EOS after each text.

    TRL's reward trainer appends EOS to plain text from version 1 on, and writes a model card that names
    itself and its version. Where EOS is also the padding token,
    that trainer reads the score at the token before it, so EOS made no difference. Hub ids are not looked up.
    """
    card = Path(path) / "README.md"
    if not card.is_file():
        return False
    text = card.read_text(encoding="utf-8", errors="replace")
    version = re.search(r"^- TRL: (\d+)\.", text, re.MULTILINE)
    tagged = re.search(r"^- reward-trainer\s*$", text, re.MULTILINE)
    if not tagged or not version or int(version[1]) < 1:
        return False
    config = read_json_file(Path(path) / "config.json")
    eos = config.get("eos_token_id")
    return config.get("pad_token_id") not in (eos if isinstance(eos, list) else [eos])
