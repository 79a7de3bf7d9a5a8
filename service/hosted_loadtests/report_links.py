"""Temporary links to reports, which a browser needs because it cannot send a key when it opens a page."""

from __future__ import annotations

import secrets
from collections import Counter
from time import monotonic

from vbon.errors import NotFoundError

VALID_S = 600.0
_MAX_LINKS = 256  # when there are more, the oldest of whoever has the most expires early


class ReportLinks:
    """Secrets that each give access to the report of one run, for ten minutes."""

    def __init__(self) -> None:
        # By secret, oldest first: the run, when the link expires, and who made it.
        self._links: dict[str, tuple[str, float, str]] = {}

    def make(self, run_id: str, owner: str) -> str:
        """A new secret for a run; ``owner`` is the name of the key that asks for it."""
        now_s = monotonic()
        self._links = {key: link for key, link in self._links.items() if link[1] > now_s}
        secret = secrets.token_urlsafe(24)
        self._links[secret] = (run_id, now_s + VALID_S, owner)
        if len(self._links) > _MAX_LINKS:
            [(most, _)] = Counter(owner for _, _, owner in self._links.values()).most_common(1)
            del self._links[next(key for key, link in self._links.items() if link[2] == most)]
        return secret

    def run_of(self, secret: str) -> str:
        """The id of the run that a secret gives access to.

        Raises:
            NotFoundError: the secret has expired or never existed.
        """
        run_id, until, _ = self._links.get(secret, ("", 0.0, ""))
        if monotonic() >= until:
            raise NotFoundError(
                "this link to a report has expired; open the report from the page again"
            )
        return run_id
