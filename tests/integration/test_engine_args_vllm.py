"""Engine arguments that users pass through reach real vLLM; what it rejects is told in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from training.rollouts.load_policy import load_policy
from vbon.engine import Sampling
from vbon.engine.vllm.engine import VllmEngine
from vbon.engine.vllm.host import VllmHost
from vbon.engine.vllm.options import VllmOptions
from vbon.errors import CheckpointError, InvalidInputError, VbonError

pytestmark = [pytest.mark.vllm, pytest.mark.train, pytest.mark.usefixtures("forked_engines")]


def engine_with(sandbox: Path, args: dict[str, Any], **more: Any) -> VllmEngine:
    options = VllmOptions(executor="uni", enforce_eager=True, args=args, **more)
    return VllmEngine(VllmHost(str(sandbox / "policy"), options))


async def test_arguments_reach_the_engine_and_it_tells_the_likelihood_of_what_it_sampled(
    sandbox: Path,
) -> None:
    """The likelihoods are compared with transformers' logits, shaped by hand."""
    args = {"enable_prefix_caching": False, "max_num_batched_tokens": 40}
    engine = engine_with(sandbox, args, sampled_logprobs=True, max_num_seqs=16)
    assert engine.info.sampled_logprobs
    policy, _, _ = load_policy(str(sandbox / "policy"))
    prompt, shaped = [5, 6, 7], Sampling(max_tokens=6, temperature=0.5, top_k=3, seed=1)
    try:
        await engine.start()
        config = engine.host.llm.vllm_config
        assert config.scheduler_config.max_num_batched_tokens == 40
        assert config.cache_config.enable_prefix_caching is False
        for sampling in (shaped, replace(shaped, temperature=1.0, top_k=0)):
            drawn = [
                one async for one in engine.generate(prompt, sampling, 4, f"t{sampling.top_k}")
            ]
            for one in drawn:
                ids = torch.tensor([[*prompt, *one.token_ids]])
                with torch.no_grad():
                    logits = policy(ids).logits[0, len(prompt) - 1 : -1] / sampling.temperature
                if sampling.top_k:
                    least = logits.topk(sampling.top_k).values[:, -1:]
                    logits = logits.masked_fill(logits < least, -torch.inf)
                wanted = logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0]
                assert one.token_logprobs == pytest.approx(wanted.tolist(), abs=1e-3)
            own = await engine.logprobs(prompt, list(drawn[0].token_ids), f"own{sampling.top_k}")
            with torch.no_grad():
                ids = torch.tensor([[*prompt, *drawn[0].token_ids]])
                plain = policy(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            wanted = plain.gather(-1, ids[0, len(prompt) :, None])[:, 0]
            assert own == pytest.approx(wanted.tolist(), abs=1e-3)
        await check_prompts_read_in_parts(engine)
    finally:
        await engine.stop()


async def check_prompts_read_in_parts(engine: VllmEngine) -> None:
    """A step of this engine has room for 40 tokens, so of eight prompts at once most are read in parts.

    Their seeded samples are those of prompts that come one by one.
    """
    prompt, sampling = [5 + i % 50 for i in range(30)], Sampling(max_tokens=6, seed=4)
    together = [one async for one in engine.generate(prompt, sampling, 8, "together")]
    alone = [
        [one async for one in engine.generate(prompt, sampling, 1, f"alone{i}", i)]
        for i in range(8)
    ]
    found = [list(one.token_ids) for one in sorted(together, key=lambda one: one.index)]
    assert found == [list(one.token_ids) for (one,) in alone]
    assert len({tuple(ids) for ids in found}) > 1


@pytest.mark.parametrize(
    ("args", "kind", "words"),
    [
        ({"enable_prefix_cachin": False}, InvalidInputError, "mean 'enable_prefix_caching'"),
        ({"enable_prefix_caching": "perhaps"}, CheckpointError, "enable_prefix_caching: Input"),
        ({"quantization": "fp9"}, CheckpointError, "fp9"),
    ],
)
async def test_what_vllm_does_not_take_is_told_in_one_line(
    sandbox: Path, args: dict[str, Any], kind: type[VbonError], words: str
) -> None:
    engine = engine_with(sandbox, args)
    with pytest.raises(kind, match=words) as error:
        await engine.start()
    assert "\n" not in str(error.value)
