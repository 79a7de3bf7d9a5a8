"""``sample``: draws and scores M reference completions a prompt, one line of the cache each."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bestofn.checkpoints import check_checkpoint
from bestofn.engine import FinishReason, Sampling
from bestofn.errors import ExportError, RewardError
from bestofn.files import write_json
from bestofn.prompts import Prompt
from bestofn.provenance import provenance
from bestofn.rewards import RewardModel, Scorable, open_reward_model
from bestofn.seeds import seed_of
from training.configs import SampleConfig
from training.progress import ProgressBar
from training.prompts import encode_prompts, read_prompts
from training.records import is_same, read_record

logger = logging.getLogger(__name__)

# What may change without changing a single sample.
_INCIDENTAL = {"out", "concurrency", "reward_batch_size", "replace", "prompts"}


def meta_path(cache: Path) -> Path:
    """Where a cache's settings and revisions are written."""
    return cache.with_name(cache.name + ".meta.json")


def build_cache(config: SampleConfig) -> None:
    """Write the cache, or what an interrupted run left to do.

    Raises:
        CheckpointError, DataError, RewardError, ExportError: what is written so far is kept.
    """
    prompts = read_prompts(config.prompts)
    policy = check_checkpoint(config.policy, "causal-lm")
    reward = open_reward_model(
        config.reward,
        trust_remote_code=config.trust_remote_code,
        batch_size=config.reward_batch_size,
    )
    identity = config.model_dump(mode="json", exclude=_INCIDENTAL) | {
        "policy_revision": policy.revision,
        "reward_revision": reward.revision,
    }
    partial = config.out.with_name(config.out.name + ".partial")
    done = _done(config, identity, partial)
    pending = [prompt for prompt in prompts if prompt.key not in done]
    if not pending and config.out.exists():
        logger.info("%s: complete, %d prompts", config.out, len(done))
        return
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        meta_path(config.out), {**provenance(config.model_dump(mode="json")), "identity": identity}
    )
    if pending:
        reward.load()
        _ensure_partial(config.out, partial)
        asyncio.run(_fill(config, reward, partial, pending, already=len(prompts) - len(pending)))
    partial.replace(config.out)
    logger.info("%s: %d prompts x %d samples", config.out, len(prompts), config.num_samples)


def _done(config: SampleConfig, identity: dict[str, Any], partial: Path) -> set[str]:
    """Prompts already sampled under the same settings; a torn last line is cut off."""
    source = partial if partial.exists() else config.out
    if not source.exists():
        return set()
    recorded = (read_record(meta_path(config.out)) or {}).get("identity", {})
    if not is_same(config.out, recorded, identity, replace=config.replace):
        logger.info("%s was made with other settings; making it again", config.out)
        partial.unlink(missing_ok=True)
        config.out.unlink(missing_ok=True)
        return set()
    return {json.loads(line)["prompt"] for line in _whole_lines(source)}


def _whole_lines(path: Path) -> Iterator[str]:
    kept = 0
    with path.open("rb") as handle:
        for line in handle:
            if not line.endswith(b"\n"):
                break
            kept += len(line)
            yield line.decode("utf-8")
    if kept < path.stat().st_size:
        os.truncate(path, kept)


def _ensure_partial(out: Path, partial: Path) -> None:
    """Prompts added to a finished cache go on where it ended."""
    if out.exists() and not partial.exists():
        out.replace(partial)


async def _fill(
    config: SampleConfig, reward: RewardModel, partial: Path, prompts: list[Prompt], already: int
) -> None:
    source = _from_vllm if config.backend == "vllm" else _from_transformers
    unscored = 0
    total = already + len(prompts)
    with (
        partial.open("a", encoding="utf-8") as handle,
        ProgressBar("sampling prompts", total, done=already) as progress,
    ):
        async with aclosing(source(config, prompts)) as stream:
            async for prompt, responses in stream:
                items = [Scorable(prompt, response.text) for response in responses]
                rewards = await asyncio.to_thread(reward.score, items)
                line, missing = _line(prompt, responses, rewards)
                unscored += missing
                _append(handle, line)
                progress.advance(1, f"{unscored} unscored" if unscored else "")
    if unscored:
        logger.warning("%d samples had no finite reward and are left out of the cache", unscored)


@dataclass(frozen=True, slots=True)
class Response:
    """One completion; ``finish_reason`` says whether it ended or was cut off.

    Attributes:
        token_ids: as drawn, EOS included; ``text`` encoded anew may be spelled in other tokens.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason


def _line(
    prompt: Prompt, responses: list[Response], rewards: list[float | None]
) -> tuple[str, int]:
    kept = [(text, r) for text, r in zip(responses, rewards, strict=True) if r is not None]
    if not kept:
        raise RewardError(f"no completion of {prompt.key[:80]!r} has a finite reward")
    record: dict[str, Any] = {
        "prompt": prompt.key,
        "responses": [response.text for response, _ in kept],
        "response_ids": [response.token_ids for response, _ in kept],
        "rewards": [value for _, value in kept],
        "finish_reasons": [response.finish_reason for response, _ in kept],
    }
    if prompt.messages:
        record["messages"] = list(prompt.messages)
    return json.dumps(record, ensure_ascii=False) + "\n", len(responses) - len(kept)


def _append(handle: Any, line: str) -> None:
    try:
        handle.write(line)
        handle.flush()
        os.fsync(handle.fileno())
    except OSError as error:
        raise ExportError(
            f"could not write the cache: {error.strerror}; whole lines are kept, run again to go on"
        ) from error


def _prompt_seed(seed: int, prompt: Prompt) -> int:
    return seed_of(f"{seed}:{prompt.key}")


async def _from_vllm(
    config: SampleConfig, prompts: list[Prompt]
) -> AsyncGenerator[tuple[Prompt, list[Response]], None]:
    """A few prompts in the engine at once; each arrives when its last sample has."""
    from bestofn.engine.vllm_engine import VllmEngine
    from bestofn.engine.vllm_host import VllmHost, VllmOptions

    options = VllmOptions(
        dtype=config.dtype, executor="uni", trust_remote_code=config.trust_remote_code
    )
    engine = VllmEngine(VllmHost(config.policy, options))
    gate = asyncio.Semaphore(config.concurrency)

    async def one(prompt: Prompt) -> tuple[Prompt, list[Response]]:
        async with gate:
            responses: dict[int, Response] = {}
            sampling = Sampling(
                max_tokens=config.max_new_tokens,
                temperature=config.temperature,
                seed=_prompt_seed(config.seed, prompt),
            )
            ids = await engine.encode(prompt)
            name = f"sample-{_prompt_seed(0, prompt)}"
            async with aclosing(engine.generate(ids, sampling, config.num_samples, name)) as stream:
                async for candidate in stream:
                    responses[candidate.index] = Response(
                        candidate.text, list(candidate.token_ids), candidate.finish_reason
                    )
            return prompt, [responses[index] for index in range(config.num_samples)]

    tasks: list[asyncio.Task[tuple[Prompt, list[Response]]]] = []
    try:
        await engine.start()
        tasks = [asyncio.create_task(one(prompt)) for prompt in prompts]
        for finished in asyncio.as_completed(tasks):
            yield await finished
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await engine.stop()


async def _from_transformers(
    config: SampleConfig, prompts: list[Prompt]
) -> AsyncGenerator[tuple[Prompt, list[Response]], None]:
    """One prompt at a time through the training sampler."""
    from training.policies import load_policy
    from training.rollout import sample_responses

    model, tokenizer, _ = load_policy(
        config.policy, dtype=config.dtype, trust_remote_code=config.trust_remote_code
    )
    for prompt, prompt_ids in encode_prompts(tokenizer, prompts):
        rollout = await asyncio.to_thread(
            sample_responses,
            model,
            tokenizer,
            [prompt_ids],
            num_samples=config.num_samples,
            max_new_tokens=config.max_new_tokens,
            seeds=[_prompt_seed(config.seed, prompt)],
            temperature=config.temperature,
        )
        drawn = zip(rollout.response_BT.cpu(), rollout.mask_BT.cpu(), strict=True)
        columns = (
            rollout.texts(tokenizer),
            (ids[mask].tolist() for ids, mask in drawn),
            rollout.finish_reasons(tokenizer),
        )
        yield prompt, [Response(*row) for row in zip(*columns, strict=True)]
