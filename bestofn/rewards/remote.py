"""A scorer behind HTTP as the reward model."""

from __future__ import annotations

from collections.abc import Sequence

import httpx

from bestofn.errors import CheckpointError, RewardError
from bestofn.rewards.protocol import Scorable, checked_scores
from bestofn.trace_context import trace_headers

# Servers under uvicorn close a connection that idled for 5 s; one we might reuse must be younger.
_KEEP_IDLE_S = 2.0


class RemoteReward:
    """POSTs ``{"prompts": [...], "completions": [...]}`` and reads ``{"rewards": [...]}``.

    The same shape is what OpenRLHF's ``serve_rm`` answers. ``null`` means "no score".

    Raises:
        CheckpointError: no URL, or one that may carry secrets.
    """

    def __init__(
        self,
        url: str,
        *,
        batch_size: int = 64,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        _check_url(url)
        self.name, self.revision = url, "remote"
        self._batch_size = batch_size
        limits = httpx.Limits(keepalive_expiry=_KEEP_IDLE_S)
        self._client = httpx.Client(timeout=timeout_s, transport=transport, limits=limits)

    def load(self) -> None:
        """Nothing to load: the scorer runs elsewhere, and may come up after us."""

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        """One call per batch."""
        scores: list[float | None] = []
        for start in range(0, len(items), self._batch_size):
            scores.extend(self._call(items[start : start + self._batch_size]))
        return scores

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _call(self, items: Sequence[Scorable]) -> list[float | None]:
        body = {
            "prompts": [item.prompt.key for item in items],
            "completions": [item.completion for item in items],
        }
        try:
            response = self._client.post(self.name, json=body, headers=trace_headers.get())
            response.raise_for_status()
            payload = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise RewardError(f"remote scorer {self.name} failed: {error}") from error
        rewards = payload.get("rewards") if isinstance(payload, dict) else None
        if not isinstance(rewards, list):
            raise RewardError(f"remote scorer {self.name} answered without a list `rewards`")
        return checked_scores(rewards, len(items), f"remote scorer {self.name}")


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
