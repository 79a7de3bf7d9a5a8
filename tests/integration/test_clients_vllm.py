"""Load testers as they are installed, over a socket, against the service on real vLLM."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from service.runtime import Runtime
from tests.unit.fakes import on_a_port

pytestmark = [pytest.mark.vllm, pytest.mark.train]


async def test_vllm_bench_serve(runtime: Runtime, sandbox: Path) -> None:
    """What `vllm bench serve` runs, in this process, because importing it takes longer than it."""
    from vllm.benchmarks.serve import add_cli_args, main_async

    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    found = {}
    async with on_a_port(runtime, started=True) as url:
        for model in ("vbon", "bon@vbon"):
            arguments = parser.parse_args(
                ["--backend", "openai", "--base-url", url.removesuffix("/v1"),
                 "--endpoint", "/v1/completions", "--model", model,
                 "--tokenizer", str(sandbox / "policy"), "--ignore-eos",
                 "--dataset-name", "custom", "--skip-chat-template", "--custom-output-len", "8",
                 "--dataset-path", str(sandbox / "prompts" / "heldout.jsonl"),
                 "--num-prompts", "5", "--max-concurrency", "4", "--disable-tqdm"]
            )  # fmt: skip
            found[model] = await main_async(arguments)
    for result in found.values():
        assert (result["completed"], result["failed"]) == (5, 0)
        assert result["total_output_tokens"] == 5 * 8
    # The time to the first token is the true one: a reranked answer's is nearly its whole time.
    assert found["vbon"]["mean_tpot_ms"] > 10 * found["bon@vbon"]["mean_tpot_ms"]
