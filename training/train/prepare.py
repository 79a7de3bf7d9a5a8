"""Prepares a run: checks its data, loads its models and builds its trainer."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch

from training.cache.reward_cache import RewardCache
from training.configs import TrainConfig
from training.objectives import OBJECTIVES
from training.objectives.bon_sft import BonSft
from training.objectives.protocol import Objective
from training.rollouts.generator import Generator, TransformersGenerator
from training.train.dropout import remove_dropout
from training.train.inputs import TrainingInputs
from training.train.options import TrainerOptions
from training.train.reference_logprobs import ensure_reference_logprobs
from training.train.resume import ResumableStates, state_path
from training.train.trainer import Trainer
from vbon.errors import InvalidInputError

logger = logging.getLogger(__name__)

# Above this share of tied pairs, an objective that assumes strictly ordered rewards gets a warning.
TIED_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Everything that determines a run.

    Attributes:
        name: the objective's name.
        identity: settings and fingerprints that tell this run from another (``run_identity``).
    """

    name: str
    config: TrainConfig
    objective: Objective
    inputs: TrainingInputs
    identity: dict[str, Any]

    @property
    def learning_rate(self) -> float:
        """Peak learning rate of the main steps."""
        return self.config.learning_rate or self.objective.peak_learning_rate()


@dataclass(slots=True)
class ActiveRun:
    """A run that is ready to train, or is training.

    Attributes:
        cache_warnings: reasons why the reward cache suits this objective badly.
        history: one row per step taken so far, including those before an interruption.
        imitated: held-out figures after the warm start (:func:`measure_imitation`); ``None`` if not measured.
    """

    spec: RunSpec
    generator: Generator
    trainer: Trainer
    states: ResumableStates
    cache_warnings: list[str]
    history: list[dict[str, Any]] = field(default_factory=list)
    imitated: dict[str, Any] | None = None

    @property
    def is_main_process(self) -> bool:
        """True if this process measures and writes files for all processes."""
        return bool(self.trainer.accelerator.is_main_process)

    def wait_for_everyone(self) -> None:
        """Block until every process has reached this point."""
        self.trainer.accelerator.wait_for_everyone()


def prepare_run(spec: RunSpec) -> ActiveRun:
    """Load everything that a run needs.

    Raises:
        CheckpointError, DataError, RewardError: a model or the cache cannot be used.
        InvalidInputError: settings that do not fit the objective or the number of processes.
    """
    cache_warnings = _cache_warnings(spec.inputs.cache, spec.objective)
    generator = _generator(spec)
    trainer = _trainer(spec, generator)
    states = ResumableStates(state_path(spec.config.out), trainer.accelerator)
    return ActiveRun(spec, generator, trainer, states, cache_warnings)


def _cache_warnings(cache: RewardCache, objective: Objective) -> list[str]:
    """Log and return the reasons why a cache suits an objective badly."""
    warnings = cache.warn_about(getattr(objective, "num_samples", None))
    tied = cache.tied_share()
    if objective.strict_order and tied > TIED_SHARE:
        others = [name for name, kind in OBJECTIVES.items() if not kind.strict_order]
        text = (
            f"{tied:.0%} of the pairs of cached samples of a prompt have equal rewards, but "
            f"{objective.title} assumes a strict order; {', '.join(others)} handle ties"
        )
        logger.warning(text)
        warnings.append(text)
    return warnings


def _generator(spec: RunSpec) -> Generator:
    config, tokenizer = spec.config, spec.inputs.tokenizer
    if config.generation == "vllm":
        from training.rollouts.vllm_generator import VllmGenerator

        # After the first of several updates, the policy is no longer the one that drew the samples, so
        # their log-probabilities must be taken when they are drawn.
        logprobs = spec.objective.samples_needed.updates > 1
        return VllmGenerator(config.policy, tokenizer, config, logprobs=logprobs)
    return TransformersGenerator(
        tokenizer, config.max_new_tokens, config.temperature, spec.inputs.extra_stop_ids
    )


def _trainer(spec: RunSpec, generator: Generator) -> Trainer:
    config, inputs = spec.config, spec.inputs
    inputs.heldout  # noqa: B018  neither must prompts that cannot be read
    inputs.reward  # noqa: B018  a reward model that does not load must fail before training starts
    trainer = Trainer(
        _trainable_policy(config, inputs),
        inputs.reference,
        inputs.tokenizer,
        inputs.reward,
        inputs.cache,
        spec.objective,
        TrainerOptions.of(config, spec.learning_rate),
        generator,
        _warm_start(config, spec.objective),
    )
    if trainer.sharded and config.lora_rank is not None:
        raise InvalidInputError(
            "a LoRA cannot be merged from FSDP shards; train it with DDP instead",
            field="lora_rank",
        )
    if spec.objective.samples_needed.stored_ref_logprob:
        with trainer.accelerator.main_process_first():
            ensure_reference_logprobs(
                inputs.cache,
                inputs.reference,
                inputs.tokenizer,
                revision=str(spec.identity["policy_revision"]),
                temperature=config.temperature,
            )
    return trainer


def _trainable_policy(config: TrainConfig, inputs: TrainingInputs) -> Any:
    if config.lora_rank is None:
        policy = inputs.fresh_policy()
    else:
        policy = _with_lora(inputs.frozen_copy(), config)
    if config.gradient_checkpointing:
        policy.enable_input_require_grads()
        policy.gradient_checkpointing_enable({"use_reentrant": False})
        # transformers uses checkpointing in training mode only, which also switches on dropout
        remove_dropout(policy)
        policy.train()
    return policy


def _with_lora(policy: Any, config: TrainConfig) -> Any:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.lora_rank or 0,
        lora_alpha=config.lora_alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(config.seed)
    return get_peft_model(policy, lora)


def _warm_start(config: TrainConfig, objective: Objective) -> Objective | None:
    """The objective of the warm start, with the run's own N if its objective has one."""
    if not config.warm_start_steps:
        return None
    num_samples = getattr(objective, "num_samples", config.warm_start_num_samples)
    return BonSft(num_samples=num_samples)
