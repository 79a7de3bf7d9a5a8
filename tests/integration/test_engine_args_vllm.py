"""Engine arguments that users pass through reach real vLLM; what it rejects is told in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vbon.engine.vllm.engine import VllmEngine
from vbon.engine.vllm.host import VllmHost
from vbon.engine.vllm.options import VllmOptions
from vbon.errors import CheckpointError, InvalidInputError, VbonError

pytestmark = [pytest.mark.vllm, pytest.mark.train]


def engine_with(sandbox: Path, args: dict[str, Any]) -> VllmEngine:
    options = VllmOptions(executor="uni", enforce_eager=True, args=args)
    return VllmEngine(VllmHost(str(sandbox / "policy"), options))


async def test_an_argument_reaches_the_engine(sandbox: Path) -> None:
    engine = engine_with(sandbox, {"enable_prefix_caching": False, "max_num_batched_tokens": 777})
    try:
        await engine.start()
        config = engine.host.llm.vllm_config
        assert config.scheduler_config.max_num_batched_tokens == 777
        assert config.cache_config.enable_prefix_caching is False
    finally:
        await engine.stop()


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
