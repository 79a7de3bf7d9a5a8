"""A client for one OpenAI-compatible server, which translates every failure into a few kinds."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from vbon.engine.affinity import Placement
from vbon.engine.remote.wire import ModelCard, error_text, read_models
from vbon.errors import CheckpointError, InvalidInputError
from vbon.http.body import WireError, check_uncompressed, read_body, too_long
from vbon.http.transport import AiohttpTransport
from vbon.trace_context import trace_headers

Kind = Literal["down", "busy", "wrong"]

# uvicorn closes connections that were idle for 5 s, so only younger ones are reused.
_KEEP_IDLE_S = 2.0
# Size limits in bytes. An answer may have a log-probability of about 100 bytes for each of half a million
# prompt tokens, and an event has a few tokens. Of an error answer only the beginning is quoted.
_MAX_ANSWER_BYTES, _MAX_EVENT_BYTES, _MAX_PROBE_BYTES, _MAX_REFUSAL_BYTES = (
    2**26,
    2**22,
    2**22,
    2**16,
)


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """Options of the connection to the servers of a policy.

    Attributes:
        api_key: sent as a bearer token; never shown in messages or logs.
        tokenizer: directory of the policy's tokenizer; ``None`` uses the servers' ``/tokenize``.
        max_model_len: length of the context in tokens if the server does not report it; otherwise an
            upper limit.
        max_num_seqs: maximum number of requests in flight per server; others wait.
        connect_timeout_s: limit for opening a connection; a probe may take twice as long.
        request_timeout_s: limit for one candidate, or between two pieces of a stream.
        start_timeout_s: limit of the wait for the first server at the start.
        backoff_s: pause before a failed server is probed; it doubles up to ``max_backoff_s``.
        trust_remote_code: whether the tokenizer may run its own code.
        metrics: whether to read the servers' ``/metrics``.
        metrics_timeout_s: limit for reading a server's ``/metrics``.
        encode_timeout_s: limit for ``tokenizer`` and its chat template on one prompt.
        by_priority: whether the servers schedule by priority. This must be configured, because servers
            do not report it and ignore a priority silently.
        sampled_logprobs: whether the servers send log-probabilities of the distribution sampled (``vllm serve
            --logprobs-mode processed_logprobs``), which they do not report either.
        placement: the choice of a server for each candidate (see :mod:`vbon.engine.affinity`).
        continuations: how often a streamed sample may go on at another server after one has died.
    """

    api_key: str | None = field(default=None, repr=False)
    tokenizer: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 256
    connect_timeout_s: float = 5.0
    request_timeout_s: float = 120.0
    start_timeout_s: float = 600.0
    backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    trust_remote_code: bool = False
    by_priority: bool = False
    sampled_logprobs: bool = False
    metrics: bool = True
    metrics_timeout_s: float = 1.0
    encode_timeout_s: float = 5.0
    placement: Placement = "prefix"
    continuations: int = 1


def is_remote(policy: str) -> bool:
    """True if a policy is served elsewhere: a URL, or several separated by commas or spaces."""
    return policy.startswith(("http://", "https://"))


def parse_address(policy: str) -> tuple[tuple[str, ...], str | None]:
    """Base URLs without a trailing slash, and the model's name if one is given (``URL#name``).

    Raises:
        CheckpointError: a part is not a URL, the URLs name different models, or a URL contains secrets.
    """
    urls, models = [], set()
    for part in policy.replace(",", " ").split():
        try:
            parts = urlsplit(part)
            port = parts.port
        except ValueError:  # its message, like the URL, may contain a password
            raise CheckpointError("a policy URL has a bad port or host") from None
        # URLs are shown in answers and logs, so they must not contain secrets. This message does not repeat
        # the URL for the same reason.
        if "@" in parts.netloc or parts.query:
            raise CheckpointError(
                "a policy URL must not contain a user, password or query; the API key is read from the "
                "environment variable that engine.remote_api_key_env names"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise CheckpointError(f"{part!r} is not a URL like http://host:8000/v1#model-name")
        url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"
        if url in urls:
            raise CheckpointError(f"{url} is given twice")
        urls.append(url)
        models |= {parts.fragment} if parts.fragment else set()
    if not urls or len(models) > 1:
        raise CheckpointError(
            f"the URLs of a policy name different models: {', '.join(sorted(models))}"
        )
    return tuple(urls), next(iter(models), None)


class ReplicaError(Exception):
    """A request failed at one server.

    Attributes:
        kind: after ``down``, the server gets no requests for a while; after ``busy`` it does; after
            ``wrong`` (an unusable answer) it gets none only if another server takes requests.
        again: whether the request may be retried at another server.
        retry_after_s: seconds after which an overloaded server may be asked again; ``None`` for other
            failures.
        log_text: the message for everybody else, without what the server said, which may repeat a prompt.
    """

    def __init__(
        self,
        message: str,
        kind: Kind,
        *,
        again: bool,
        retry_after_s: float | None = None,
        log_text: str | None = None,
    ) -> None:
        super().__init__(message)
        self.kind, self.again, self.retry_after_s = kind, again, retry_after_s
        self.log_text = log_text or message


class Replica:
    """One server of a policy.

    Attributes:
        url: base URL of the API, shown to users.
        owner: the kind of server, as its models' ``owned_by`` names it.
        trouble: the reason for which it gets no requests; empty while it gets them.
        in_flight: number of requests sent or waiting to be sent.
        served: number of requests answered.
        failures: number of failures since the last answer.
    """

    def __init__(self, url: str, options: RemoteOptions) -> None:
        self.url = url
        self.owner = ""
        self.trouble = "not asked yet"
        self.in_flight = self.served = self.failures = 0
        self.recovery: asyncio.Task[None] | None = None
        self._root = url.removesuffix("/v1")
        self._options = options
        self._slots = asyncio.Semaphore(options.max_num_seqs)
        key = options.api_key
        # The slots limit the requests in flight; probes are not limited, so they never wait behind requests.
        self._connections = AiohttpTransport(url, keep_idle_s=_KEEP_IDLE_S)
        self._client = httpx.AsyncClient(
            # Ask for uncompressed answers: a few compressed bytes could expand to more than memory holds.
            headers={"accept-encoding": "identity"}
            | ({"authorization": f"Bearer {key}"} if key else {}),
            timeout=httpx.Timeout(None, connect=options.connect_timeout_s),
            transport=self._connections,
        )

    async def close(self) -> None:
        """Close the connections and stop probing."""
        if self.recovery is not None:
            self.recovery.cancel()
            await asyncio.gather(self.recovery, return_exceptions=True)
        await self._client.aclose()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for one of the places for requests in flight, and occupy it."""
        self.in_flight += 1
        try:
            async with self._slots:
                if self.trouble:
                    raise ReplicaError(f"{self.url}: {self.trouble}", "down", again=True)
                yield
        finally:
            self.in_flight -= 1

    async def ask(self, path: str, body: dict[str, Any], *, root: bool = False) -> Any:
        """Send a POST request and return the JSON of the answer.

        Raises:
            ReplicaError: the server failed, sent an unusable answer, or exceeded the time limit.
            InvalidInputError: the server rejects the request as invalid.
        """
        async with self._answer(path, body, root=root) as (response, _):
            content = await read_body(response, _MAX_ANSWER_BYTES)
        return self._json(content)

    async def follow(self, path: str, body: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """Send a POST request and yield the JSON of each server-sent event until ``[DONE]`` or the end.

        It raises the same errors as :meth:`ask`; the time limit holds between two events.
        """
        async with self._answer(path, body) as (response, limit):
            check_uncompressed(response)
            rest = b""
            # httpx's own line splitting also splits at characters such as U+2028, which JSON may contain.
            async for piece in response.aiter_bytes():
                *lines, rest = (rest + piece).split(b"\n")
                if len(rest) > _MAX_EVENT_BYTES:
                    raise too_long(_MAX_EVENT_BYTES)
                for line in lines:
                    if not line.startswith(b"data:"):
                        continue  # an empty line, or a comment that keeps the connection open
                    data = line.removeprefix(b"data:").strip()
                    if data == b"[DONE]":
                        return
                    limit.reschedule(now() + self._options.request_timeout_s)
                    yield self._json(data)
            if rest.strip():
                raise ReplicaError(f"{self.url} cut its last event short", "wrong", again=False)

    @asynccontextmanager
    async def _answer(
        self, path: str, body: dict[str, Any], *, root: bool = False
    ) -> AsyncIterator[tuple[httpx.Response, asyncio.Timeout]]:
        """Send a POST request; give the response with status 200, its body unread, and the time limit."""
        begun = False
        seconds = self._options.request_timeout_s
        url = (self._root if root else self.url) + path
        try:
            async with (
                asyncio.timeout(seconds) as limit,
                self._client.stream(
                    "POST", url, json=body, headers=trace_headers.get()
                ) as response,
            ):
                if response.status_code != 200:
                    raise self._refusal(response, await _beginning(response), path)
                begun = True
                yield response, limit
        except WireError as error:
            raise ReplicaError(f"{self.url} {error}", "wrong", again=False) from error
        except TimeoutError as error:
            raise ReplicaError(
                f"{self.url} gave no answer within {seconds:g} s", "down", again=not begun
            ) from error
        except httpx.HTTPError as error:
            what = "cut its answer short" if begun else "failed"
            raise ReplicaError(
                f"{self.url} {what}: {_why(error)}", "down", again=not begun
            ) from error

    def _refusal(
        self, response: httpx.Response, content: bytes, path: str
    ) -> ReplicaError | InvalidInputError:
        status = response.status_code
        try:
            said = error_text(json.loads(content))
        except (ValueError, RecursionError):
            said = content[:300].decode("utf-8", "replace")
        if self._options.api_key:
            said = said.replace(self._options.api_key, "***")
        told = f"{self.url} answered {path} with HTTP {status}"
        message = f"{told}: {said}"
        if status in (400, 422):
            return InvalidInputError(message, field="sampling")
        if status in (429, 503):
            seconds = _retry_after(response.headers.get("retry-after"))
            kind: Kind = "busy" if status == 429 else "down"
            return ReplicaError(message, kind, again=True, retry_after_s=seconds, log_text=told)
        if status in (401, 403):
            message = told = (
                f"{self.url} answered {path} with HTTP {status}: it rejects our API key; set the "
                "environment variable that engine.remote_api_key_env names"
            )
        kind = "down" if status >= 500 else "wrong"
        return ReplicaError(message, kind, again=True, log_text=told)

    def _json(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:  # RecursionError: nested too deep
            raise ReplicaError(
                f"{self.url} sent an answer that is not JSON: {content[:80]!r}",
                "wrong",
                again=False,
                log_text=f"{self.url} sent an answer that is not JSON",
            ) from error

    async def text(self, path: str, *, seconds: float, max_bytes: int) -> str:
        """Send a GET request for optional information and return the text of the answer.

        Raises:
            ReplicaError: the server failed, or the answer took too long or is too large.
        """
        try:
            async with (
                asyncio.timeout(seconds),
                self._client.stream("GET", f"{self._root}{path}") as response,
            ):
                if response.status_code != 200:
                    raise ReplicaError(f"HTTP {response.status_code}", "wrong", again=True)
                content = await read_body(response, max_bytes)
        except WireError as error:
            raise ReplicaError(str(error), "wrong", again=True) from error
        except TimeoutError as error:
            raise ReplicaError(f"no answer within {seconds:g} s", "busy", again=True) from error
        except httpx.HTTPError as error:
            raise ReplicaError(_why(error), "down", again=True) from error
        return content.decode("utf-8", "replace")

    async def models(self) -> dict[str, ModelCard]:
        """Probe the server: check its health, then read the names and context lengths of its models.

        Raises:
            ReplicaError: ``down`` if the server cannot be reached or is unhealthy, ``wrong`` if its answer
                is unusable.
        """
        seconds = 2 * self._options.connect_timeout_s
        try:
            async with asyncio.timeout(seconds):
                async with self._client.stream("GET", f"{self._root}/health") as health:
                    # Only some servers, such as vLLM, have /health; for the others, /models decides.
                    if health.status_code >= 500:
                        raise self._refusal(health, await _beginning(health), "/health")
                    await _beginning(health)  # so that the connection can be reused
                async with self._client.stream("GET", f"{self.url}/models") as answer:
                    if answer.status_code != 200:
                        raise self._refusal(answer, await _beginning(answer), "/models")
                    content = await read_body(answer, _MAX_PROBE_BYTES)
            return read_models(self._json(content))
        except (WireError, InvalidInputError) as error:
            said = str(error) if isinstance(error, InvalidInputError) else f"{self.url} {error}"
            raise ReplicaError(said, "wrong", again=True) from error
        except TimeoutError as error:
            raise ReplicaError(
                f"{self.url} did not answer a probe within {seconds:g} s", "down", again=True
            ) from error
        except httpx.HTTPError as error:
            raise ReplicaError(f"{self.url} failed: {_why(error)}", "down", again=True) from error


async def _beginning(response: httpx.Response) -> bytes:
    """The beginning of a response's body, which is quoted in an error."""
    try:
        check_uncompressed(response)
    except WireError as error:
        return str(error).encode()
    content = b""
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > _MAX_REFUSAL_BYTES:
            break
    return content[:_MAX_REFUSAL_BYTES]


def _retry_after(header: str | None) -> float:
    """The seconds of a Retry-After header; 1 if it is missing or not a number of seconds."""
    try:
        seconds = float(header or "")
    except ValueError:
        return 1.0
    return min(max(seconds, 0.0), 3600.0) if math.isfinite(seconds) else 1.0


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def now() -> float:
    """The time of the event loop's clock in seconds."""
    return asyncio.get_running_loop().time()
