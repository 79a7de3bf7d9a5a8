"""Models and data of a training run; a sweep loads them once for all its cells."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from training.cache.metadata import check_made_with
from training.cache.open_columns import source_digest
from training.cache.reward_cache import RewardCache
from training.configs import TrainConfig
from training.evaluation.measure import Measurer, PromptSamples
from training.outputs.identity import read_json_record
from training.rollouts.batch_size import measuring_batch
from training.rollouts.load_policy import hub_shape, load_policy
from vbon.errors import DataError
from vbon.prompt_files import PromptFile, encode_prompts, read_prompt_file
from vbon.prompts import Prompt
from vbon.rewards import RewardModel
from vbon.rewards.deaths import open_unsupervised
from vbon.storage.cache_metadata import metadata_path
from vbon.storage.checkpoints import Checkpoint, check_checkpoint
from vbon.storage.model_shape import ModelShape, read_model_shape
from vbon.storage.stop_tokens import find_extra_stop_ids, stop_identity

logger = logging.getLogger(__name__)

LARGEST_BATCH = 512  # held-out sequences that are sampled at once


@dataclass
class TrainingInputs:
    """Models and data that a run reads; models are loaded when first used.

    Attributes:
        config: paths and common settings; the settings of an objective are not used.
        heldout_limit: largest number of held-out prompts to measure on.
        reference_samples: samples of the reference per held-out prompt.
        policy_samples: samples of a tuned policy per held-out prompt.
    """

    config: TrainConfig
    heldout_limit: int
    reference_samples: int
    policy_samples: int

    @cached_property
    def fingerprints(self) -> dict[str, Any]:
        """Revisions of policy and reward model, and the cache's digest.

        Raises:
            CheckpointError, DataError: something is missing or of the wrong kind.
        """
        config = self.config
        if not config.cache.is_file():
            raise DataError(f"reward cache {config.cache} does not exist; make it with `sample`")
        initial = self._initial_checkpoint
        return {
            "policy_revision": self._checkpoint.revision,
            "reward_revision": self._unloaded_reward.revision,
            **({} if initial is None else {"initial_revision": initial.revision}),
            "cache_sha256": source_digest(config.cache)[:16],
            **stop_identity(self._checkpoint.path),
        }

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        """The policy's checkpoint; checking it reads all of it, so it is checked once."""
        return check_checkpoint(self.config.policy, "causal-lm")

    @cached_property
    def _initial_checkpoint(self) -> Checkpoint | None:
        """The checkpoint that training begins with; ``None`` if that is the reference policy."""
        initial = self.config.initial
        return None if initial is None else check_checkpoint(initial, "causal-lm")

    @cached_property
    def policy_shape(self) -> ModelShape:
        """The size and shape of the policy; of a model of the hub, its config alone is fetched.

        Raises:
            CheckpointError: the config cannot be read.
        """
        path = self._checkpoint.path
        if Path(path).is_dir():
            return read_model_shape(Path(path))
        return hub_shape(path, trust_remote_code=self.config.trust_remote_code)

    @cached_property
    def _unloaded_reward(self) -> RewardModel:
        return self._open(self.config.reward)

    @cached_property
    def _unloaded_gold(self) -> RewardModel | None:
        return None if self.config.gold is None else self._open(self.config.gold)

    def _open(self, spec: str) -> RewardModel:
        return open_unsupervised(
            spec,
            trust_remote_code=self.config.trust_remote_code,
            batch_size=self.config.reward_batch_size,
        )

    @cached_property
    def reward(self) -> RewardModel:
        """The reward model, loaded."""
        self._unloaded_reward.load()
        return self._unloaded_reward

    @cached_property
    def gold(self) -> RewardModel | None:
        """The gold reward model, loaded, or ``None`` if the run has none."""
        if self._unloaded_gold is not None:
            self._unloaded_gold.load()
        return self._unloaded_gold

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        policy, tokenizer, _ = load_policy(
            self.config.policy,
            dtype=self.config.frozen_dtype,
            trust_remote_code=self.config.trust_remote_code,
            checkpoint=self._checkpoint,
        )
        return policy.requires_grad_(False), tokenizer

    def fresh_policy(self) -> Any:
        """A policy to tune; changing it leaves the reference as it is.

        Its weights are float32: those of ``initial``, or else the reference's.
        """
        if self.config.initial is not None:
            return self._initial_policy("float32").requires_grad_(True)
        if self.config.frozen_dtype == "float32":
            return copy.deepcopy(self.reference).requires_grad_(True)
        policy, _, _ = load_policy(
            self.config.policy,
            dtype="float32",
            trust_remote_code=self.config.trust_remote_code,
            checkpoint=self._checkpoint,
        )
        return policy

    def frozen_copy(self) -> Any:
        """The base of a LoRA: ``initial``, or the reference policy in modules that share its weights.

        Nothing may write to its weights: they may be the reference's too.
        """
        if self.config.initial is not None:
            return self._initial_policy(self.config.frozen_dtype).requires_grad_(False)
        weights = {id(one): one for one in self.reference.parameters()}
        return copy.deepcopy(self.reference, weights)

    def _initial_policy(self, dtype: str) -> Any:
        """The model of ``initial``.

        Raises:
            DataError: its tokenizer is not the reference's, so it has other tokens.
        """
        config = self.config
        policy, tokenizer, _ = load_policy(
            str(config.initial),
            dtype=dtype,
            trust_remote_code=config.trust_remote_code,
            checkpoint=self._initial_checkpoint,
        )
        if tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise DataError(
                f"{config.initial} and {config.policy} have different tokenizers, so the KL between them is "
                "undefined; give --initial a checkpoint that was trained from this policy"
            )
        return policy

    @property
    def reference(self) -> Any:
        """The frozen reference policy."""
        return self._loaded[0]

    @property
    def tokenizer(self) -> Any:
        """The policy's tokenizer."""
        return self._loaded[1]

    @cached_property
    def extra_stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a response besides the tokenizer's EOS."""
        return find_extra_stop_ids(self._checkpoint.path, self.tokenizer)

    @property
    def sampling_seconds(self) -> float | None:
        """The time that sampling and scoring the cache took; ``None`` if its metadata does not tell."""
        metadata = read_json_record(metadata_path(self.config.cache)) or {}
        found = metadata.get("cost", {}).get("sampling_seconds")
        return None if found is None else float(found)

    @property
    def truncated_share(self) -> float | None:
        """The share of cached samples that the token limit cut off; ``None`` if it is not recorded."""
        samples = (read_json_record(metadata_path(self.config.cache)) or {}).get("samples")
        return None if samples is None else samples["truncated"] / samples["scored"]

    @cached_property
    def cache(self) -> RewardCache:
        """The reward cache, after checking that it was made with these models and settings.

        Raises:
            DataError: the cache is damaged, was made with others, or carries no information.
        """
        self._check_cache_settings()
        cache = RewardCache.open(
            self.config.cache,
            self.tokenizer,
            max_new_tokens=self.config.max_new_tokens,
            vocab_size=self.reference.get_input_embeddings().num_embeddings,
        )
        cache.check_informative()
        return cache

    def _check_cache_settings(self) -> None:
        """Check that the cache was sampled with the models and settings of this run.

        Raises:
            DataError: names the setting that differs.
        """
        config = self.config
        wanted = {
            "policy_revision": self.fingerprints["policy_revision"],
            "reward_revision": self.fingerprints["reward_revision"],
            "max_new_tokens": config.max_new_tokens,
            "temperature": config.temperature,
            "missing_eos_reward": config.missing_eos_reward,
        }
        check_made_with(config.cache, wanted, self.fingerprints.get("eos_token_ids"))

    @cached_property
    def heldout(self) -> list[tuple[Prompt, list[int]]]:
        """Encoded held-out prompts; empty if the run asks for none."""
        if self.config.heldout is None:
            return []
        prompts = self._heldout_file.distinct()[: self.heldout_limit]
        return encode_prompts(self.tokenizer, prompts)

    @cached_property
    def _heldout_file(self) -> PromptFile:
        config = self.config
        if config.heldout is None:
            raise DataError("there are no held-out prompts; give a file as --heldout")
        file = read_prompt_file(
            config.heldout, column=config.prompt_column, encoding=config.encoding
        )
        logger.info("%s", file.describe(keeps_duplicates=False, limit=self.heldout_limit))
        return file

    @property
    def heldout_sha256(self) -> str:
        """The hash of the file of held-out prompts.

        Raises:
            DataError: the run has no such file, or it cannot be read.
        """
        return self._heldout_file.sha256

    @cached_property
    def measurer(self) -> Measurer:
        """The measurer of held-out figures, which treats every policy alike."""
        return Measurer(
            tokenizer=self.tokenizer,
            reference=self.reference,
            reward=self.reward,
            gold=self.gold,
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            batch_size=measuring_batch(self.reference, self.config.max_new_tokens, LARGEST_BATCH),
            seed=1,
            extra_stop_ids=self.extra_stop_ids,
            missing_eos_reward=self.config.missing_eos_reward,
        )

    @cached_property
    def heldout_reference(self) -> list[PromptSamples]:
        """Held-out samples of the reference, drawn once."""
        return self.measurer.measure(
            self.reference, self.heldout, self.reference_samples, "held-out reference"
        )
