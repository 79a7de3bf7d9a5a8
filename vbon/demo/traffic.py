"""Generated traffic for a running service, whose prompts can change on the way."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import httpx

# At full speed as many sequences as a service decodes at once: 32 requests of best-of-16.
_WORKERS = 32
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
    """Requests of ``mode=auto`` in threads, at a steady rate or as fast as they are answered.

    If the service is slower than the rate, as many requests as there are threads wait for it.

    Args:
        per_s: requests a second; ``None``: as fast as they are answered; 0: none for now.
    """

    def __init__(
        self,
        url: str,
        prompts: Sequence[str],
        *,
        per_s: float | None,
        max_tokens: int,
        headers: Mapping[str, str],
    ) -> None:
        self.sent = Sent()
        self._prompts, self._per_s, self._max_tokens = list(prompts), per_s, max_tokens
        # One for all threads: each would read the certificates of all authorities again.
        self._client = httpx.Client(
            base_url=url,
            headers=headers,
            timeout=_TIMEOUT_S,
            limits=httpx.Limits(max_connections=_WORKERS, max_keepalive_connections=_WORKERS),
        )
        self._random = random.Random(0)
        self._lock, self._stopped = threading.Lock(), threading.Event()
        # Held by the thread whose request is the next one; woken when the rate changes.
        self._turn, self._woken = threading.Lock(), threading.Condition(self._lock)
        self._last_s = time.monotonic()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(_WORKERS)]

    def start(self) -> None:
        """Begin to send."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Send no more requests, and wait for the answers to those that were sent."""
        self._stopped.set()
        with self._lock:
            self._woken.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(_TIMEOUT_S)
        self._client.close()

    def change(self, prompts: Sequence[str]) -> None:
        """Ask other prompts from now on."""
        with self._lock:
            self._prompts = list(prompts)

    def pace(self, per_s: float | None) -> None:
        """Send at another rate from now on; ``None``: as fast as requests are answered; 0: none."""
        with self._lock:
            self._per_s = per_s
            self._woken.notify_all()

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
        while (prompt := self._next_prompt()) is not None:
            self._ask(prompt)

    def _next_prompt(self) -> str | None:
        """The prompt of the next request, once it is due; ``None`` after :meth:`stop`."""
        with self._turn, self._lock:
            while not self._stopped.is_set():
                now_s = time.monotonic()
                wait_s = self._wait_s(now_s)
                if wait_s <= 0:
                    self._last_s = now_s
                    return self._random.choice(self._prompts)
                self._woken.wait(wait_s)
        return None

    def _wait_s(self, now_s: float) -> float:
        if self._per_s is None:
            return 0.0
        if not self._per_s:
            return threading.TIMEOUT_MAX
        return self._last_s + 1 / self._per_s - now_s

    def _ask(self, prompt: str) -> None:
        body = {"prompt": prompt, "max_tokens": self._max_tokens}
        try:
            response = self._client.post("/generate", params={"mode": "auto"}, json=body)
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
