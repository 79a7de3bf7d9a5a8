"""An imitation of `vllm serve` without a model: a real HTTP server, deterministic by seed.

Formats, defaults and errors are those of vLLM 0.32's /v1/completions, /v1/models, /tokenize,
/detokenize and /health. ``faults`` breaks one thing at a time.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import socket
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.unit.listening import listening
from vbon.engine.fake import fake_top_logprobs
from vbon.engine.fake_json import random_instance
from vbon.errors import InvalidInputError

WORDS = ("good", "bad", "dull", "superb", "odd", "warm\u2028cold", "café", "sharp")
EOS, FIRST_CHARACTER = 9, 100
CACHE_BLOCK = 16  # of vLLM's prefix cache on a GPU


def text_of(token_ids: Sequence[int], *, special: bool = False) -> str:
    def one(token: int) -> str:
        if token == EOS:
            return "<eos>" if special else ""
        return f" {WORDS[token]}" if token < len(WORDS) else chr(token - FIRST_CHARACTER)

    return "".join(one(token) for token in token_ids)


def logprob(before: Sequence[int], token: int) -> float:
    return -2.0 - random.Random(f"{list(before)}{token}").random()


def word(source: random.Random, body: dict[str, Any], before: Sequence[int]) -> int:
    """The next word: all have the same logit, to which biases and penalties are added."""
    bias = {int(token): value for token, value in (body.get("logit_bias") or {}).items()}
    frequency, presence = body.get("frequency_penalty", 0), body.get("presence_penalty", 0)
    if not bias and not frequency and not presence:
        return source.randrange(len(WORDS))
    logits = [
        bias.get(token, 0.0) - frequency * before.count(token) - presence * (token in before)
        for token in range(len(WORDS))
    ]
    if body["temperature"] == 0:
        return max(range(len(WORDS)), key=lambda token: logits[token])
    weights = [math.exp((logit - max(logits)) / body["temperature"]) for logit in logits]
    return source.choices(range(len(WORDS)), weights)[0]


def sampled(
    prompt: list[int], body: dict[str, Any], ignored: Collection[str] = ()
) -> tuple[list[int], str, Any]:
    """Token ids, finish and stop reason of one sequence; the body's ``ignored`` fields have no effect."""
    body = {name: value for name, value in body.items() if name not in ignored}
    greedy = body["temperature"] == 0
    seed = body.get("seed")
    source = (
        random.Random(f"{prompt}{None if greedy else seed}")
        if greedy or seed is not None
        else random.Random()
    )
    ids: list[int] = []
    if (wanted := body.get("response_format")) is not None:
        schema = {"type": "object"}
        if wanted["type"] == "json_schema":
            schema = wanted["json_schema"]["schema"]
        text = json.dumps(random_instance(schema, source))
        ids = [FIRST_CHARACTER + ord(character) for character in text]
        if len(ids) < body["max_tokens"]:
            return [*ids, EOS], "stop", None
        return ids[: body["max_tokens"]], "length", None
    biases = (body.get("logit_bias") or {}).values()
    least, ending = body.get("min_tokens", 0), body.get("stop_token_ids") or []
    for _ in range(body["max_tokens"]):
        ended = (
            source.random() < 0.1
            and len(ids) > 2
            and len(ids) >= least
            and max(biases, default=0) < 50
        )
        ids.append(EOS if ended else word(source, body, ids))
        if ids[-1] == EOS and not body.get("ignore_eos"):
            return ids, "stop", None
        if ids[-1] in ending and len(ids) > least:
            return ids, "stop", ids[-1]
        for stop in body.get("stop") or []:
            if stop in text_of(ids):
                return ids, "stop", stop
    return ids, "length", None


@dataclass
class Server:
    """One running imitation.

    Attributes:
        faults: what to do wrong; see the handlers.
        ignored: fields of a request that have no effect.
        aborted: requests whose client went away before they were answered.
        computed: prompt tokens that the prefix cache did not have.
    """

    model: str = "org/policy"
    owner: str = "vllm"
    max_model_len: int = 256
    seconds_per_token: float = 0.0
    api_key: str | None = None
    with_token_ids: bool = True
    faults: set[str] = field(default_factory=set)
    ignored: set[str] = field(default_factory=set)
    retry_after: str = "7"
    healthy: bool = True
    bodies: list[dict[str, Any]] = field(default_factory=list)
    traceparents: list[str | None] = field(default_factory=list)
    running: int = 0
    peak: int = 0
    aborted: int = 0
    probes: int = 0
    scrapes: int = 0
    metrics_text: str | None = None
    computed: int = 0
    cached: set[int] = field(default_factory=set)
    port: int = 0
    uvicorn: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def connections(self) -> int:
        return len(self.uvicorn.server_state.connections)

    def cut(self) -> None:
        """Abort every connection, as if the server's process was killed."""
        for connection in list(self.uvicorn.server_state.connections):
            connection.transport.abort()

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", self.health),
                Route("/metrics", self.metrics),
                Route("/v1/models", self.models),
                Route("/v1/completions", self.completions, methods=["POST"]),
                Route("/tokenize", self.tokenize, methods=["POST"]),
                Route("/detokenize", self.detokenize, methods=["POST"]),
            ]
        )

    async def health(self, request: Request) -> Response:
        self.probes += 1
        return Response(status_code=200 if self.healthy else 503)

    async def metrics(self, _: Request) -> Response:
        self.scrapes += 1
        if "silent-metrics" in self.faults:
            await asyncio.sleep(30)
        if self.metrics_text is None:
            return error(404, "Not Found")
        return Response(self.metrics_text, media_type="text/plain")

    def refused(self, request: Request, model: str | None = None) -> Response | None:
        given = request.headers.get("authorization")
        guarded = self.api_key and request.url.path.startswith("/v1")
        if guarded and given != f"Bearer {self.api_key}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        if model is not None and model != self.model:
            return error(404, f"The model `{model}` does not exist.")
        return None

    async def models(self, request: Request) -> Response:
        card: dict[str, Any] = {"id": self.model, "object": "model", "root": "/models/policy"}
        card["owned_by"] = self.owner
        if "lora" in self.faults:
            card["parent"] = "org/base"
        if "no-context-length" not in self.faults:
            card["max_model_len"] = self.max_model_len
        return self.refused(request) or JSONResponse({"object": "list", "data": [card]})

    async def tokenize(self, request: Request) -> Response:
        body = await request.json()
        if "no-tokenizer" in self.faults:
            return JSONResponse({"detail": "Not Found"}, 404)
        if "messages" in body:
            return error(
                400,
                "As of transformers v4.44, default chat template is no longer allowed, so you must "
                "provide a chat template if the tokenizer does not define one.",
            )
        ids = [FIRST_CHARACTER + ord(c) for c in body["prompt"]]
        answer = {"count": len(ids), "max_model_len": self.max_model_len, "tokens": ids}
        return self.refused(request, body["model"]) or JSONResponse(answer)

    async def detokenize(self, request: Request) -> Response:
        body = await request.json()
        return JSONResponse({"prompt": text_of(body["tokens"], special=True)})

    async def completions(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.traceparents.append(request.headers.get("traceparent"))
        if (no := self.refused(request, body["model"])) is not None:
            return no
        for status in ("429", "500", "503"):
            if status in self.faults:
                headers = {"retry-after": self.retry_after} if status != "500" else {}
                return error(int(status), "no room", headers)
        if "echoes" in self.faults:
            return error(500, "cannot decode 'the secret prompt'")
        if "echoes-200" in self.faults:
            return JSONResponse({"error": {"message": "cannot decode 'the secret prompt'"}})
        if "echoes-text" in self.faults:
            return Response("the secret prompt is no JSON")
        prompt = body["prompt"]
        if len(prompt) + body["max_tokens"] > self.max_model_len:
            return error(400, "This model's maximum context length is 256 tokens.")
        if (refusal := unusable(body)) is not None:
            return error(400, refusal)
        self.prefill(prompt)
        if body.get("stream"):
            return StreamingResponse(self.events(body), media_type="text/event-stream")
        deciding = asyncio.create_task(self.answer(body))
        leaving = asyncio.create_task(disconnected(request))
        try:
            await asyncio.wait({deciding, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not deciding.done():
                return Response()
            return deciding.result()
        finally:
            deciding.cancel()
            leaving.cancel()

    def prefill(self, prompt: list[int]) -> None:
        """Compute a prompt as vLLM does: whole blocks are found again, but never the last token."""
        ends = range(CACHE_BLOCK, len(prompt) + 1, CACHE_BLOCK)
        blocks = [hash(tuple(prompt[:end])) for end in ends]
        hits = 0
        while hits < len(blocks) and blocks[hits] in self.cached:
            hits += 1
        self.computed += len(prompt) - min(hits, (len(prompt) - 1) // CACHE_BLOCK) * CACHE_BLOCK
        self.cached.update(blocks)

    async def answer(self, body: dict[str, Any]) -> Response:
        ids, finish, stop = sampled(body["prompt"], body, self.ignored)
        await self.decoding(len(ids))
        choice = self.choice(body, ids, 0, visible(ids, stop))
        choice |= {"finish_reason": finish, "stop_reason": stop}
        if "prompt_logprobs" in body and "no-prompt-logprobs" not in self.faults:
            prompt = body["prompt"]
            choice["prompt_logprobs"] = [None] + [
                {str(t): {"logprob": logprob(prompt[:i], t), "rank": 1, "decoded_token": "x"}}
                for i, t in enumerate(prompt)
                if i
            ]
        count = len(ids) + ("miscount" in self.faults)
        payload: Any = {
            "id": "cmpl-1",
            "object": "text_completion",
            "model": self.model,
            "choices": [choice],
            "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": count},
        }
        spoil(payload, self.faults)
        content = json.dumps(payload, ensure_ascii=False).encode()
        if "html" in self.faults:
            content = b"<html>gateway</html>"
        if "json-cut" in self.faults:
            content = content[: len(content) // 2]
        if "body-cut" in self.faults:
            return Response(content[:-20], headers={"content-length": str(len(content))})
        return Response(content, media_type="application/json")

    async def decoding(self, tokens: int) -> None:
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await asyncio.sleep(1e6 if "hang" in self.faults else tokens * self.seconds_per_token)
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        finally:
            self.running -= 1

    async def events(self, body: dict[str, Any]) -> AsyncGenerator[str, None]:
        ids, finish, stop = sampled(body["prompt"], body, self.ignored)
        whole = visible(ids, stop)
        shown = 0
        yield ": keep-alive\n\n"
        for i in range(len(ids)):
            await self.decoding(1)
            last = i == len(ids) - 1
            # As vLLM: what may yet become a stop string is held back.
            held = max((len(s) for s in body.get("stop") or []), default=1) - 1
            upto = (
                len(whole) if last else min(len(whole), max(0, len(text_of(ids[: i + 1])) - held))
            )
            choice = self.choice(body, ids[i : i + 1], i, whole[shown:upto], ids[:i])
            choice |= {
                "finish_reason": finish if last else None,
                "stop_reason": stop if last else None,
            }
            shown = max(shown, upto)
            if i == 2 and "stream-error" in self.faults:
                yield 'data: {"error": {"message": "EngineCore died", "code": 500}}\n\n'
                break
            if i == 2 and "stream-garbage" in self.faults:
                yield "data: {oops\n\n"
            if i == 2 and "stream-ends" in self.faults:
                return
            if i == 2 and "stream-cut" in self.faults:
                raise ConnectionError("cut")
            yield data({"choices": [choice]})
        count = len(ids) + ("miscount" in self.faults)
        yield data({"choices": [], "usage": {"completion_tokens": count}})
        yield "data: [DONE]\n\n"

    def choice(
        self,
        body: dict[str, Any],
        ids: list[int],
        start: int,
        text: str,
        before: Sequence[int] = (),
    ) -> dict[str, Any]:
        prefix = [*body["prompt"], *before]
        logprobs: dict[str, Any] = {
            "token_logprobs": [logprob(prefix + ids[:i], t) for i, t in enumerate(ids)],
            "tokens": [f"token_id:{t}" if self.with_token_ids else "w" for t in ids],
        }
        if body.get("logprobs", 0) > 1:
            tops = [
                fake_top_logprobs(f"{prefix}{ids[:i]}", body["logprobs"]) for i in range(len(ids))
            ]
            logprobs["top_logprobs"] = [
                {f"token_id:{place}": value for place, value in enumerate(top)} for top in tops
            ]
        found: dict[str, Any] = {"index": 0, "text": text, "logprobs": logprobs}
        if body.get("return_token_ids") and self.with_token_ids:
            found["token_ids"] = ids
        return found


def unusable(body: dict[str, Any]) -> str | None:
    """The reason why vLLM would reject the body's ids or its schema."""
    ids = [*map(int, body.get("logit_bias") or {}), *(body.get("stop_token_ids") or [])]
    if any(token >= FIRST_CHARACTER + 0x110000 for token in ids):
        return "token_id(s) in logit_bias or stop_token_ids contain out-of-vocab token ids"
    wanted = body.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        try:
            random_instance(wanted["json_schema"]["schema"], random.Random(0))
        except InvalidInputError as wrong:
            return f"Failed to transform json schema into a grammar: {wrong}"
    return None


def visible(ids: list[int], stop: str | int | None) -> str:
    if isinstance(stop, int):
        return text_of(ids[:-1])
    text = text_of(ids)
    return text if stop is None else text[: text.index(stop)]


def spoil(payload: dict[str, Any], faults: set[str]) -> None:
    choice = payload["choices"][0]
    if "no-choices" in faults:
        del payload["choices"]
    if "two-choices" in faults:
        payload["choices"] *= 2
    if "no-logprobs" in faults:
        choice["logprobs"] = None
    if "null-logprob" in faults:
        choice["logprobs"]["token_logprobs"][-1] = None
    if "nan-logprob" in faults:
        choice["logprobs"]["token_logprobs"][-1] = float("nan")
    if "lost-id" in faults:
        choice["token_ids"] = choice["token_ids"][:-1]
    if "aborted" in faults:
        choice["finish_reason"] = "abort"
    if "unfinished" in faults:
        choice["finish_reason"] = None
    if "short" in faults:
        choice["finish_reason"] = "length"
        choice["token_ids"] = choice["token_ids"][:1]
        choice["logprobs"]["token_logprobs"] = choice["logprobs"]["token_logprobs"][:1]
        payload["usage"]["completion_tokens"] = 1


def data(payload: dict[str, Any]) -> str:
    # Raw non-ASCII, as pydantic writes it.
    return f"data: {json.dumps(payload, ensure_ascii=False)}\n\n"


def error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"message": message, "code": status}}, status, headers)


async def disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def imitation(port: int = 0, **settings: Any) -> AsyncGenerator[Server, None]:
    """A running server on a free port, or on that one."""
    server = Server(**settings)
    config = uvicorn.Config(
        server.app(), port=port, log_level="critical", access_log=False, lifespan="off"
    )
    config.timeout_graceful_shutdown = 0  # what still decodes is cancelled
    async with listening(config) as (server.uvicorn, server.port):
        try:
            yield server
        finally:
            server.cut()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
