"""``vbon``: fine-tunes the reference policy toward its own best-of-N; resumable, exported whole."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bestofn.checkpoints import check_checkpoint
from bestofn.errors import DataError
from bestofn.files import recover_directory, replacing_directory, write_json, write_text
from bestofn.prompts import Prompt
from bestofn.provenance import provenance
from bestofn.rewards import RewardModel, open_reward_model
from training.cache import RewardCache, read_samples
from training.cards import write_card
from training.configs import VbonConfig
from training.evaluation import Row, policy_row
from training.measure import Measurer
from training.objectives import OBJECTIVES
from training.policies import load_policy
from training.progress import ProgressBar
from training.prompts import encode_prompts, read_prompts
from training.records import is_same, read_record
from training.sample import meta_path
from training.trainer import OnPolicyTrainer, StepMetrics, TrainerOptions
from training.warm_start import Example, weighted_examples

logger = logging.getLogger(__name__)

RECORD = "training.json"
# A LoRA is exported merged, and beside it as it is, for serving on the reference engine.
ADAPTER = "adapter"
# What may change between a run and its continuation without changing a single step.
_INCIDENTAL = {"out", "checkpoint_every", "reward_batch_size", "replace", "heldout"}
# The card's own held-out figures; `evaluate` takes more samples and draws the whole curve.
CARD_PROMPTS, CARD_REFERENCE_SAMPLES, CARD_POLICY_SAMPLES = 64, 32, 16


def state_path(out: Path) -> Path:
    """Where an unfinished run keeps its resumable state."""
    return out.with_name(f".{out.name}.state")


def train_vbon(config: VbonConfig) -> None:
    """Train, resume, or report that there is nothing to do.

    Raises:
        CheckpointError, DataError, InvalidInputError, RewardError, ExportError.
    """
    objective = OBJECTIVES["vbon" if config.bound == "lower" else "vbon-exact"](config.num_samples)
    cache = RewardCache.load(config.cache)
    policy_source = check_checkpoint(config.policy, "causal-lm")
    reward = open_reward_model(
        config.reward,
        trust_remote_code=config.trust_remote_code,
        batch_size=config.reward_batch_size,
    )
    identity = config.model_dump(mode="json", exclude=_INCIDENTAL) | {
        "policy_revision": policy_source.revision,
        "reward_revision": reward.revision,
        "cache_sha256": hashlib.sha256(config.cache.read_bytes()).hexdigest()[:16],
    }
    recover_directory(config.out)
    if _finished(config, identity):
        logger.info("%s: already trained with these settings", config.out)
        return
    _check_cache_settings(config, policy_source.revision, reward.revision)
    cache_warnings = cache.warn_about(config.num_samples)
    reward.load()
    trainer, reference, tokenizer = _trainer(config, cache, reward, objective)
    history = _train(config, trainer, identity)
    policy = trainer.accelerator.unwrap_model(trainer.policy)
    heldout = _heldout_row(config, policy, reference, tokenizer, reward)
    _export(config, policy, tokenizer, identity, history, heldout, cache, cache_warnings)
    shutil.rmtree(state_path(config.out), ignore_errors=True)
    if heldout is not None:
        logger.info(
            "%s: held-out win rate %s at KL %s nats", config.out, heldout.win_rate, heldout.kl_nats
        )


def _finished(config: VbonConfig, identity: dict[str, Any]) -> bool:
    """Whether the output is this very run's.

    Raises:
        DataError: it is another's and --replace was not given.
    """
    record = read_record(config.out / RECORD)
    if record is None:
        return False
    return is_same(config.out, record.get("identity", {}), identity, replace=config.replace)


def _check_cache_settings(config: VbonConfig, policy_revision: str, reward_revision: str) -> None:
    """The cache must be of this policy, this reward model and this sampling.

    A cache without a record beside it (made elsewhere) is taken on trust.

    Raises:
        DataError: names the mismatch.
    """
    recorded = (read_record(meta_path(config.cache)) or {}).get("identity")
    if recorded is None:
        logger.info("%s has no record of how it was sampled; taken on trust", config.cache)
        return
    wanted = {
        "policy_revision": policy_revision,
        "reward_revision": reward_revision,
        "max_new_tokens": config.max_new_tokens,
        "temperature": config.temperature,
    }
    for key, value in wanted.items():
        if recorded.get(key) != value:
            raise DataError(
                f"the cache {config.cache} was sampled with {key} {recorded.get(key)!r}, this run "
                f"has {value!r}: F would be another policy's. Sample again or align the settings"
            )


def _prompts(cache: RewardCache, path: Path) -> list[Prompt]:
    """The cache's prompts as they were asked (chats keep their turns)."""
    chats: dict[str, Prompt] = {}
    with path.open(encoding="utf-8") as handle:
        for line in handle:
            if '"messages"' in line:
                record = json.loads(line)
                if record.get("messages"):
                    chats[record["prompt"]] = Prompt(messages=tuple(record["messages"]))
    return [chats.get(key) or Prompt(text=key) for key in cache.prompts]


def _trainer(
    config: VbonConfig, cache: RewardCache, reward: RewardModel, objective: Any
) -> tuple[OnPolicyTrainer, Any, Any]:
    policy, tokenizer, _ = load_policy(
        config.policy, dtype=config.dtype, trust_remote_code=config.trust_remote_code
    )
    reference = copy.deepcopy(policy).requires_grad_(False)
    if config.lora_rank is not None:
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        import torch

        torch.manual_seed(config.seed)
        policy = get_peft_model(policy, lora)
    prompts = encode_prompts(tokenizer, _prompts(cache, config.cache))
    examples: list[Example] = []
    if config.warm_start_epochs:
        examples = weighted_examples(
            read_samples(config.cache),
            {prompt.key: ids for prompt, ids in prompts},
            tokenizer,
            config.num_samples,
            config.max_new_tokens,
        )
    batch = config.prompts_per_step * config.samples_per_prompt
    options = TrainerOptions(
        steps=config.steps,
        prompts_per_step=config.prompts_per_step,
        samples_per_prompt=config.samples_per_prompt,
        micro_batch_size=config.micro_batch_size,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        warm_start_steps=math.ceil(config.warm_start_epochs * len(examples) / batch),
        warm_start_learning_rate=config.warm_start_learning_rate,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
    )
    trainer = OnPolicyTrainer(
        policy, reference, tokenizer, reward, cache, objective, prompts, options, examples
    )
    return trainer, reference, tokenizer


def _train(
    config: VbonConfig, trainer: OnPolicyTrainer, identity: dict[str, Any]
) -> list[dict[str, Any]]:
    """The loop: a step, a row of history, now and then a resumable state."""
    state = state_path(config.out)
    history = _resume(config, trainer, identity)
    begun = time.perf_counter()
    total = trainer.total_steps
    with ProgressBar(f"vBoN N={config.num_samples}", total, done=len(history)) as progress:
        for step in range(len(history), total):
            metrics = trainer.step(step)
            history.append(asdict(metrics))
            progress.advance(1, _facts(metrics))
            if (step + 1) % config.checkpoint_every == 0 and step + 1 < total:
                with replacing_directory(state) as directory:
                    trainer.accelerator.save_state(str(directory / "accelerate"))
                    write_json(directory / "run.json", {"identity": identity, "history": history})
    logger.info("trained %d steps in %.0f s", total, time.perf_counter() - begun)
    return history


def _facts(metrics: StepMetrics) -> str:
    if metrics.phase == "warm-start":
        return f"warm start: loss {metrics.loss:.3f}, gradient {metrics.grad_norm:.2f}"
    return (
        f"reward {metrics.reward:+.2f}, log F {metrics.log_cdf:.3f}, KL {metrics.kl_nats:.2f} nats, "
        f"gradient {metrics.grad_norm:.2f}"
    )


def _resume(
    config: VbonConfig, trainer: OnPolicyTrainer, identity: dict[str, Any]
) -> list[dict[str, Any]]:
    state = state_path(config.out)
    recover_directory(state)
    run = read_record(state / "run.json")
    if run is None:
        return []
    if not is_same(state, run["identity"], identity, replace=config.replace):
        shutil.rmtree(state)
        return []
    trainer.accelerator.load_state(str(state / "accelerate"))
    history = list(run["history"])
    logger.info("resuming after step %d", len(history))
    return history


def _heldout_row(
    config: VbonConfig, policy: Any, reference: Any, tokenizer: Any, reward: RewardModel
) -> Row | None:
    if config.heldout is None:
        return None
    prompts = encode_prompts(tokenizer, read_prompts(config.heldout)[:CARD_PROMPTS])
    measurer = Measurer(
        tokenizer=tokenizer,
        reference=reference,
        reward=reward,
        gold=None,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        batch_size=512,
        seed=config.seed,
    )
    theirs = measurer.measure(reference, prompts, CARD_REFERENCE_SAMPLES, "held-out reference")
    ours = measurer.measure(policy, prompts, CARD_POLICY_SAMPLES, "held-out vBoN")
    return policy_row("vbon", ours, theirs)


def _export(
    config: VbonConfig,
    policy: Any,
    tokenizer: Any,
    identity: dict[str, Any],
    history: list[dict[str, Any]],
    heldout: Row | None,
    cache: RewardCache,
    cache_warnings: list[str],
) -> None:
    """Weights, tokenizer, card, record and history, in one step; an old checkpoint stays till then."""
    drawn = config.steps * config.prompts_per_step * config.samples_per_prompt
    seconds = sum(row["sample_s"] + row["score_s"] + row["learn_s"] for row in history)
    cost = {"samples_drawn": drawn, "training_seconds": round(seconds, 1)}
    figures: dict[str, Any] = {}
    if heldout is not None:
        figures = {
            f"held-out win rate against the reference ({CARD_PROMPTS} prompts at most)":
                str(heldout.win_rate),
            "held-out KL from the reference, nats (Rao-Blackwellised)": str(heldout.kl_nats),
            "held-out mean reward": str(heldout.reward),
        }  # fmt: skip
    with replacing_directory(config.out) as directory:
        if config.lora_rank is not None:
            policy.save_pretrained(directory / ADAPTER)
            policy = policy.merge_and_unload()
        policy.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        write_json(
            directory / RECORD,
            {
                **provenance(config.model_dump(mode="json")),
                "identity": identity,
                "cost": cost,
                "cache": {
                    "prompts": len(cache),
                    "smallest_M": cache.smallest,
                    "warnings": cache_warnings,
                },
                "heldout": None if heldout is None else heldout.as_dict(),
            },
        )
        lines = (json.dumps(row) + "\n" for row in history)
        write_text(directory / "history.jsonl", "".join(lines))
        write_card(
            directory,
            title=f"vBoN, N = {config.num_samples}",
            summary="A policy that answers once what best-of-N of its reference policy answers with "
            "N samples: fine-tuned to minimise the reverse KL to the best-of-N distribution "
            "(Variational Best-of-N Alignment, arXiv 2407.06057).",
            facts={
                "N": config.num_samples,
                "M, reference samples a prompt": cache.smallest,
                "bound": config.bound,
                "reference policy": f"{config.policy} ({identity['policy_revision']})",
                "reward model": f"{config.reward} ({identity['reward_revision']})",
                "temperature": config.temperature,
                "warm start, epochs of weighted imitation": config.warm_start_epochs,
                "on-policy steps": config.steps,
                "seed": config.seed,
                "LoRA": "no"
                if config.lora_rank is None
                else f"rank {config.lora_rank}, merged; also in {ADAPTER}/",
                **cost,
                **figures,
            },
        )
