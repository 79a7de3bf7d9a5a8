"""A scorer behind HTTP as the reward model."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

import httpx

from vbon.errors import CheckpointError, RewardError
from vbon.http.body import WireError, read_body
from vbon.http.transport import OneConnectionEach
from vbon.rewards.protocol import Scorable, checked_scores
from vbon.trace_context import trace_headers

# Servers under uvicorn close a connection that idled for 5 s; one we might reuse must be younger.
_KEEP_IDLE_S = 2.0
# A batch of hundreds is some kilobytes; the rest is room for what servers say beside the rewards.
_MOST_BYTES = 4 * 2**20


class RemoteReward:
    """POSTs ``{"prompts": [...], "completions": [...]}`` and reads ``{"rewards": [...]}``.

    The same shape is what OpenRLHF's ``serve_rm`` answers. ``null`` means "no score".

    Args:
        timeout_s: of one call, from its beginning to the last byte of the answer. httpx's own limits are of
            single reads, so that a server with a byte now and then could hold a call for good: calls
            run in an event loop, where any of them can be broken off, in a thread of its own.

    Raises:
        CheckpointError: no URL, or one that may carry secrets.
    """

    def __init__(
        self,
        url: str,
        *,
        batch_size: int = 64,
        timeout_s: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        _check_url(url)
        self.name, self.revision = url, "remote"
        self._batch_size, self._timeout_s = batch_size, timeout_s
        self._client = httpx.AsyncClient(
            headers={"accept-encoding": "identity"},
            timeout=None,
            transport=transport or OneConnectionEach(url, keep_idle_s=_KEEP_IDLE_S),
        )
        self._lock = threading.Lock()  # of what follows
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._call: Future[Any] | None = None
        self._closed = False

    def load(self) -> None:
        """Nothing to load: the scorer runs elsewhere, and may come up after us."""

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        """One call per batch."""
        scores: list[float | None] = []
        for start in range(0, len(items), self._batch_size):
            scores.extend(self._batch(items[start : start + self._batch_size]))
        return scores

    def interrupt(self) -> None:
        """Break off the call under way, from whatever thread."""
        with self._lock:
            if self._call is not None:
                self._call.cancel()

    def close(self) -> None:
        """Close the connections and end the thread; there are no calls from here on."""
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

    def _batch(self, items: Sequence[Scorable]) -> list[float | None]:
        body = {
            "prompts": [item.prompt.key for item in items],
            "completions": [item.completion for item in items],
        }
        payload = self._json(self._answer(body))
        rewards = payload.get("rewards") if isinstance(payload, dict) else None
        if not isinstance(rewards, list):
            raise RewardError(f"remote scorer {self.name} answered without a list `rewards`")
        return checked_scores(rewards, len(items), f"remote scorer {self.name}")

    def _answer(self, body: dict[str, Any]) -> bytes:
        """What the server answers, waited for in this thread.

        Raises:
            RewardError: nothing that could be used within the time limit.
        """
        call = self._begin(body, trace_headers.get())
        try:
            return call.result()
        except TimeoutError as error:
            why = f"gave no answer within {self._timeout_s:g} s"
            raise RewardError(f"remote scorer {self.name} {why}") from error
        except CancelledError as error:
            raise RewardError(f"the call of remote scorer {self.name} was broken off") from error
        except WireError as error:
            raise RewardError(f"remote scorer {self.name} {error}") from error
        except httpx.HTTPError as error:
            said = f"{error}" or type(error).__name__
            raise RewardError(f"remote scorer {self.name} failed: {said}") from error
        finally:
            call.cancel()  # nobody waits for it any more, should this thread have been told to stop
            self._call = None

    def _begin(self, body: dict[str, Any], headers: Mapping[str, str]) -> Future[bytes]:
        with self._lock:
            if self._closed:
                raise RewardError(f"remote scorer {self.name} is closed")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="remote-reward", daemon=True
                )
                self._thread.start()
            call = asyncio.run_coroutine_threadsafe(self._post(body, headers), self._loop)
            self._call = call
            return call

    async def _post(self, body: dict[str, Any], headers: Mapping[str, str]) -> bytes:
        async with (
            asyncio.timeout(self._timeout_s),
            self._client.stream("POST", self.name, json=body, headers=headers) as response,
        ):
            response.raise_for_status()
            return await read_body(response, _MOST_BYTES)

    def _json(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:  # the latter for what is nested too deep
            raise RewardError(f"remote scorer {self.name} failed: {error}") from error


def _check_url(url: str) -> None:
    """The URL is shown in answers and logs, so it may hold no secret; nor is it repeated here."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        parts = httpx.URL()
    if parts.userinfo or parts.query or parts.fragment:
        raise CheckpointError(
            "a reward URL holds no user, password, query or fragment: it is shown in answers and logs; "
            "let a proxy add what the scorer asks for"
        )
    known_port = parts.port is None or 0 < parts.port < 65536
    if parts.scheme not in ("http", "https") or not parts.host or not known_port:
        raise CheckpointError("a reward URL is not like http://host:8000/score")
