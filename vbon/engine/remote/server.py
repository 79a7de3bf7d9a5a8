"""One OpenAI-compatible server: what it is asked, and each way in which that can fail."""

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

from vbon.engine.remote.wire import error_text, read_models
from vbon.errors import CheckpointError, InvalidInputError
from vbon.http.body import WireError, _check_plain, _too_long, read_body
from vbon.http.transport import AiohttpTransport
from vbon.trace_context import trace_headers

Kind = Literal["down", "busy", "wrong"]

# Servers under uvicorn close a connection that idled for 5 s; one we might reuse must be younger.
_KEEP_IDLE_S = 2.0
# Of an answer: half a million tokens of prompt with a log-probability each, at some 100 bytes. Of an event,
# which is some tokens, and of what a probe asks. Of a refusal, the beginning tells enough.
_MOST_BYTES, _MOST_OF_EVENT, _MOST_OF_PROBE, _MOST_OF_REFUSAL = 2**26, 2**22, 2**22, 2**16


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """How to talk to the servers of a policy.

    Attributes:
        api_key: sent as a bearer token; in no message and no log.
        tokenizer: directory of the policy's tokenizer; ``None`` asks the servers' ``/tokenize``.
        max_model_len: context in tokens where the server does not tell, else an upper limit.
        max_num_seqs: requests in flight at once per server; more wait here.
        connect_timeout_s: to open a connection, and half of what a probe may take.
        request_timeout_s: for one candidate, or between two pieces of a stream.
        start_timeout_s: how long the start waits for the first server.
        backoff_s: how long a server that failed is first left out; doubles up to ``max_backoff_s``.
        trust_remote_code: let the tokenizer bring its own code.
        metrics: whether to read the servers' ``/metrics``.
        metrics_timeout_s: for that.
        by_priority: the servers schedule by priority. They do not tell, and one that does not is
            silent about a priority it ignores, so this must be configured.
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
    metrics: bool = True
    metrics_timeout_s: float = 1.0


def is_remote(policy: str) -> bool:
    """Whether a policy is served elsewhere: a URL, or several separated by commas or spaces."""
    return policy.startswith(("http://", "https://"))


def parse_address(policy: str) -> tuple[tuple[str, ...], str | None]:
    """Base URLs, no slash at the end, and the model's name if one is given (``URL#name``).

    Raises:
        CheckpointError: not URLs, or URLs that disagree or carry secrets.
    """
    urls, models = [], set()
    for part in policy.replace(",", " ").split():
        try:
            parts = urlsplit(part)
            port = parts.port
        except ValueError:  # whose text may hold a part of a password, as the URL may
            raise CheckpointError("a policy URL with a bad port or host") from None
        # The URL is shown in answers and logs, so it may hold no secret; nor is it repeated here.
        if "@" in parts.netloc or parts.query:
            raise CheckpointError(
                "a policy URL holds no user, password or query; the API key comes from the "
                "environment variable that engine.remote_api_key_env names"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise CheckpointError(f"{part!r} is not a URL like http://host:8000/v1#model-name")
        url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"
        if url in urls:
            raise CheckpointError(f"{url} is named twice")
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
        kind: ``down`` leaves the server out for a while; ``busy`` does not; ``wrong`` (an answer
            that cannot be used) does only while another can take its place.
        again: whether another server may be asked: nothing of the answer had come.
        retry_after_s: when an overloaded server wants to be asked again; ``None`` for other failures.
    """

    def __init__(
        self,
        message: str,
        kind: Kind,
        *,
        again: bool,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind, self.again, self.retry_after_s = kind, again, retry_after_s


class Replica:
    """One server.

    Attributes:
        url: base of the API, shown to people.
        trouble: why it takes no requests; empty while it does.
        in_flight: requests sent or waiting to be sent.
        served: requests answered.
        failures: in a row, without an answer between them.
    """

    def __init__(self, url: str, options: RemoteOptions) -> None:
        self.url = url
        self.trouble = "not asked yet"
        self.in_flight = self.served = self.failures = 0
        self.recovery: asyncio.Task[None] | None = None
        self._root = url.removesuffix("/v1")
        self._options = options
        self._slots = asyncio.Semaphore(options.max_num_seqs)
        key = options.api_key
        # As many as there are slots, and a few for probes, which must not wait behind what they are to
        # find out about.
        self._connections = AiohttpTransport(url, keep_idle_s=_KEEP_IDLE_S)
        self._client = httpx.AsyncClient(
            # Not compressed: a few bytes could become more than there is memory for.
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
        """A place among the requests in flight."""
        self.in_flight += 1
        try:
            async with self._slots:
                if self.trouble:
                    raise ReplicaError(f"{self.url}: {self.trouble}", "down", again=True)
                yield
        finally:
            self.in_flight -= 1

    async def ask(self, path: str, body: dict[str, Any], *, root: bool = False) -> Any:
        """The JSON that a POST answers.

        Raises:
            ReplicaError: no such answer came, within the time limit or at all.
            InvalidInputError: the server refuses the request as wrong.
        """
        async with self._answer(path, body, root=root) as (response, _):
            content = await read_body(response, _MOST_BYTES)
        return self._json(content)

    async def follow(self, path: str, body: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """The JSON events that a POST answers as server-sent events, up to ``[DONE]`` or the end.

        Raises:
            As :meth:`ask`; the time limit holds between two events.
        """
        async with self._answer(path, body) as (response, limit):
            _check_plain(response)
            rest = b""
            # Not by httpx's lines: those also end at U+2028 and the like, which JSON may contain.
            async for piece in response.aiter_bytes():
                *lines, rest = (rest + piece).split(b"\n")
                if len(rest) > _MOST_OF_EVENT:
                    raise _too_long(_MOST_OF_EVENT)
                for line in lines:
                    if not line.startswith(b"data:"):
                        continue  # a comment that keeps the connection open, or an empty line
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
        """An answer with status 200 whose body is still to be read, and its time limit."""
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
        message = f"{self.url} answered {path} with HTTP {status}: {said}"
        if status in (400, 422):
            return InvalidInputError(message, field="sampling")
        if status in (429, 503):
            seconds = _retry_after(response.headers.get("retry-after"))
            kind: Kind = "busy" if status == 429 else "down"
            return ReplicaError(message, kind, again=True, retry_after_s=seconds)
        if status in (401, 403):
            message = (
                f"{self.url} answered {path} with HTTP {status}: it does not take our API key; set "
                "the environment variable that engine.remote_api_key_env names"
            )
        return ReplicaError(message, "down" if status >= 500 else "wrong", again=True)

    def _json(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:  # the latter for what is nested too deep
            raise ReplicaError(
                f"{self.url} answered what is not JSON: {content[:80]!r}", "wrong", again=False
            ) from error

    async def text(self, path: str, *, seconds: float, max_bytes: int) -> str:
        """What a GET of a path beside the API answers; for what the service can do without.

        Raises:
            ReplicaError: no such answer within the time, or one that is too long.
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

    async def models(self) -> dict[str, int | None]:
        """What it serves, once it says that it is well; asked under a time limit of its own.

        Raises:
            ReplicaError: ``down`` if it is not there, ``wrong`` if it is something else.
        """
        seconds = 2 * self._options.connect_timeout_s
        try:
            async with asyncio.timeout(seconds):
                async with self._client.stream("GET", f"{self._root}/health") as health:
                    # Only vLLM and its like have /health; whoever lacks it answers /models, or not.
                    if health.status_code >= 500:
                        raise self._refusal(health, await _beginning(health), "/health")
                    await _beginning(health)  # a connection whose answer was read is used again
                async with self._client.stream("GET", f"{self.url}/models") as answer:
                    if answer.status_code != 200:
                        raise self._refusal(answer, await _beginning(answer), "/models")
                    content = await read_body(answer, _MOST_OF_PROBE)
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
    """Of what is only quoted."""
    try:
        _check_plain(response)
    except WireError as error:
        return str(error).encode()
    content = b""
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > _MOST_OF_REFUSAL:
            break
    return content[:_MOST_OF_REFUSAL]


def _retry_after(header: str | None) -> float:
    """Seconds; 1 where the header is missing, a date or nonsense."""
    try:
        seconds = float(header or "")
    except ValueError:
        return 1.0
    return min(max(seconds, 0.0), 3600.0) if math.isfinite(seconds) else 1.0


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def now() -> float:
    """Seconds on the event loop's clock."""
    return asyncio.get_running_loop().time()
