"""The account of a fault: answers, clear errors, and whatever was neither."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field

import httpx


@dataclass
class Tally:
    """The account of one fault; :meth:`broken` says which promise it breaks.

    Attributes:
        asked: requests that reached the server, or pieces of work begun.
        answered: whole results.
        errors: clear errors, by type.
        left: given up by this client on purpose; the server owes them nothing.
        lost: neither result nor clear error: what it was instead.
        left_over: what remained afterwards and should not, by kind (sequences, file descriptors, ...).
        recovered_s: from the fault to the first good answer after it, where something had to recover.
        notes: figures worth a line in the table.
    """

    asked: int = 0
    answered: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    left: int = 0
    lost: list[str] = field(default_factory=list)
    left_over: dict[str, float] = field(default_factory=dict)
    recovered_s: float | None = None
    notes: list[str] = field(default_factory=list)

    def broken(self) -> list[str]:
        """Every way in which the promise does not hold."""
        found = [f"lost: {what}" for what in self.lost[:5]]
        accounted = self.answered + self.errors.total() + self.left + len(self.lost)
        if self.asked != accounted:
            found.append(f"{self.asked} asked, {accounted} accounted for")
        found += [f"left over: {count:g} {kind}" for kind, count in self.left_over.items() if count]
        return found

    def fail(self, what: str) -> None:
        """Count something else that does not hold."""
        self.asked += 1
        self.lost.append(what)

    def add(self, response: httpx.Response | Exception) -> None:
        """Count one request's end."""
        self.asked += 1
        if isinstance(response, Exception):
            self.lost.append(f"no answer: {response!r} from {response.__cause__!r}")
            return
        try:
            body = response.json()
        except json.JSONDecodeError:
            self.lost.append(f"{response.status_code} without JSON: {response.text[:80]!r}")
            return
        if response.status_code == 200:
            self.answered += 1
        elif isinstance(body.get("error"), dict) and body["error"].get("message"):
            if response.status_code in {429, 503} and "retry-after" not in response.headers:
                self.lost.append(f"{response.status_code} without Retry-After")
            else:
                self.errors[body["error"]["type"]] += 1
        else:
            self.lost.append(f"{response.status_code} of another shape: {response.text[:80]!r}")
