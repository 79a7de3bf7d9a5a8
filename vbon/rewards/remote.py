"""A reward model that is a scorer behind HTTP."""

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
from vbon.http.transport import AiohttpTransport
from vbon.rewards.isolation import TextError, TextIsolator
from vbon.rewards.protocol import RewardOptions, Scorable, checked_scores
from vbon.trace_context import trace_headers

# uvicorn closes connections after 5 s without traffic, so only younger ones are reused.
_KEEP_IDLE_S = 2.0
# The rewards of several hundred texts take a few kB; the rest allows for extra fields in the response.
_MAX_RESPONSE_BYTES = 4 * 2**20
# Servers refuse a whole batch with one of these if a text of it is too long, or makes their code fail.
_TEXT_AT_FAULT = (400, 413, 422, 500)


class RemoteReward:
    """POSTs ``{"prompts": [...], "completions": [...]}`` and reads ``{"rewards": [...]}``.

    OpenRLHF's ``serve_rm`` uses the same format. ``null`` means "no score".

    Calls run in an event loop in a thread of their own, where each can be cancelled at any moment. httpx's
    own timeouts limit single reads only, so a server that sends a byte now and then could hold a call
    forever.

    Args:
        timeout_s: limit of one call, from its start to the last byte of the response.

    Raises:
        CheckpointError: the URL is invalid, or has parts that may contain secrets.
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
        self._isolate = TextIsolator(f"remote scorer {url}", self._batch)
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

    def load(self) -> None:
        """Do nothing: the scorer runs elsewhere and may start later than this process."""

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        """Score the items with one call per batch, or with several if the scorer refuses a batch."""
        scores: list[float | None] = []
        for start in range(0, len(items), self._batch_size):
            scores.extend(self._isolate(items[start : start + self._batch_size]))
        return scores

    def interrupt(self) -> None:
        """Cancel the call in progress; may be called from any thread."""
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

    def _batch(self, items: Sequence[Scorable]) -> list[float | None]:
        body = {
            "prompts": [item.prompt.key for item in items],
            "completions": [item.completion for item in items],
        }
        payload = self._json(self._call_scorer(body))
        rewards = payload.get("rewards") if isinstance(payload, dict) else None
        if not isinstance(rewards, list):
            raise RewardError(f"remote scorer {self.name} sent a response without a list `rewards`")
        return checked_scores(rewards, len(items), f"remote scorer {self.name}")

    def _call_scorer(self, body: dict[str, Any]) -> bytes:
        """Send one call and wait in this thread for the body of the response.

        Raises:
            RewardError: no usable response came within the time limit.
        """
        call = self._begin(body, trace_headers.get())
        try:
            return call.result()
        except TimeoutError as error:
            raise RewardError(
                f"remote scorer {self.name} did not respond within {self._timeout_s:g} s"
            ) from error
        except CancelledError as error:
            raise RewardError(f"the call to remote scorer {self.name} was cancelled") from error
        except WireError as error:
            raise RewardError(f"remote scorer {self.name} {error}") from error
        except httpx.HTTPStatusError as error:
            kind = TextError if error.response.status_code in _TEXT_AT_FAULT else RewardError
            raise kind(f"remote scorer {self.name} failed: {error}") from error
        except httpx.HTTPError as error:
            said = f"{error}" or type(error).__name__
            raise RewardError(f"remote scorer {self.name} failed: {said}") from error
        finally:
            call.cancel()  # no effect after a result; needed if waiting was interrupted
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
            return await read_body(response, _MAX_RESPONSE_BYTES)

    def _json(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
            raise RewardError(f"remote scorer {self.name} failed: {error}") from error


def _check_url(url: str) -> None:
    """Reject URLs that may contain secrets, since the URL is shown in responses and logs.

    For the same reason, the messages do not repeat it.
    """
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        parts = httpx.URL()
    if parts.userinfo or parts.query or parts.fragment:
        raise CheckpointError(
            "a reward URL must not contain a user, password, query or fragment, because it is shown in "
            "responses and logs; let a proxy add the credentials that the scorer needs"
        )
    known_port = parts.port is None or 0 < parts.port < 65536
    if parts.scheme not in ("http", "https") or not parts.host or not known_port:
        raise CheckpointError("the reward URL must have the form http://host:8000/score")


def open_http(address: str, options: RewardOptions) -> RemoteReward:
    """Open the remote scorer at ``http:ADDRESS``."""
    return _open(f"http:{address}", options)


def open_https(address: str, options: RewardOptions) -> RemoteReward:
    """Open the remote scorer at ``https:ADDRESS``."""
    return _open(f"https:{address}", options)


def _open(url: str, options: RewardOptions) -> RemoteReward:
    return RemoteReward(url, batch_size=options.batch_size, timeout_s=options.timeout_s)
