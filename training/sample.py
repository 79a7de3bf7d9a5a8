"""``sample``: draws and scores M reference completions a prompt, one line of the cache each."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from bestofn.checkpoints import check_checkpoint
from bestofn.checksums import sha256_of
from bestofn.engine import FinishReason, Sampling
from bestofn.errors import DataError, RewardError
from bestofn.files import storage_errors, write_json
from bestofn.locks import sole_writer
from bestofn.prompts import Prompt
from bestofn.provenance import provenance
from bestofn.rewards import RewardModel, Scorable, open_reward_model
from bestofn.seeds import seed_of
from training.cache_lines import parse
from training.configs import SampleConfig
from training.progress import ProgressBar
from training.prompts import encode_prompts, read_prompts
from training.records import is_same, trusted_record

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
    with sole_writer(config.out):
        _build(config)


def _build(config: SampleConfig) -> None:
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
    meta = {**provenance(config.model_dump(mode="json")), "identity": identity}
    if not pending and config.out.exists():
        if "sha256" not in (trusted_record(meta_path(config.out)) or {}):
            write_json(meta_path(config.out), meta | {"sha256": sha256_of(config.out)})
        logger.info("%s: complete, %d prompts", config.out, len(done))
        return
    write_json(meta_path(config.out), meta)
    with storage_errors(config.out):
        if pending:
            reward.load()
            _ensure_partial(config.out, partial)
            already = len(prompts) - len(pending)
            asyncio.run(_fill(config, reward, partial, pending, already))
        # Before the cache takes its name, so that there is none whose content is not recorded.
        write_json(meta_path(config.out), meta | {"sha256": sha256_of(partial)})
        partial.replace(config.out)
    logger.info("%s: %d prompts x %d samples", config.out, len(prompts), config.num_samples)


def check_content(cache: Path, meta: dict[str, Any], digest: str) -> None:
    """Refuse a cache that is not as ``sample`` wrote it.

    Raises:
        DataError: names it.
    """
    if meta.get("sha256", digest) != digest:
        raise DataError(
            f"{cache}: its content is not what {meta_path(cache).name} says (SHA-256 "
            f"{digest[:16]}..., {meta['sha256'][:16]}... was written); restore it or sample it again "
            f"(if you changed it yourself, delete {meta_path(cache).name})"
        )


def _done(config: SampleConfig, identity: dict[str, Any], partial: Path) -> set[str]:
    """Prompts already sampled under the same settings; a torn last line is cut off.

    Raises:
        DataError: a line is damaged, which it names, or all was made with other settings.
    """
    source = partial if partial.exists() else config.out
    if not source.exists():
        return set()
    recorded = trusted_record(meta_path(config.out)) or {}
    if not is_same(config.out, recorded.get("identity", {}), identity, replace=config.replace):
        logger.info("%s was made with other settings; making it again", config.out)
        partial.unlink(missing_ok=True)
        config.out.unlink(missing_ok=True)
        return set()
    if source == config.out and "sha256" in recorded:
        check_content(source, recorded, sha256_of(source))
    with storage_errors(source):
        return set(_whole_lines(source, config.max_new_tokens))


def _whole_lines(path: Path, max_new_tokens: int) -> dict[str, int]:
    """Prompts by the numbers of their lines."""
    kept, found = 0, dict[str, int]()
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.endswith(b"\n"):
                break  # its writer was killed
            kept += len(line)
            where = f"{path}:{number}"
            try:
                prompt = parse(line, where, max_new_tokens).prompt.key
            except DataError as error:
                raise DataError(f"{error}; delete that line to have it sampled again") from error
            if prompt in found:
                raise DataError(f"{where} repeats the prompt of line {found[prompt]}; delete one")
            found[prompt] = number
    if kept < path.stat().st_size:
        os.truncate(path, kept)
    return found


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
        # Unbuffered: what a full disk refused must not be tried again when the file is closed.
        partial.open("ab", buffering=0) as handle,
        ProgressBar("sampling prompts", total, done=already) as progress,
    ):
        async with aclosing(source(config, prompts)) as stream:
            async for prompt, responses in stream:
                items = [Scorable(prompt, response.text) for response in responses]
                rewards = await asyncio.to_thread(reward.score, items)
                line, missing = _line(prompt, responses, rewards)
                unscored += missing
                _append(handle, partial, line.encode())
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


def _append(handle: FileIO, path: Path, line: bytes) -> None:
    """Whole, on disk, or not at all."""
    end = handle.seek(0, os.SEEK_END)
    with storage_errors(path):
        try:
            left = memoryview(line)
            while left:
                left = left[handle.write(left) :]
            os.fsync(handle.fileno())
        except OSError:
            with suppress(OSError):  # else the next run cuts the torn line off
                os.truncate(path, end)
            raise


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
