"""``sample``: draws and scores M reference completions a prompt, one line of the cache each.

Lines are appended to ``NAME.partial`` as prompts are done, which is in no fixed order. When all are,
they are put in the order of the prompts and take the name: training draws rows by their number. Until
then a cache of other settings that ``--replace`` is to replace stays, with its own record.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any

from training.cache.jsonl import parse
from training.cache.metadata import check_content, meta_path
from training.configs import SampleConfig
from training.outputs.identity import is_same_output, read_undamaged_record
from training.outputs.progress import ProgressBar
from vbon.engine import FinishReason, Sampling
from vbon.errors import DataError, ExportError, RewardError
from vbon.maths.seeds import seed_of
from vbon.prompt_files import encode_prompts, read_prompts
from vbon.prompts import Prompt
from vbon.rewards import RewardModel, Scorable, open_reward_model
from vbon.storage.atomic import read_errors, write_errors, write_json
from vbon.storage.checkpoints import check_checkpoint
from vbon.storage.checksums import sha256_of
from vbon.storage.locks import sole_writer
from vbon.storage.provenance import provenance

logger = logging.getLogger(__name__)

# What may change without changing a single sample.
_INCIDENTAL = {"out", "concurrency", "reward_batch_size", "replace", "prompts"}

# Which bytes of a file are a prompt's line, in the order of the file.
Lines = dict[str, range]


def build_cache(config: SampleConfig) -> None:
    """Write the cache, or what an interrupted run left to do.

    Raises:
        CheckpointError, DataError, RewardError, ExportError: what is written so far is kept.
    """
    if config.out.is_dir():
        raise ExportError(f"{config.out} is a directory; give the file to write as --out")
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
    lines = _done(config, identity, partial)
    pending = [prompt for prompt in prompts if prompt.key not in lines]
    meta = {**provenance(config.model_dump(mode="json")), "identity": identity}
    if not pending and not partial.exists():
        if "sha256" not in (read_undamaged_record(meta_path(config.out)) or {}):
            write_json(meta_path(config.out), meta | {"sha256": sha256_of(config.out)})
        meta_path(partial).unlink(missing_ok=True)
        logger.info("%s: complete, %d prompts", config.out, len(lines))
        return
    with write_errors(config.out):
        if pending:
            reward.load()
            _begin(config.out, partial, meta, onward=bool(lines))
            asyncio.run(_fill(config, reward, partial, pending, lines))
        _finish(config.out, partial, meta, prompts, lines)
    logger.info("%s: %d prompts x %d samples", config.out, len(prompts), config.num_samples)


def _done(config: SampleConfig, identity: dict[str, Any], partial: Path) -> Lines:
    """Lines sampled already under the same settings; a torn last one is cut off.

    With ``replace``, a cache that cannot be gone on with counts as none.

    Raises:
        DataError: a line is damaged, which it names, or all was made with other settings.
    """
    for source in (partial, config.out):
        if not source.exists():
            continue
        try:
            _check_source(config.out, source, identity)
        except DataError as error:
            if not config.replace:
                raise
            logger.warning("%s. Told to --replace it: sampling it again", error)
            if source == partial:  # the finished one stays until another takes its name
                partial.unlink()
            continue
        with write_errors(source):
            return _whole_lines(source, config.max_new_tokens)
    return {}


def _check_source(out: Path, source: Path, identity: dict[str, Any]) -> None:
    """Refuse a cache, finished or not, that is not of this sampling.

    Raises:
        DataError: it is damaged, of other settings, or does not say of which.
    """
    recorded = read_undamaged_record(meta_path(source))
    if recorded is None and source != out:  # earlier versions kept one record for both
        recorded = read_undamaged_record(meta_path(out))
    if recorded is None or "identity" not in recorded:
        raise DataError(
            f"{source} has no {meta_path(source).name} that says how it was sampled; choose another "
            "--out, or sample it again with --replace"
        )
    is_same_output(source, recorded["identity"], identity, replace=False)
    if source == out and "sha256" in recorded:
        with read_errors(source):
            check_content(source, recorded, sha256_of(source))


def _whole_lines(path: Path, max_new_tokens: int) -> Lines:
    kept, found = 0, Lines()
    with read_errors(path), path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.endswith(b"\n"):
                break  # its writer was killed
            where = f"{path}:{number}"
            try:
                prompt = parse(line, where, max_new_tokens).prompt.key
            except DataError as error:
                raise DataError(f"{error}; delete that line to have it sampled again") from error
            if prompt in found:
                first = list(found).index(prompt) + 1
                raise DataError(f"{where} repeats the prompt of line {first}; delete one")
            found[prompt] = range(kept, kept + len(line))
            kept += len(line)
    if kept < path.stat().st_size:
        os.truncate(path, kept)
    return found


def _begin(out: Path, partial: Path, meta: dict[str, Any], *, onward: bool) -> None:
    """The record before the file, so that no unfinished cache is taken for one of other settings.

    Args:
        onward: go on where a finished cache ended, since prompts were added.
    """
    write_json(meta_path(partial), meta)
    if not partial.exists():
        if onward:
            out.replace(partial)
        else:
            partial.touch()


def _finish(
    out: Path, partial: Path, meta: dict[str, Any], prompts: list[Prompt], lines: Lines
) -> None:
    """Put the lines in the order of the prompts, those of other prompts last; they take the name."""
    keys = dict.fromkeys([*(prompt.key for prompt in prompts), *lines])
    places = [lines[key] for key in keys]
    whole = partial
    if any(one.stop != other.start for one, other in pairwise(places)):
        whole = out.with_name(out.name + ".ordered")
        _copy(partial, whole, places)
    # Before the cache takes its name, so that there is none whose content is not recorded.
    write_json(meta_path(out), meta | {"sha256": sha256_of(whole)})
    whole.replace(out)
    partial.unlink(missing_ok=True)
    meta_path(partial).unlink(missing_ok=True)


def _copy(source: Path, target: Path, places: list[range]) -> None:
    """Parts of a file in another order, on disk or not at all."""
    try:
        with source.open("rb") as reader, target.open("wb") as writer:
            for place in places:
                reader.seek(place.start)
                writer.write(reader.read(len(place)))
            writer.flush()
            os.fsync(writer.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        raise


async def _fill(
    config: SampleConfig, reward: RewardModel, partial: Path, prompts: list[Prompt], lines: Lines
) -> None:
    """Sample those prompts, and add their lines to the file and to ``lines``."""
    source = _from_vllm if config.backend == "vllm" else _from_transformers
    unscored = 0
    with (
        # Unbuffered: what a full disk refused must not be tried again when the file is closed.
        partial.open("ab", buffering=0) as handle,
        ProgressBar("sampling prompts", len(lines) + len(prompts), done=len(lines)) as progress,
    ):
        async with aclosing(source(config, prompts)) as stream:
            async for prompt, responses in stream:
                items = [Scorable(prompt, response.text) for response in responses]
                rewards = await asyncio.to_thread(reward.score, items)
                line, missing = _line(prompt, responses, rewards)
                unscored += missing
                lines[prompt.key] = _append(handle, partial, line.encode())
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


def _append(handle: FileIO, path: Path, line: bytes) -> range:
    """Whole, on disk, or not at all; returns where."""
    end = handle.seek(0, os.SEEK_END)
    with write_errors(path):
        try:
            left = memoryview(line)
            while left:
                left = left[handle.write(left) :]
            os.fsync(handle.fileno())
            return range(end, end + len(line))
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
    from vbon.engine.vllm.engine import VllmEngine
    from vbon.engine.vllm.host import VllmHost, VllmOptions

    args = config.engine_args or {}
    options = VllmOptions(
        dtype=config.dtype,
        executor="uni" if args.get("tensor_parallel_size", 1) == 1 else None,
        trust_remote_code=config.trust_remote_code,
        args=args,
        args_setting="engine_args",
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
    from training.rollouts.load_policy import load_policy
    from training.rollouts.rollout import sample_responses

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
