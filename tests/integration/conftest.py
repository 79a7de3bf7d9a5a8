"""Real vLLM on the tiny sandbox, and what is trained on that."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("torch")

from bestofn.engine import Engine
from bestofn.engine.remote_engine import RemoteEngine
from bestofn.engine.remote_server import RemoteOptions
from service.runtime import Runtime
from service.settings import ServiceSettings
from tests.tiny import train_config
from tests.unit.openai_imitation import free_port


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
    """Tuned hard enough that it cannot be mistaken for the reference."""
    from training.run import train

    out = sandbox / "lora"
    config = train_config(
        sandbox, out, lora_rank=8, steps=8, learning_rate=3e-2, warm_start_steps=0, heldout=None
    )
    train("vbon", config)
    return out


@pytest.fixture(scope="session")
async def runtime(
    sandbox: Path, chat_checkpoint: Path, lora_checkpoint: Path
) -> AsyncGenerator[Runtime, None]:
    """The service's own runtime over real vLLM: the only start of it in a session."""
    pytest.importorskip("vllm")
    from service.assembly import build_runtime

    settings = ServiceSettings(
        policies={
            "ref": str(sandbox / "policy"),
            "vbon": str(chat_checkpoint),
            "lora": str(lora_checkpoint / "adapter"),
        },
        reward=str(sandbox / "reward"),
        gold=str(sandbox / "gold"),
        default_max_tokens=24,
    )
    built = build_runtime(settings)
    try:
        await built.start()
        yield built
    finally:
        await built.stop()


@pytest.fixture(scope="session")
async def vllm_ref(runtime: Runtime) -> Engine:
    return runtime.policies["ref"]


@pytest.fixture(scope="session")
def vllm_server(sandbox: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What `vllm serve` starts, in a process of its own on the sandbox policy; its OpenAI URL.

    It decodes 16 sequences at once and schedules by priority.
    """
    pytest.importorskip("vllm")
    port = free_port()
    log = tmp_path_factory.mktemp("vllm-server") / "log.txt"
    arguments = ["--model", str(sandbox / "policy"), "--served-model-name", "policy",
                 "--host", "127.0.0.1", "--port", str(port), "--enforce-eager",
                 "--max-num-seqs", "16", "--scheduling-policy", "priority",
                 "--distributed-executor-backend", "uni"]  # fmt: skip
    variables = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        # As for engines of ours: without it, vLLM's CPU platform puts `mp` in the place of `uni`.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    with log.open("wb") as out:
        # Not the command `vllm`, which looks for a distribution of that name; ours may be vllm-cpu.
        server = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments],
            env=os.environ | variables, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not healthy(port):
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"vllm did not start: {log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="session")
async def vllm_over_http(vllm_server: str) -> AsyncGenerator[Engine, None]:
    engine = RemoteEngine(f"{vllm_server}#policy", RemoteOptions(by_priority=True))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()
