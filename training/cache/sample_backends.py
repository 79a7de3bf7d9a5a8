"""Draws reference responses, with vLLM or with transformers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from training.configs import SampleConfig
from vbon.engine import FinishReason, Sampling
from vbon.maths.seeds import seed_of
from vbon.prompt_files import encode_prompts
from vbon.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Response:
    """One response to a prompt.

    Attributes:
        token_ids: the tokens as drawn, EOS included; encoding ``text`` again may give other tokens.
        finish_reason: ``stop`` for a complete response, ``length`` for a truncated one.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason


def _prompt_seed(seed: int, prompt: Prompt) -> int:
    return seed_of(f"{seed}:{prompt.key}")


Draw = Callable[[list[Prompt]], AsyncGenerator[tuple[Prompt, list[Response]], None]]


@asynccontextmanager
async def vllm_sampler(config: SampleConfig) -> AsyncGenerator[Draw, None]:
    """Start vLLM; yield the function that samples several prompts at once.

    It yields each prompt when all its responses are finished.
    """
    from vbon.engine.vllm.engine import VllmEngine
    from vbon.engine.vllm.host import VllmHost
    from vbon.engine.vllm.options import VllmOptions

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

    async def sample(prompt: Prompt) -> tuple[Prompt, list[Response]]:
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

    async def draw(
        prompts: list[Prompt],
    ) -> AsyncGenerator[tuple[Prompt, list[Response]], None]:
        tasks = [asyncio.create_task(sample(prompt)) for prompt in prompts]
        try:
            for finished in asyncio.as_completed(tasks):
                yield await finished
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    try:
        await engine.start()
        yield draw
    finally:
        await engine.stop()


@asynccontextmanager
async def transformers_sampler(config: SampleConfig) -> AsyncGenerator[Draw, None]:
    """Load the policy; yield the function that samples one prompt after the other, as training does."""
    from training.rollouts.load_policy import load_policy
    from training.rollouts.rollout import sample_responses
    from vbon.storage.stop_tokens import find_extra_stop_ids

    model, tokenizer, checkpoint = load_policy(
        config.policy, dtype=config.dtype, trust_remote_code=config.trust_remote_code
    )
    extra_stop_ids = find_extra_stop_ids(checkpoint.path, tokenizer)

    async def draw(
        prompts: list[Prompt],
    ) -> AsyncGenerator[tuple[Prompt, list[Response]], None]:
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
                extra_stop_ids=extra_stop_ids,
            )
            rows = zip(rollout.response_BT.cpu(), rollout.mask_BT.cpu(), strict=True)
            columns = (
                rollout.texts(tokenizer, extra_stop_ids),
                (ids[mask].tolist() for ids, mask in rows),
                rollout.finish_reasons(tokenizer, extra_stop_ids),
            )
            yield prompt, [Response(*row) for row in zip(*columns, strict=True)]

    yield draw


SAMPLERS = {"vllm": vllm_sampler, "transformers": transformers_sampler}


async def sample_with_vllm(
    config: SampleConfig, prompts: list[Prompt]
) -> AsyncGenerator[tuple[Prompt, list[Response]], None]:
    """Sample prompts with an engine that ends with the last of them."""
    async with vllm_sampler(config) as draw, aclosing(draw(prompts)) as stream:
        async for found in stream:
            yield found


async def sample_with_transformers(
    config: SampleConfig, prompts: list[Prompt]
) -> AsyncGenerator[tuple[Prompt, list[Response]], None]:
    """Sample prompts with a model that is loaded for them."""
    async with transformers_sampler(config) as draw, aclosing(draw(prompts)) as stream:
        async for found in stream:
            yield found
