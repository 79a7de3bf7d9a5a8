"""Real HTTP servers with the wire formats of the reward servers that people run.

Requests are checked as strictly, and answers and errors have the same fields, as in the sources of vLLM 0.32
(entrypoints/pooling), OpenRLHF (cli/serve_rm.py), text-embeddings-inference (router/src/http) and Infinity
0.0.78 (fastapi_schemas/pymodels.py).
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.unit.listening import listening
from vbon.prompts import Prompt

MODEL = "org/reward-model"
LONGEST = 200  # characters


def raw_score(text: str) -> float:
    """A score that depends on every character, between -6 and 6."""
    return sum((i + 1) * ord(c) for i, c in enumerate(text)) % 1201 / 100 - 6


def rendered(prompt: Prompt, completion: str) -> str:
    """A chat as the imitated chat template renders it."""
    turns = prompt.messages or ({"role": "user", "content": prompt.text or ""},)
    parts = [f"<{turn['role']}>{turn['content']}" for turn in turns]
    return "".join([*parts, f"<assistant>{completion}"])


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


class RefusedError(Exception):
    """A request that the server refuses."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status)
        self.status, self.body = status, body


def needs(body: dict[str, Any], **types: type) -> None:
    """As pydantic does: 422 if a field is missing or of another type."""
    for name, kind in types.items():
        if not isinstance(body.get(name), kind):
            raise RefusedError(422, {"detail": [{"loc": ["body", name], "msg": "Field required"}]})


@dataclass
class RewardServer:
    """The base of the imitations.

    Attributes:
        outputs: numbers that the model computes for each text.
        sizes: the number of texts of each request that was answered.
    """

    outputs: int = 1
    sizes: list[int] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def routes(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        raise NotImplementedError

    def documents(self) -> dict[str, Any]:
        """What GET answers, by path."""
        return {}

    def row(self, text: str, *, activated: bool) -> list[float]:
        values = [raw_score(text) + i for i in range(self.outputs)]
        return [sigmoid(value) for value in values] if activated else values

    @property
    def app(self) -> Starlette:
        routes = [
            Route(path, self._handler(answer), methods=["POST"])
            for path, answer in self.routes().items()
        ]
        for path, document in self.documents().items():
            routes.append(Route(path, self._document(document), methods=["GET"]))
        return Starlette(routes=routes)

    def _handler(
        self, answer: Callable[[dict[str, Any]], Any]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            body = await request.json()
            try:
                content = answer(body)
            except RefusedError as refusal:
                return JSONResponse(refusal.body, refusal.status)
            self.bodies.append(body)
            return JSONResponse(content)

        return handle

    def _document(self, document: Any) -> Callable[[Request], Awaitable[Response]]:
        async def handle(_: Request) -> Response:
            return JSONResponse(document)

        return handle


@dataclass
class OwnServer(RewardServer):
    """The project's own format."""

    def routes(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        return {"/score": self._score}

    def _score(self, body: dict[str, Any]) -> Any:
        needs(body, prompts=list, completions=list)
        pairs = zip(body["prompts"], body["completions"], strict=True)
        return {"rewards": [raw_score(prompt + completion) for prompt, completion in pairs]}


@dataclass
class OpenRlhfServer(RewardServer):
    """OpenRLHF's serve_rm, which fails with 500 on any other request."""

    def routes(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        return {"/get_reward": self._get_reward}

    def _get_reward(self, body: dict[str, Any]) -> Any:
        if body.get("query") is None:
            raise RefusedError(500, {"detail": "Internal Server Error"})
        rewards = [raw_score(text) for text in body["query"]]
        return {"rewards": rewards, "scores": rewards, "extra_logs": {"dummy_scores": rewards}}


@dataclass
class VllmServer(RewardServer):
    """`vllm serve` with a pooling model.

    Attributes:
        paths: the routes that its kind of model has.
        template: whether its tokenizer has a chat template.
        activates: "asked", "always" or "never".
        by_token: whether /pooling answers a number for every token.
        special: what its tokenizer writes around a text: nothing, or something before and after it.
        begins: whether its chat template writes the first of them.
        shows_tokens: whether it has the route /tokenize.
    """

    paths: tuple[str, ...] = ("classify", "pooling", "score", "rerank")
    template: bool = False
    special: tuple[str, str] = ("", "")
    begins: bool = False
    shows_tokens: bool = True
    activates: str = "asked"
    by_token: bool = False

    def routes(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        known = {
            "classify": self._classify, "pooling": self._pooling, "score": self._score,
            "rerank": self._rerank,
        }  # fmt: skip
        found = {f"/{path}": known[path] for path in self.paths}
        return found | ({"/tokenize": self._tokenize} if self.shows_tokens else {})

    def _chat(self, body: dict[str, Any]) -> str:
        text = "".join(f"<{turn['role']}>{turn['content']}" for turn in body["messages"])
        first, last = self.special
        text = first + text if self.begins else text
        return f"{first}{text}{last}" if body.get("add_special_tokens") else text

    def _tokenize(self, body: dict[str, Any]) -> Any:
        if not self.template:
            raise self._bad(400, "default chat template is no longer allowed")
        tokens = [ord(letter) for letter in self._chat(body)]
        return {"count": len(tokens), "max_model_len": LONGEST, "tokens": tokens}

    def documents(self) -> dict[str, Any]:
        return {"/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model"}]}}

    def _rows(self, body: dict[str, Any], texts: list[str]) -> list[list[float]]:
        if body.get("model") not in (None, MODEL):
            raise self._bad(404, "The model does not exist.", "NotFoundError")
        if any(len(text) > LONGEST for text in texts):
            raise self._bad(400, "the input is longer than the model's maximum context length")
        self.sizes.append(len(texts))
        asked = body.get("use_activation") is not False
        activated = self.activates == "always" or (self.activates == "asked" and asked)
        return [self.row(text, activated=activated) for text in texts]

    def _bad(self, status: int, message: str, kind: str = "BadRequestError") -> RefusedError:
        return RefusedError(status, {"error": {"message": message, "type": kind, "code": status}})

    def _inputs(self, body: dict[str, Any]) -> list[str]:
        if "input" in body:
            return [body["input"]] if isinstance(body["input"], str) else body["input"]
        if not isinstance(body.get("messages"), list):
            raise self._bad(400, "Field required: input or messages")
        if not self.template:
            raise self._bad(400, "default chat template is no longer allowed")
        return [self._chat(body)]

    def _listed(self, elements: list[dict[str, Any]]) -> dict[str, Any]:
        data = [{"index": index, **element} for index, element in enumerate(elements)]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return {
            "id": "x",
            "object": "list",
            "created": 1,
            "model": MODEL,
            "data": data,
            "usage": usage,
        }

    def _classify(self, body: dict[str, Any]) -> Any:
        return self._listed(
            [
                {"label": "LABEL_0", "probs": row, "num_classes": len(row)}
                for row in self._rows(body, self._inputs(body))
            ]
        )

    def _pooling(self, body: dict[str, Any]) -> Any:
        rows = self._rows(body, self._inputs(body))
        data: list[Any] = [[[9.0], [8.0], row] for row in rows] if self.by_token else rows
        return self._listed([{"object": "pooling", "data": value} for value in data])

    def _score(self, body: dict[str, Any]) -> Any:
        needs(body, text_1=list, text_2=list)
        texts = [a + b for a, b in zip(body["text_1"], body["text_2"], strict=True)]
        rows = self._rows(body, texts)
        return self._listed([{"object": "score", "score": row[0]} for row in rows])

    def _rerank(self, body: dict[str, Any]) -> Any:
        needs(body, query=str, documents=list)
        rows = self._rows(body, [body["query"] + text for text in body["documents"]])
        results = [
            {"index": i, "document": {"text": body["documents"][i]}, "relevance_score": row[0]}
            for i, row in enumerate(rows)
        ]
        results.sort(key=lambda result: -result["relevance_score"])
        return {"id": "x", "model": MODEL, "usage": {"total_tokens": 1}, "results": results}


@dataclass
class TeiServer(RewardServer):
    """text-embeddings-inference with a reranker or a classifier."""

    reranks: bool = True

    def routes(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        return {"/rerank": self._rerank, "/predict": self._predict}

    def documents(self) -> dict[str, Any]:
        kind = "reranker" if self.reranks else "classifier"
        return {"/info": {"model_id": MODEL, "model_type": {kind: {}}, "max_client_batch_size": 32}}

    def _check(self, body: dict[str, Any], texts: Any, *, right: bool) -> None:
        if not isinstance(texts, list):
            raise RefusedError(
                422, {"error": "missing field", "error_type": "Unprocessable Entity"}
            )
        if not right:
            raise RefusedError(424, {"error": "model is not of this type", "error_type": "Backend"})
        if len(texts) > 32:
            said = f"batch size {len(texts)} > maximum allowed batch size 32"
            raise RefusedError(422, {"error": said, "error_type": "Validation"})
        self.sizes.append(len(texts))

    def _rerank(self, body: dict[str, Any]) -> Any:
        self._check(
            body, body.get("texts") if isinstance(body.get("query"), str) else None,
            right=self.reranks,
        )  # fmt: skip
        ranks = [
            {"index": i, "score": self._value(body, body["query"] + text)[0]}
            for i, text in enumerate(body["texts"])
        ]
        return sorted(ranks, key=lambda rank: -float(rank["score"]))

    def _predict(self, body: dict[str, Any]) -> Any:
        self._check(body, body.get("inputs"), right=not self.reranks)
        return [
            [
                {"score": value, "label": f"LABEL_{i}"}
                for i, value in enumerate(self._value(body, text))
            ]
            for [text] in body["inputs"]
        ]

    def _value(self, body: dict[str, Any], text: str) -> list[float]:
        return self.row(text, activated=not body.get("raw_scores", False))


@dataclass
class InfinityServer(RewardServer):
    """Infinity with a classifier or a reranker."""

    path: str = "classify"

    def routes(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        return {f"/{self.path}": self._classify if self.path == "classify" else self._rerank}

    def documents(self) -> dict[str, Any]:
        return {"/models": {"object": "list", "data": [{"id": MODEL, "object": "model"}]}}

    def _value(self, body: dict[str, Any], text: str) -> list[float]:
        if body.get("model", "default/not-specified") not in ("default/not-specified", MODEL):
            raise RefusedError(400, {"error": {"message": "model not found"}})
        return self.row(text, activated=not body.get("raw_scores", False))

    def _classify(self, body: dict[str, Any]) -> Any:
        needs(body, input=list)
        self.sizes.append(len(body["input"]))
        data = [
            [
                {"score": value, "label": f"LABEL_{i}"}
                for i, value in enumerate(self._value(body, text))
            ]
            for text in body["input"]
        ]
        return {"object": "classify", "data": data, "model": MODEL, "id": "x", "created": 1}

    def _rerank(self, body: dict[str, Any]) -> Any:
        needs(body, query=str, documents=list)
        self.sizes.append(len(body["documents"]))
        results = [
            {"relevance_score": self._value(body, body["query"] + text)[0], "index": i}
            for i, text in enumerate(body["documents"])
        ]
        results.sort(key=lambda result: -result["relevance_score"])
        return {"object": "rerank", "results": results, "model": MODEL, "id": "x", "created": 1}


@asynccontextmanager
async def serving(server: RewardServer) -> AsyncGenerator[RewardServer, None]:
    """The server on a free port of this machine."""
    config = uvicorn.Config(
        server.app, port=0, lifespan="off", log_config=None, access_log=False, log_level="warning"
    )
    async with listening(config) as (_, port):
        server.url = f"http://127.0.0.1:{port}"
        yield server
