"""Exports a trained checkpoint: weights, tokenizer, model card, record and history."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from training.objectives.protocol import Objective
from training.outputs.model_card import write_card
from training.train.prepare import ActiveRun, RunSpec
from vbon.storage.atomic import replacing_directory, write_json, write_text
from vbon.storage.checkpoints import write_checksums
from vbon.storage.evaluation_record import CapturedNats, MethodRow
from vbon.storage.provenance import provenance
from vbon.storage.training_record import (
    ADAPTER_DIRECTORY,
    TRAINING_RECORD,
    OnPolicyChange,
    TrainingRecord,
)


def run_cost(run: ActiveRun) -> dict[str, Any]:
    """Samples, tokens and seconds of all steps; ``sample`` has accounted for the cached samples."""

    def total(*names: str) -> float:
        return float(sum(row[name] for row in run.history for name in names))

    return {
        "steps": len(run.history),
        "optimizer_updates": _updates(run),
        "samples_drawn": round(total("samples_drawn")),
        "unscored_samples": sum(row.get("unscored", 0) for row in run.history),
        "tokens_drawn": round(total("tokens_drawn")),
        "sequences_trained": round(total("sequences_trained")),
        "sample_seconds": round(total("sample_s", "score_s"), 2),
        "training_seconds": round(total("sample_s", "score_s", "learn_s"), 2),
        "processes": run.trainer.accelerator.num_processes,
    }


def _updates(run: ActiveRun) -> int:
    """The number of optimizer updates; an objective may make several from the samples of one step."""
    main = sum(row["phase"] == "main" for row in run.history)
    return len(run.history) + main * (run.spec.objective.samples_needed.updates - 1)


def export_checkpoint(
    out: Path,
    run: ActiveRun,
    weights: Mapping[str, Any] | None,
    cost: Mapping[str, Any],
    row: MethodRow | None,
    change: OnPolicyChange | None = None,
    captured: CapturedNats | None = None,
) -> None:
    """Replace ``out`` in one step; until then its previous content stays.

    Args:
        weights: the complete state dict if the policy itself holds only FSDP shards.
        row: held-out figures, if measured.
        change: what the on-policy steps changed in them, if measured.
        captured: captured nats, if measured.

    Raises:
        ExportError: the file system refused to write.
    """
    spec, policy = run.spec, run.trainer.unwrapped
    with replacing_directory(out) as directory:
        if spec.config.lora_rank is not None:
            if spec.config.exports_adapter:
                policy.save_pretrained(directory / ADAPTER_DIRECTORY)
                write_checksums(directory / ADAPTER_DIRECTORY, "adapter")
            # Merging writes to the base's weights, which are the reference's too.
            policy = copy.deepcopy(policy).merge_and_unload()
        _set_own_sampling(policy, spec.config.temperature)
        policy.save_pretrained(directory, state_dict=weights)
        spec.inputs.tokenizer.save_pretrained(directory)
        record = _record(run, cost, row, change, captured)
        told = TrainingRecord.model_validate(record)
        write_json(directory / TRAINING_RECORD, record)
        lines = (json.dumps(line) + "\n" for line in run.history)
        write_text(directory / "history.jsonl", "".join(lines))
        write_checksums(directory, "causal-lm")
        write_card(
            directory,
            title=f"{_kind(told, spec.objective)}: {spec.objective.label}",
            summary=f"{_described(told)}\n\n{(spec.objective.__doc__ or '').splitlines()[0]} "
            f"Source: {spec.objective.source}.",
            facts={
                **_settings(spec),
                **cost,
                **_figures(row),
                **_captured_facts(captured),
                **_change(run.imitated, change),
            },
        )


def _set_own_sampling(policy: Any, temperature: float) -> None:
    """Let the checkpoint's generation_config.json name the sampling that it was trained with.

    transformers' ``generate`` and ``vllm serve`` sample as that file says. The reference policy's top_p,
    top_k or repetition penalty would make another policy of the checkpoint, and transformers refuses to save
    some of them (a temperature without ``do_sample``). The tokens that end and pad a sample stay.
    """
    before = policy.generation_config
    if before is None:
        return
    policy.generation_config = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_p=1.0,
        top_k=0,
        bos_token_id=before.bos_token_id,
        eos_token_id=before.eos_token_id,
        pad_token_id=before.pad_token_id,
    )


def _kind(record: TrainingRecord, objective: Objective) -> str:
    """The name of what the checkpoint is: imitation where the on-policy steps changed nothing."""
    return "Best-of-N imitation" if record.is_imitation else objective.title


def _described(record: TrainingRecord) -> str:
    words = record.description
    return f"{words[:1].upper() if words.startswith('best') else words[:1]}{words[1:]}."


def _record(
    run: ActiveRun,
    cost: Mapping[str, Any],
    row: MethodRow | None,
    change: OnPolicyChange | None,
    captured: CapturedNats | None,
) -> dict[str, Any]:
    cache = run.spec.inputs.cache
    return {
        **provenance(run.spec.config.model_dump(mode="json")),
        "objective": run.spec.name,
        "title": run.spec.objective.title,
        "on_policy": run.spec.objective.samples_needed.policy,
        "learning_rate": run.spec.learning_rate,
        "identity": run.spec.identity,
        "cost": cost,
        "cache": {
            "prompts": len(cache),
            "smallest_M": cache.smallest,
            "sampling_seconds": run.spec.inputs.sampling_seconds,
            "truncated_share": run.spec.inputs.truncated_share,
            "warnings": run.cache_warnings,
        },
        "heldout": None if row is None else row.model_dump(),
        "after_warm_start": None if run.imitated is None else run.imitated["row"],
        "on_policy_change": None if change is None else change.model_dump(),
        "captured_nats": None if captured is None else captured.model_dump(),
    }


def _settings(spec: RunSpec) -> dict[str, Any]:
    config, identity = spec.config, spec.identity
    shown_as = {"num_samples": "N"}
    lora = "no"
    if config.lora_rank is not None:
        beside = f"; also in {ADAPTER_DIRECTORY}/" if config.exports_adapter else ""
        lora = f"rank {config.lora_rank}, merged{beside}"
    return {
        **{shown_as.get(key, key): value for key, value in spec.objective.model_dump().items()},
        "M, reference samples a prompt": spec.inputs.cache.smallest,
        "reference policy": f"{config.policy} ({identity['policy_revision']})",
        **(
            {"weights at the start": f"{config.initial} ({identity['initial_revision']})"}
            if config.initial is not None
            else {}
        ),
        "reward model": f"{config.reward} ({identity['reward_revision']})",
        "temperature": config.temperature,
        "new tokens of a sample, at most": config.max_new_tokens,
        "reward of a sample that this limit cuts off": "the reward model's"
        if config.missing_eos_reward is None
        else config.missing_eos_reward,
        "cached samples cut off": _share(spec.inputs.truncated_share),
        "warm start, steps imitating cached bests of N": config.warm_start_steps,
        "steps after it": config.steps,
        "prompts x samples a step": f"{config.prompts_per_step} x {config.samples_per_prompt}",
        "peak learning rate of the warm start": config.warm_start_learning_rate,
        "peak learning rate after it": spec.learning_rate,
        "seed": config.seed,
        "LoRA": lora,
    }


def _change(imitated: Mapping[str, Any] | None, change: OnPolicyChange | None) -> dict[str, Any]:
    """Held-out figures before the on-policy steps, and the change since, paired by prompt."""
    if imitated is None or change is None:
        return {}
    before = MethodRow.model_validate(imitated["row"])
    return {
        "held-out win rate before the on-policy steps": before.win_rate,
        "held-out KL before them, nats": before.kl_nats,
        "their change of the win rate": change.win_rate,
        "their change of the KL, nats": change.kl_nats,
    }


def _captured_facts(captured: CapturedNats | None) -> dict[str, Any]:
    """Captured nats on the samples that were measured."""
    if captured is None:
        return {}
    name = f"captured nats of best-of-{captured.n} (at most {captured.most:.3f})"
    figures = {
        f"{name}, training cache": captured.cache,
        f"{name}, held-out prompts": captured.heldout,
    }
    return {fact: value for fact, value in figures.items() if value is not None}


def _share(value: float | None) -> str:
    return "not recorded" if value is None else f"{value:.1%}"


def _figures(row: MethodRow | None) -> dict[str, Any]:
    if row is None:
        return {}
    figures: dict[str, Any] = {
        "held-out equivalent n: the n of best-of-n with its win rate": row.equivalent_n,
        "held-out productive share of its KL": row.productive_share,
        f"held-out win rate against the reference ({row.win_rate.count} prompts)": row.win_rate,
        "held-out KL from the reference, nats (Rao-Blackwellised)": row.kl_nats,
        "held-out mean reward": row.reward,
        "held-out samples cut off": _share(row.truncated_share),
    }
    if row.gold is not None:
        figures["held-out mean gold reward"] = row.gold
        figures["held-out gold win rate"] = row.gold_win_rate
    return figures
