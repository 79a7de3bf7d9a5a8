"""Writes a trained checkpoint: weights, tokenizer, card, record and history, in one step."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.configs import TrainConfig
from training.objectives.protocol import Objective
from training.outputs.model_card import write_card
from vbon.storage.atomic import replacing_directory, write_json, write_text
from vbon.storage.checkpoints import write_checksums
from vbon.storage.evaluation_record import MethodRow
from vbon.storage.provenance import provenance
from vbon.storage.training_record import ADAPTER_DIRECTORY, TRAINING_RECORD

__all__ = ["ADAPTER_DIRECTORY", "TRAINING_RECORD", "Trained", "export_checkpoint"]


@dataclass(frozen=True, slots=True)
class Trained:
    """What is to be said of a checkpoint.

    Attributes:
        name: of the objective.
        identity: settings and fingerprints that make a run this run.
        history: a row a step.
        cost: samples, tokens and seconds it took.
        row: held-out figures, if measured.
        cache: number of prompts, smallest M, warnings.
    """

    name: str
    config: TrainConfig
    learning_rate: float
    objective: Objective
    identity: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    cost: Mapping[str, Any]
    row: MethodRow | None
    cache: Mapping[str, Any]


def export_checkpoint(
    out: Path, policy: Any, weights: Mapping[str, Any] | None, tokenizer: Any, trained: Trained
) -> None:
    """Replace ``out`` whole; what was there stays until then.

    Args:
        weights: the whole state dict where the policy itself holds only shards.

    Raises:
        ExportError: the file system refused.
    """
    config = trained.config
    with replacing_directory(out) as directory:
        if config.lora_rank is not None:
            policy.save_pretrained(directory / ADAPTER_DIRECTORY)
            write_checksums(directory / ADAPTER_DIRECTORY, "adapter")
            policy = policy.merge_and_unload()
        policy.save_pretrained(directory, state_dict=weights)
        tokenizer.save_pretrained(directory)
        write_json(
            directory / TRAINING_RECORD,
            {
                **provenance(config.model_dump(mode="json")),
                "objective": trained.name,
                "identity": trained.identity,
                "cost": trained.cost,
                "cache": trained.cache,
                "heldout": None if trained.row is None else trained.row.model_dump(),
            },
        )
        lines = (json.dumps(line) + "\n" for line in trained.history)
        write_text(directory / "history.jsonl", "".join(lines))
        write_checksums(directory, "causal-lm")
        write_card(
            directory,
            title=f"{trained.objective.title}: {trained.objective.label}",
            summary=f"{(trained.objective.__doc__ or '').splitlines()[0]} "
            f"Source: {trained.objective.source}.",
            facts={**_settings(trained), **trained.cost, **_figures(trained.row)},
        )


def _settings(trained: Trained) -> dict[str, Any]:
    config, identity = trained.config, trained.identity
    named = {"num_samples": "N"}
    return {
        **{named.get(key, key): value for key, value in trained.objective.model_dump().items()},
        "M, reference samples a prompt": trained.cache["smallest_M"],
        "reference policy": f"{config.policy} ({identity['policy_revision']})",
        "reward model": f"{config.reward} ({identity['reward_revision']})",
        "temperature": config.temperature,
        "warm start, steps imitating cached bests of N": config.warm_start_steps,
        "steps after it": config.steps,
        "prompts x samples a step": f"{config.prompts_per_step} x {config.samples_per_prompt}",
        "peak learning rate": trained.learning_rate,
        "seed": config.seed,
        "LoRA": "no"
        if config.lora_rank is None
        else f"rank {config.lora_rank}, merged; also in {ADAPTER_DIRECTORY}/",
    }


def _figures(row: MethodRow | None) -> dict[str, Any]:
    if row is None:
        return {}
    figures: dict[str, Any] = {
        f"held-out win rate against the reference ({row.win_rate.count} prompts)": row.win_rate,
        "held-out KL from the reference, nats (Rao-Blackwellised)": row.kl_nats,
        "held-out mean reward": row.reward,
    }
    if row.gold is not None:
        figures["held-out mean gold reward"] = row.gold
        figures["held-out gold win rate"] = row.gold_win_rate
    return figures
