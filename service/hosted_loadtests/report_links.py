"""Links under which a browser may open a report: it cannot send a key with a page that it opens."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from time import monotonic

from vbon.errors import NotFoundError

VALID_S = 600.0
_MOST = 256  # links at once; the oldest end early


class ReportLinks:
    """Secrets that stand for one run each, for some minutes."""

    def __init__(self) -> None:
        self._links: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def make(self, run_id: str) -> str:
        """A new secret for a run."""
        secret = secrets.token_urlsafe(24)
        self._links[secret] = (run_id, monotonic() + VALID_S)
        while len(self._links) > _MOST:
            self._links.popitem(last=False)
        return secret

    def run_of(self, secret: str) -> str:
        """The run that a secret stands for.

        Raises:
            NotFoundError: it has ended, or never was.
        """
        run_id, until = self._links.get(secret, ("", 0.0))
        if monotonic() >= until:
            raise NotFoundError("this link to a report has ended; open it from the page again")
        return run_id
