"""Real vLLM on the tiny sandbox, and what is trained on that."""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

from service.runtime.runtime import Runtime
from service.settings import ServiceSettings
from tests.forks import fork_engines, running_forked
from tests.tiny import SMALL_CACHE, train_config
from vbon.engine import Engine
from vbon.engine.remote.engine import RemoteEngine
from vbon.engine.remote.server import RemoteOptions

pytest.register_assert_rewrite("tests.integration.ray_jobs")


@pytest.fixture(scope="session")
def chat_checkpoint(vbon_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights, with a chat template, which the sandbox's policies have not."""
    out = tmp_path_factory.mktemp("chat") / "vbon"
    shutil.copytree(vbon_checkpoint, out)
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    (out / "chat_template.jinja").write_text(template, encoding="utf-8")
    return out


@pytest.fixture(scope="session")
def lora_checkpoint(sandbox: Path) -> Path:
    """Tuned hard enough that it cannot be mistaken for the reference.

    Its rank lies between two that vLLM can be started with.
    """
    from training.train.run import train

    out = sandbox / "lora"
    config = train_config(
        sandbox, out, lora_rank=12, steps=8, learning_rate=3e-2, warm_start_steps=0, heldout=None
    )
    train("vbon", config)
    return out


@pytest.fixture(scope="session")
def forked_engines() -> None:
    """Spare each of this process's engines the seconds of its imports."""
    pytest.importorskip("vllm")
    fork_engines()


@pytest.fixture(scope="session")
async def runtime(
    sandbox: Path, chat_checkpoint: Path, lora_checkpoint: Path, forked_engines: None
) -> AsyncGenerator[Runtime, None]:
    """The service's own runtime over real vLLM: the only start of it in a session."""
    pytest.importorskip("vllm")
    from service.runtime.build import build_runtime

    settings = ServiceSettings(
        policies={
            "ref": str(sandbox / "policy"),
            "vbon": str(chat_checkpoint),
            "lora": str(lora_checkpoint / "adapter"),
        },
        reward=str(sandbox / "reward"),
        gold=str(sandbox / "gold"),
        default_max_tokens=24,
        engine={"args": SMALL_CACHE},  # type: ignore[arg-type]
    )
    built = build_runtime(settings)
    # One engine with vLLM's own metrics and one without, as by default: both ways are tested.
    host = built.policies["vbon"].host  # type: ignore[attr-defined]
    host.options = replace(host.options, metrics=True)
    try:
        await built.start()
        yield built
    finally:
        await built.stop()


@pytest.fixture(scope="session")
async def vllm_ref(runtime: Runtime) -> Engine:
    return runtime.policies["ref"]


@pytest.fixture(scope="session")
async def vllm_server(vllm_ref: Engine) -> AsyncGenerator[str, None]:
    """The bench's `vllm serve` on the sandbox policy, the only one of a session; its OpenAI URL.

    It decodes 16 sequences at once and schedules by priority. It has its policy's chat template: none.
    """
    from service.bench import vllm_serve as bench

    changes = {"max_num_seqs": 16, "scheduling_policy": "priority", "enforce_eager": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "running", running_forked)
        async with bench.vllm_serve(vllm_ref, chats=False, changes=changes) as url:  # type: ignore[arg-type]
            yield url


@pytest.fixture(scope="session")
async def vllm_over_http(vllm_server: str) -> AsyncGenerator[Engine, None]:
    engine = RemoteEngine(f"{vllm_server}#ref", RemoteOptions(by_priority=True))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()
