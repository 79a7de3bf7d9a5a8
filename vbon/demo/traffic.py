"""Generated traffic for a running service, whose prompts can change on the way."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import httpx

_WORKERS = 6
_TIMEOUT_S = 120.0


@dataclass
class Sent:
    """Sums over the requests that have been answered.

    Attributes:
        arms: number of requests by the arm that answered.
        tokens: tokens generated for them, all candidates included, by arm.
        failures: messages of failed requests, the first ones.
    """

    requests: int = 0
    failed: int = 0
    arms: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class Traffic:
    """Requests of ``mode=auto`` at a steady rate, in threads, until :meth:`stop`.

    If the service is slower than the rate, as many requests as there are threads wait for it.
    """

    def __init__(
        self,
        url: str,
        prompts: Sequence[str],
        *,
        per_s: float,
        max_tokens: int,
        headers: Mapping[str, str],
    ) -> None:
        self.sent = Sent()
        self._url, self._prompts, self._every_s = url, list(prompts), 1 / per_s
        self._max_tokens, self._headers = max_tokens, dict(headers)
        self._random = random.Random(0)
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._next_s = time.monotonic()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(_WORKERS)]

    def start(self) -> None:
        """Begin to send."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Send no more requests, and wait for the answers to those that were sent."""
        self._stopped.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(_TIMEOUT_S)

    def change(self, prompts: Sequence[str]) -> None:
        """Ask other prompts from now on."""
        with self._lock:
            self._prompts = list(prompts)

    def snapshot(self) -> Sent:
        """The sums so far."""
        with self._lock:
            sent = self.sent
            return Sent(
                sent.requests,
                sent.failed,
                Counter(sent.arms),
                Counter(sent.tokens),
                list(sent.failures),
            )

    def _work(self) -> None:
        with httpx.Client(base_url=self._url, headers=self._headers, timeout=_TIMEOUT_S) as client:
            while not self._stopped.is_set():
                with self._lock:
                    now_s = time.monotonic()
                    begin_s = max(self._next_s, now_s - self._every_s)
                    self._next_s = begin_s + self._every_s
                    prompt = self._random.choice(self._prompts)
                if self._stopped.wait(max(0.0, begin_s - now_s)):
                    return
                self._ask(client, prompt)

    def _ask(self, client: httpx.Client, prompt: str) -> None:
        body = {"prompt": prompt, "max_tokens": self._max_tokens}
        try:
            response = client.post("/generate", params={"mode": "auto"}, json=body)
            response.raise_for_status()
            answer = response.json()
            arm, tokens = answer["routing"]["arm"], int(answer["usage"]["generated_tokens"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            with self._lock:
                self.sent.requests += 1
                self.sent.failed += 1
                if len(self.sent.failures) < 5:
                    self.sent.failures.append(str(error) or type(error).__name__)
            return
        with self._lock:
            self.sent.requests += 1
            self.sent.arms[arm] += 1
            self.sent.tokens[arm] += tokens
