"""A reward model that is a server behind HTTP, of one of the kinds in :mod:`vbon.rewards.server_formats`."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import httpx

from vbon.errors import CheckpointError, RewardError
from vbon.http.body import WireError
from vbon.rewards.isolation import TextError, TextIsolator
from vbon.rewards.protocol import RewardOptions, Scorable
from vbon.rewards.scorer_client import ScorerClient, StatusError
from vbon.rewards.server_formats import OWN, FormatOptions, HeadError, placed_scores
from vbon.rewards.server_kind import ServerKind, find_kind

logger = logging.getLogger(__name__)

# Servers refuse a whole batch with one of these if a text of it is too long, or makes their code fail.
_TEXT_AT_FAULT = (400, 413, 422, 500)
# A server that does not answer at once is asked again with the first batch.
_FIND_S = 5.0


class RemoteReward:
    """Sends batches of texts to a server and reads their rewards; ``null`` means "no score".

    :meth:`load` finds out which kind of server it is. Without it, the server is taken for one of the
    project's own format: ``{"prompts": [...], "completions": [...]}`` in, ``{"rewards": [...]}`` out.

    Args:
        timeout_s: limit of one call, from its start to the last byte of the response.
        quotes_server: whether errors contain what the server says, which may repeat a text of the batch.

    Raises:
        CheckpointError: the URL is invalid, or has parts that may contain secrets.
    """

    def __init__(
        self,
        url: str,
        *,
        batch_size: int = 64,
        timeout_s: float = 30.0,
        quotes_server: bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        _check_url(url)
        self.name, self.revision = url, "remote"
        self._batch_size, self._timeout_s = batch_size, timeout_s
        self._quotes_server = quotes_server
        self._client = ScorerClient(url, timeout_s, transport)
        self._isolate = TextIsolator(f"remote scorer {url}", self._batch)
        self._kind: ServerKind | None = ServerKind(url, OWN, FormatOptions())

    def load(self) -> None:
        """Find out which kind of server it is. A server that does not answer may start later.

        Raises:
            CheckpointError: the server has no known format, or its model has several outputs.
        """
        self._kind = None
        try:
            self._found(min(_FIND_S, self._timeout_s))
        except RewardError as error:
            logger.warning("%s; it is asked again with the first texts", error)

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        """Score the items with one call per batch, or with several if the scorer refuses a batch."""
        if not items:
            return []
        try:
            kind = self._found(self._timeout_s)
        except CheckpointError as error:
            raise RewardError(str(error)) from error
        size = min(self._batch_size, kind.format.most_items or self._batch_size)
        scores: list[float | None] = []
        for start in range(0, len(items), size):
            scores.extend(self._isolate(items[start : start + size]))
        return scores

    def interrupt(self) -> None:
        """Cancel the call in progress; may be called from any thread."""
        self._client.interrupt()

    def close(self) -> None:
        """Close the connections and end the thread; later calls raise :class:`RewardError`."""
        self._client.close()

    def _found(self, limit_s: float) -> ServerKind:
        if self._kind is None:
            self._kind = find_kind(self._client, self.name, limit_s)
            logger.info("%s", self._kind.words)
            if self._kind.warning:
                logger.warning("%s", self._kind.warning)
        return self._kind

    def _batch(self, items: Sequence[Scorable]) -> list[float | None]:
        assert self._kind is not None  # found by `score`
        source = f"remote scorer {self.name}"
        calls = self._kind.format.calls(items, self._kind.options)
        try:
            answers = self._client.ask(self._kind.url, [call.body for call in calls])
            return placed_scores(self._kind.format, calls, answers, source)
        except StatusError as error:
            kind = TextError if error.status in _TEXT_AT_FAULT else RewardError
            if self._quotes_server:
                raise kind(str(error)) from error
            # Without the cause, whose message a log would show.
            raise kind(f"{source} failed: HTTP {error.status}") from None
        except (WireError, HeadError) as error:
            raise RewardError(f"{source} {error}") from error


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
    return RemoteReward(
        url,
        batch_size=options.batch_size,
        timeout_s=options.timeout_s,
        quotes_server=options.quotes_servers,
    )
