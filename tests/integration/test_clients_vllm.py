"""Clients as they are installed, over a socket, against the service on real vLLM."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from service.runtime.runtime import Runtime
from tests.unit.fakes import on_a_port
from vbon.engine import Candidate, FoundCall, FoundCalls
from vbon.engine.vllm.requests import tool_parser_type
from vbon.errors import CheckpointError

pytestmark = [pytest.mark.vllm, pytest.mark.train]

NEW_TOKENS = 32  # of each answer to vllm bench serve
EIGHT = {"best_of": 8, "return_candidates": True}
MESSAGES: Any = [{"role": "user", "content": "the film was"}]


@pytest.fixture(scope="module")
async def url(runtime: Runtime) -> AsyncGenerator[str, None]:
    async with on_a_port(runtime, started=True) as url:
        yield url


def ask(client: openai.OpenAI) -> dict[str, Any]:
    """Everything the README promises of the official client; what came back, by name."""
    found: dict[str, Any] = {"models": [model.id for model in client.models.list()]}
    found["model"] = client.models.retrieve("bon@vbon")
    plain: Any = {"prompt": "the film was", "max_tokens": 12, "seed": 7}
    chat: Any = {"messages": MESSAGES, "max_tokens": 12, "seed": 7}
    usage: Any = {"stream": True, "stream_options": {"include_usage": True}}
    extra = {"extra_body": {"best_of": 8, "return_candidates": True}}
    found["bon"] = client.completions.create(model="bon", logprobs=0, **plain, **extra)
    found["bon stream"] = list(client.completions.create(model="bon", **plain, **usage, **extra))
    found["vbon"] = client.completions.create(model="vbon", **plain)
    found["vbon stream"] = list(client.completions.create(model="vbon", **plain, **usage))
    found["chat"] = client.chat.completions.create(model="vbon", logprobs=True, **chat)
    found["chat stream"] = list(client.chat.completions.create(model="vbon", **chat, **usage))
    found["chat bon"] = client.chat.completions.create(model="bon@vbon", **chat, **extra)
    for name, wrong in (
        ("no model", {"model": "gpt-4"}),
        ("no template", {"model": "ref"}),
        ("bad value", {"model": "vbon", "temperature": -1}),
        ("unknown field", {"model": "vbon", "extra_body": {"beam_width": 2}}),
        ("priority", {"model": "vbon", "extra_body": {"priority": 1}}),
    ):
        with pytest.raises(openai.APIStatusError) as refused:
            client.chat.completions.create(**chat, **wrong)
        found[name] = refused.value
    return found


async def test_the_official_client(url: str) -> None:
    def with_client() -> dict[str, Any]:
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            return ask(client)

    found = await asyncio.to_thread(with_client)
    assert {"ref", "vbon", "lora", "bon", "treebon"} <= set(found["models"])
    assert found["model"].id == "bon@vbon"
    bon = found["bon"]
    assert len(bon.vbon["candidates"]) == 8
    assert bon.vbon["reward"] == max(c["reward"] for c in bon.vbon["candidates"])
    assert "".join(bon.choices[0].logprobs.tokens).startswith(bon.choices[0].text)
    assert text_of(found["bon stream"]) == bon.choices[0].text
    assert found["vbon"].vbon["reward"] is None
    assert text_of(found["vbon stream"]) == found["vbon"].choices[0].text
    assert found["vbon stream"][-1].usage == found["vbon"].usage
    assert len(found["vbon stream"]) > 3
    chat = found["chat"]
    assert chat.usage.completion_tokens == len(chat.choices[0].logprobs.content)
    assert text_of(found["chat stream"]) == chat.choices[0].message.content
    assert found["chat bon"].vbon["policy"]["name"] == "vbon"
    errors = {
        "no model": (openai.NotFoundError, "model"),
        "no template": (openai.UnprocessableEntityError, "messages"),
        "bad value": (openai.UnprocessableEntityError, "temperature"),
        "unknown field": (openai.UnprocessableEntityError, "beam_width"),
        "priority": (openai.UnprocessableEntityError, "priority"),
    }
    for name, (kind, field) in errors.items():
        assert isinstance(found[name], kind), name
        assert found[name].param == field, name


class Review(BaseModel):
    """A review whose JSON is short enough for the sandbox's context."""

    mood: Literal["good", "bad"]
    sure: bool


REVIEW = {"type": "function", "function": {"name": "r", "parameters": Review.model_json_schema()}}


async def test_typed_answers_and_tools(url: str, runtime: Runtime) -> None:
    """The sandbox's policy knows no JSON: it is vLLM that keeps every whole candidate to the schema.

    It likes to write white space until the limit of tokens; the modes that rerank choose among whole texts.
    """

    tokenizer: Any = runtime.policies["vbon"].host.tokenizer  # type: ignore[attr-defined]
    blank = [i for i in range(len(tokenizer)) if not tokenizer.decode([i]).strip()]
    no_space = {str(token): -100 for token in blank if token != tokenizer.eos_token_id}

    def with_client(client: openai.OpenAI) -> None:
        asked: Any = {"messages": MESSAGES, "max_tokens": 80, "seed": 7}
        for model in ("vbon", "bon@vbon"):
            schema: Any = {"type": "json_schema",
                           "json_schema": {"name": "r", "schema": Review.model_json_schema()}}  # fmt: skip
            typed = client.chat.completions.create(
                model=model, response_format=schema, n=8, extra_body=EIGHT, **asked
            )
            ends = [choice.finish_reason for choice in typed.choices]
            assert ends.count("stop") > 0
            for choice in typed.choices:
                if choice.finish_reason == "stop":
                    Review.model_validate_json(choice.message.content)
            assert len(typed.vbon["candidates"]) == 8
            if model == "vbon":
                continue
            assert ends == sorted(ends, reverse=True)  # whole ones first
            named: Any = {"type": "function", "function": {"name": "r"}}
            called = client.chat.completions.create(
                model=model, tools=[REVIEW], tool_choice=named, extra_body=EIGHT, **asked
            )
            (call,) = called.choices[0].message.tool_calls
            Review.model_validate_json(call.function.arguments)
            required: Any = {"tools": [REVIEW], "tool_choice": "required", "logit_bias": no_space}
            stream = client.chat.completions.create(
                model=model, stream=True, parallel_tool_calls=False,
                extra_body=EIGHT, **required, **asked,
            )  # fmt: skip
            calls = [c for chunk in stream for c in chunk.choices[0].delta.tool_calls or ()]
            assert [call.function.name for call in calls] == ["r"]
            Review.model_validate_json(calls[0].function.arguments)
        with pytest.raises(openai.UnprocessableEntityError, match="tool-parser"):
            client.chat.completions.create(model="vbon", tools=[REVIEW], **asked)

    def run() -> None:
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            with_client(client)

    await asyncio.to_thread(run)


async def test_vllms_parsers_find_the_policys_calls(runtime: Runtime) -> None:
    engine: Any = runtime.policies["vbon"]
    options = engine.host.options
    written = 'so <tool_call>{"name": "r", "arguments": {"mood": "good"}}</tool_call>'
    try:
        assert not engine.finds_calls
        assert await engine.find_calls(Candidate(0, "x", (5,), "length"), [REVIEW]) is None
        engine.host.options = replace(options, tool_parser="hermes")
        assert engine.finds_calls
        for text, reason in ((written, "length"), (written, "stop"), ("so so", "length")):
            ids = engine.host.tokenizer.encode(text, add_special_tokens=False)
            ids += [engine.host.tokenizer.eos_token_id] if reason == "stop" else []
            found = await engine.find_calls(Candidate(0, text, tuple(ids), reason), [REVIEW])
            if text == written:
                assert found == FoundCalls((FoundCall("r", '{"mood": "good"}'),), "so ")
            else:
                assert found == FoundCalls((), "so so")
        with pytest.raises(
            CheckpointError, match=r"none of vLLM's parsers of tool calls: .*hermes"
        ):
            tool_parser_type("hermies")
    finally:
        engine.host.options = options


def text_of(chunks: list[Any]) -> str:
    pieces = (choice for chunk in chunks for choice in chunk.choices)
    return "".join(
        (piece.delta.content if hasattr(piece, "delta") else piece.text) or "" for piece in pieces
    )


@pytest.mark.parametrize(
    ("backend", "endpoint", "whole"),
    [("openai", "/v1/completions", 2), ("openai-chat", "/v1/chat/completions", 3)],
)
async def test_vllm_bench_serve(
    url: str, sandbox: Path, backend: str, endpoint: str, whole: int
) -> None:
    """Run `vllm bench serve` in this process, because importing it takes longer than it runs.

    Events are counted, because a busy machine changes times but not how an answer is divided. A whole answer
    takes ``whole`` events: a chat's role, the text and the finish reason. So the time to the first token is
    the true one of a reranked answer. vLLM joins tokens that wait to be taken, so a stream's number of events
    varies; one of its five answers in several pieces is enough.
    """
    found = {
        model: await bench_serve(url, sandbox, backend, endpoint, model)
        for model in ("vbon", "bon@vbon")
    }
    for result in found.values():
        assert (result["completed"], result["failed"]) == (5, 0)
        assert result["total_output_tokens"] == 5 * NEW_TOKENS
    events = {model: [1 + len(gaps) for gaps in result["itls"]] for model, result in found.items()}
    assert events["bon@vbon"] == [whole] * 5
    assert max(events["vbon"]) > whole
    assert max(events["vbon"]) <= whole - 1 + NEW_TOKENS


async def bench_serve(
    url: str, sandbox: Path, backend: str, endpoint: str, model: str
) -> dict[str, Any]:
    """The detailed result of `vllm bench serve` with 5 prompts."""
    from vllm.benchmarks.serve import add_cli_args, main_async

    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    arguments = parser.parse_args(
        [
            *("--backend", backend, "--endpoint", endpoint),
            *("--base-url", url.removesuffix("/v1"), "--model", model),
            *("--tokenizer", str(sandbox / "policy"), "--ignore-eos"),
            *("--dataset-name", "custom", "--skip-chat-template"),
            *("--custom-output-len", str(NEW_TOKENS), "--save-detailed"),
            *("--dataset-path", str(sandbox / "prompts" / "heldout.jsonl")),
            *("--num-prompts", "5", "--max-concurrency", "4", "--disable-tqdm"),
        ]
    )
    result: dict[str, Any] = await main_async(arguments)
    return result
