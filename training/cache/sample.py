"""The ``sample`` command: draws and scores M reference responses per prompt.

The reward cache has one line per prompt. Lines are appended to ``NAME.partial`` as prompts are finished, in
any order. When all are finished, the lines are put in the order of the prompts and the file takes its final
name; the order matters because training chooses rows by number. Until then, a cache that ``--replace`` is to
replace stays in place.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import aclosing, closing, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.cache.sample_backends import sample_with_transformers, sample_with_vllm
from training.cache.sample_file import (
    LinePlaces,
    append_line,
    begin_partial,
    find_finished_lines,
    finish_cache,
)
from training.cache.scored_lines import ScoredLine, scored_line
from training.cluster.session import check_ray, check_room, ray_session
from training.configs import SampleConfig
from training.outputs.identity import read_undamaged_record
from vbon.errors import DataError, ExportError
from vbon.maths.rejection import calibrated_rejection
from vbon.maths.reward_prior import estimate_reward_prior
from vbon.progress_bar import ProgressBar
from vbon.prompt_files import read_prompts
from vbon.prompts import Prompt
from vbon.rewards import RewardModel
from vbon.rewards.deaths import open_unsupervised
from vbon.storage.atomic import read_errors, write_errors, write_json
from vbon.storage.cache_metadata import metadata_path
from vbon.storage.checkpoints import check_checkpoint
from vbon.storage.checksums import sha256_of
from vbon.storage.locks import sole_writer
from vbon.storage.provenance import provenance
from vbon.storage.stop_tokens import stop_identity
from vbon.work_report import PROMPTS_SAMPLED

logger = logging.getLogger(__name__)

# Settings that do not change a single sample, so an interrupted run may continue with other values.
_INCIDENTAL = {
    "out",
    "concurrency",
    "reward_batch_size",
    "replace",
    "prompts",
    "prompt_column",
    "encoding",
    "worker_backend",
    "workers",
    "worker_cpus",
    "worker_gpus",
    "shard_prompts",
}


def build_cache(config: SampleConfig) -> None:
    """Write the reward cache, or the lines that an interrupted run has not written.

    Raises:
        CheckpointError, DataError, RewardError, ExportError: finished lines are kept.
    """
    if config.out.is_dir():
        raise ExportError(f"{config.out} is a directory; give the path of a file as --out")
    with sole_writer(config.out):
        _build(config)


def _build(config: SampleConfig) -> None:
    if config.backend == "ray":
        check_ray()
    prompts = read_prompts(config.prompts, column=config.prompt_column, encoding=config.encoding)
    policy = check_checkpoint(config.policy, "causal-lm")
    reward = open_unsupervised(
        config.reward,
        trust_remote_code=config.trust_remote_code,
        batch_size=config.reward_batch_size,
    )
    identity = config.model_dump(mode="json", exclude=_INCIDENTAL) | {
        "backend": config.sampler,
        "policy_revision": policy.revision,
        "reward_revision": reward.revision,
        **stop_identity(policy.path),
    }
    partial = config.out.with_name(config.out.name + ".partial")
    lines = find_finished_lines(config, identity, partial)
    pending = [prompt for prompt in prompts if prompt.key not in lines]
    metadata = {**provenance(config.model_dump(mode="json")), "identity": identity}
    if not pending and not partial.exists():
        _record_complete(config.out, partial, metadata)
        logger.info("%s: complete, %d prompts", config.out, len(lines))
        _summarise(config.out, config)
        return
    with write_errors(config.out):
        if pending:
            with _loaded_here(config, reward):
                begin_partial(config.out, partial, metadata, extends_finished=bool(lines))
                begun = perf_counter()
                _fill(config, reward, partial, pending, lines)
            metadata["cost"] = _cost(perf_counter() - begun, len(pending), len(lines))
        metadata["samples"] = _summarise(partial, config)
        finish_cache(config.out, partial, metadata, prompts, lines)
    logger.info("%s: %d prompts x %d samples", config.out, len(prompts), config.num_samples)


@contextmanager
def _loaded_here(config: SampleConfig, reward: RewardModel) -> Iterator[None]:
    """Load the reward model, or connect to Ray, whose workers have their own."""
    if config.backend == "ray":
        with ray_session():
            check_room(config.worker_cpus, config.worker_gpus)
            yield
        return
    reward.load()
    try:
        yield
    finally:
        reward.close()


def _summarise(path: Path, config: SampleConfig) -> dict[str, int]:
    """Log and return how many samples the cache has and how many the limit cut off; log its prior too.

    It reads all lines, because an interrupted run counted only its own.
    """
    rewards, scored, cut_off = [], 0, 0
    with read_errors(path), path.open("rb") as handle:
        for line in handle:
            record = json.loads(line)
            rewards.append(np.array(record["rewards"], dtype=np.float64))
            scored += len(record["rewards"])
            cut_off += (record.get("finish_reasons") or []).count("length")
    logger.info(
        "%d of %d samples (%.0f%%) were cut off at %d tokens; %s",
        cut_off,
        scored,
        100 * cut_off / scored,
        config.max_new_tokens,
        "they are scored as if they were whole"
        if config.missing_eos_reward is None
        else f"their reward is {config.missing_eos_reward:g}",
    )
    _log_prior(rewards)
    log_rejection(rewards)
    return {"scored": scored, "truncated": cut_off}


def _log_prior(rewards: list[NDArray[np.float64]]) -> None:
    """Log the prior of ``adaptive-bon`` that the rewards of a cache give, if they are enough for one."""
    try:
        settings = estimate_reward_prior(rewards).settings()
    except DataError as error:
        logger.info("no prior for adaptive-bon: %s", error)
        return
    words = ", ".join(f"{name} {value:.4g}" for name, value in settings.items())
    logger.info("prior for adaptive-bon with cost_unit reward: %s", words)


def log_rejection(rewards: list[NDArray[np.float64]]) -> None:
    """Log thresholds at which ``adaptive-bon`` can stop, for several mean numbers of candidates.

    An answer has at most four times the mean. Means for which the cache has too few samples are left out.
    """
    for mean_draws in (2, 4, 8):
        most = 4 * mean_draws
        if max(map(len, rewards)) < most:
            return
        found = calibrated_rejection(rewards, mean_draws, most)
        logger.info(
            "rejection by adaptive-bon (candidate_cost 0, min_n 1, round_size 1, max_n %d): stop_at_reward "
            "%.4g draws %.2f candidates on average for a reward of %.4g; best-of-n with as many: %.4g",
            most,
            found.threshold,
            found.draws,
            found.reward,
            found.best_of_n,
        )


def _cost(seconds: float, sampled: int, total: int) -> dict[str, float]:
    """The time that the whole cache takes to sample and score, with the loading of the policy.

    If an earlier run wrote some of the lines, it is scaled from the prompts of this one.
    """
    return {"sampling_seconds": round(seconds * total / sampled, 2), "seconds_of_prompts": sampled}


def _record_complete(out: Path, partial: Path, metadata: dict[str, Any]) -> None:
    """Add the checksum to the metadata of a complete cache if an earlier version left it out."""
    if "sha256" not in (read_undamaged_record(metadata_path(out)) or {}):
        write_json(metadata_path(out), metadata | {"sha256": sha256_of(out)})
    metadata_path(partial).unlink(missing_ok=True)


def _fill(
    config: SampleConfig,
    reward: RewardModel,
    partial: Path,
    prompts: list[Prompt],
    lines: LinePlaces,
) -> None:
    """Sample and score prompts, and add their lines to the file and to ``lines``."""
    unscored = 0
    with (
        # Unbuffered, because a buffer would try to write again on closing what a full disk refused.
        partial.open("ab", buffering=0) as handle,
        ProgressBar(
            "sampling prompts", len(lines) + len(prompts), len(lines), work=PROMPTS_SAMPLED
        ) as progress,
    ):

        def keep(found: ScoredLine) -> None:
            nonlocal unscored
            unscored += found.unscored
            lines[found.key] = append_line(handle, partial, found.line)
            progress.advance(1, f"{unscored} unscored" if unscored else "")

        if config.backend == "ray":
            from training.cache.ray_shards import ray_lines

            with closing(ray_lines(config, prompts)) as found:
                for line in found:
                    keep(line)
        else:
            asyncio.run(_fill_here(config, reward, prompts, keep))
    if unscored:
        logger.warning("%d samples had no finite reward and are left out of the cache", unscored)


async def _fill_here(
    config: SampleConfig,
    reward: RewardModel,
    prompts: list[Prompt],
    keep: Callable[[ScoredLine], None],
) -> None:
    sample = sample_with_vllm if config.backend == "vllm" else sample_with_transformers
    async with aclosing(sample(config, prompts)) as stream:
        async for prompt, responses in stream:
            keep(await scored_line(config, reward, prompt, responses))
