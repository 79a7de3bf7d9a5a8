"""Temporary links to reports, which a browser needs because it cannot send a key when it opens a page."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from time import monotonic

from vbon.errors import NotFoundError

VALID_S = 600.0
_MAX_LINKS = 256  # when there are more, the oldest expire early


class ReportLinks:
    """Secrets that each give access to the report of one run, for ten minutes."""

    def __init__(self) -> None:
        self._links: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def make(self, run_id: str) -> str:
        """A new secret for a run."""
        secret = secrets.token_urlsafe(24)
        self._links[secret] = (run_id, monotonic() + VALID_S)
        while len(self._links) > _MAX_LINKS:
            self._links.popitem(last=False)
        return secret

    def run_of(self, secret: str) -> str:
        """The id of the run that a secret gives access to.

        Raises:
            NotFoundError: the secret has expired or never existed.
        """
        run_id, until = self._links.get(secret, ("", 0.0))
        if monotonic() >= until:
            raise NotFoundError(
                "this link to a report has expired; open the report from the page again"
            )
        return run_id
