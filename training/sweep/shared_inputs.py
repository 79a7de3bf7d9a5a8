"""The inputs that all cells of a sweep share; models are loaded once per process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from training.configs import CellWorkers, SweepConfig
from vbon.rewards import open_reward_model

if TYPE_CHECKING:
    from training.train.inputs import TrainingInputs


@dataclass(frozen=True, slots=True)
class SharedInputs:
    """The inputs that all cells share; models are loaded at the first use.

    Attributes:
        training: models, cache and held-out reference samples.
        revisions: revisions of policy, reward model and gold reward model.
        measured_with: everything but the trained weights that determines held-out figures.
    """

    training: TrainingInputs
    revisions: dict[str, str]
    measured_with: dict[str, Any]


_BY_CONFIG: dict[str, SharedInputs] = {}


_generation = uuid4().hex


def forget_shared_inputs(generation: str | None = None) -> None:
    """Drop the inputs kept in this process, since files at the same paths may have changed.

    Args:
        generation: of the inputs that are opened next; a new one by default.
    """
    global _generation
    _BY_CONFIG.clear()
    _generation = generation or uuid4().hex


def inputs_generation() -> str:
    """The word that changes when the inputs are dropped, by which other processes know theirs as stale."""
    return _generation


def shared_inputs(config: SweepConfig) -> SharedInputs:
    """The shared inputs of a sweep, opened once per process.

    Raises:
        CheckpointError, DataError, RewardError: an input is missing or damaged.
    """
    key = config.model_dump_json(exclude={"grid", "seeds", "jobs", *CellWorkers.model_fields})
    if key not in _BY_CONFIG:
        _BY_CONFIG[key] = _open(config)
    return _BY_CONFIG[key]


def _open(config: SweepConfig) -> SharedInputs:
    from training.train.inputs import TrainingInputs

    training = TrainingInputs(
        config, config.heldout_prompts, config.reference_samples, config.policy_samples
    )
    revisions = {name: training.fingerprints[f"{name}_revision"] for name in ("policy", "reward")}
    gold = _gold_revision(config)
    if gold is not None:
        revisions["gold"] = gold
    measured_with = {
        "gold_revision": gold,
        "evaluation_seeds": "of each training",
        "heldout_sha256": training.heldout_sha256,
        **config.model_dump(include={"heldout_prompts", "reference_samples", "policy_samples"}),
    }
    return SharedInputs(training, revisions, measured_with)


def _gold_revision(config: SweepConfig) -> str | None:
    if config.gold is None:
        return None
    gold = open_reward_model(
        config.gold,
        trust_remote_code=config.trust_remote_code,
        batch_size=config.reward_batch_size,
    )
    return gold.revision
