"""The HTTP client of reward servers: blocking calls, each of which can be cancelled at any moment."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

import httpx

from vbon.errors import RewardError
from vbon.http.body import WireError, read_body
from vbon.http.transport import AiohttpTransport
from vbon.trace_context import trace_headers

# uvicorn closes connections after 5 s without traffic, so only younger ones are reused.
_KEEP_IDLE_S = 2.0
# The rewards of several hundred texts take a few kB; the rest allows for extra fields in the response.
_MAX_RESPONSE_BYTES = 4 * 2**20
_MAX_SAID = 300
# Requests of one batch that are sent at a time.
_MOST_AT_ONCE = 32

T = TypeVar("T")


class StatusError(RewardError):
    """A server answered with an error status.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, status)  # both, so that the error can be pickled
        self.status = status

    def __str__(self) -> str:
        """The message without the status."""
        return str(self.args[0])


class UnreadableError(RewardError):
    """A server's answer is not JSON, or longer than an answer may be."""


class CancelledCallError(RewardError):
    """A call was interrupted on purpose."""


class ScorerClient:
    """Sends JSON to one server and waits for its answers.

    Calls run in an event loop in a thread of their own, where each can be cancelled at any moment. httpx's
    own timeouts limit single reads only, so a server that sends a byte now and then could hold a call
    forever.

    Args:
        url: the server's URL, which names it in messages.
        timeout_s: limit of one call, from its start to the last byte of the response.
    """

    def __init__(
        self, url: str, timeout_s: float, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._url, self._timeout_s = url, timeout_s
        self._client = httpx.AsyncClient(
            headers={"accept-encoding": "identity"},
            timeout=None,
            transport=transport or AiohttpTransport(url, keep_idle_s=_KEEP_IDLE_S),
        )
        self._lock = threading.Lock()  # guards the fields below
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._call: Future[Any] | None = None
        self._closed = False

    def ask(
        self, url: str, bodies: Sequence[dict[str, Any] | None], timeout_s: float | None = None
    ) -> list[Any]:
        """POST every body (GET for ``None``), and return the JSON of the answers in the same order.

        Args:
            timeout_s: another limit of each call.

        Raises:
            StatusError: the server answered with an error status.
            UnreadableError: its answer cannot be used.
            RewardError: no answer came within the time limit.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        contents = self._wait(self._ask_all(url, bodies, trace_headers.get(), limit_s), limit_s)
        return [self._json(content) for content in contents]

    def interrupt(self) -> None:
        """Cancel the calls in progress; may be called from any thread."""
        with self._lock:
            if self._call is not None:
                self._call.cancel()

    def close(self) -> None:
        """Close the connections and end the thread; later calls raise :class:`RewardError`."""
        self.interrupt()
        with self._lock:
            self._closed = True
            loop, thread, self._loop = self._loop, self._thread, None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._client.aclose(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def _wait(self, work: Coroutine[Any, Any, T], limit_s: float) -> T:
        """Run the work in the other thread and wait for it in this one."""
        call = self._begin(work)
        try:
            return call.result()
        except TimeoutError as error:
            raise RewardError(
                f"remote scorer {self._url} did not respond within {limit_s:g} s"
            ) from error
        except CancelledError as error:
            raise CancelledCallError(
                f"the call to remote scorer {self._url} was cancelled"
            ) from error
        except WireError as error:
            raise UnreadableError(f"remote scorer {self._url} {error}") from error
        except httpx.HTTPError as error:
            said = f"{error}" or type(error).__name__
            raise RewardError(f"remote scorer {self._url} failed: {said}") from error
        finally:
            call.cancel()  # no effect after a result; needed if waiting was interrupted
            self._call = None

    def _begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        with self._lock:
            if self._closed:
                work.close()
                raise RewardError(f"remote scorer {self._url} is closed")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="remote-reward", daemon=True
                )
                self._thread.start()
            call = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._call = call
            return call

    async def _ask_all(
        self,
        url: str,
        bodies: Sequence[dict[str, Any] | None],
        headers: Mapping[str, str],
        limit_s: float,
    ) -> list[bytes]:
        if len(bodies) == 1:
            return [await self._ask_one(url, bodies[0], headers, limit_s)]
        gate = asyncio.Semaphore(_MOST_AT_ONCE)

        async def ask(body: dict[str, Any] | None) -> bytes:
            async with gate:
                return await self._ask_one(url, body, headers, limit_s)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_as_result(ask(body))) for body in bodies]
        found = [task.result() for task in tasks]
        for result in found:
            if isinstance(result, Exception):
                raise result
        return [result for result in found if isinstance(result, bytes)]

    async def _ask_one(
        self, url: str, body: dict[str, Any] | None, headers: Mapping[str, str], limit_s: float
    ) -> bytes:
        method = "GET" if body is None else "POST"
        async with (
            asyncio.timeout(limit_s),
            self._client.stream(method, url, json=body, headers=headers) as response,
        ):
            content = await read_body(response, _MAX_RESPONSE_BYTES)
        if response.is_success:
            return content
        said = " ".join(content.decode("utf-8", "replace").split())[:_MAX_SAID]
        raise StatusError(
            f"remote scorer {self._url} failed: HTTP {response.status_code} {response.reason_phrase}"
            + (f": {said}" if said else ""),
            response.status_code,
        )

    def _json(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
            raise UnreadableError(f"remote scorer {self._url} failed: {error}") from error


async def _as_result(work: Coroutine[Any, Any, bytes]) -> bytes | Exception:
    """The result of the work, or the exception that it raised."""
    try:
        return await work
    except Exception as error:
        return error
