"""Cheap client in a process of its own, and a responder that costs a server's least: both count their CPU.

``python -m tests.faults.tools.offered_load`` reads a :class:`Plan` as JSON and writes an :class:`Offered`.
With ``respond`` as its argument it is the responder: it prints its port, and answers all requests with 429.

Sockets are used directly and responses are hardly looked at, because a client that parses HTTP takes more
of a small machine than the server that refuses it.
"""

from __future__ import annotations

import errno
import json
import random
import selectors
import socket
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from time import perf_counter, process_time
from typing import Any

_REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_READ = 65536
_GIVE_UP_S = 150.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The requests that one client sends, each over a connection of its own.

    Attributes:
        service, beside: ports on this machine.
        request: the same for all, with ``connection: close``.
        in_flight: requests to the service that are kept under way; each answered one is followed by another.
        service_per_s, beside_per_s: Poisson arrivals at each port, which wait for nobody.
        answers: the number of answers (200) by the service after which it stops.
    """

    service: int
    beside: int
    request: str
    in_flight: int
    service_per_s: float
    beside_per_s: float
    answers: int
    seed: int


@dataclass(slots=True)
class Offered:
    """What became of the requests.

    Attributes:
        took_ms: of each answer (200) of the service, from the moment at which its request was due.
        there_ms: of the same answers, by the service's own clock.
        statuses: of the service's responses; 0 for a connection without one.
        cpu_share: of one core, which this client took.
    """

    took_ms: list[float] = field(default_factory=list)
    there_ms: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    duration_s: float = 0.0
    cpu_share: float = 0.0


class _Asked:
    """One request under way."""

    __slots__ = ("due_s", "port", "received", "socket")

    def __init__(self, port: int, due_s: float) -> None:
        self.port, self.due_s, self.received = port, due_s, bytearray()
        self.socket = socket.socket()
        self.socket.setblocking(False)


class _Client:
    """Sends requests as planned and notes what becomes of them."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._request = plan, plan.request.encode()
        self._chance = random.Random(plan.seed)
        self._selector = selectors.EpollSelector()
        self._found, self._statuses = Offered(), Counter[int]()
        self._under_way = 0

    def run(self) -> Offered:
        """Send until there are as many answers as planned, and read what is still under way."""
        plan, found = self._plan, self._found
        begun_s, cpu_s = perf_counter(), process_time()
        rates = {plan.service: plan.service_per_s, plan.beside: plan.beside_per_s}
        due_s = {port: begun_s + self._gap_s(rate) for port, rate in rates.items() if rate}
        for _ in range(plan.in_flight):
            self._ask(plan.service, begun_s)
        while len(found.took_ms) < plan.answers and perf_counter() < begun_s + _GIVE_UP_S:
            now_s = perf_counter()
            for port, at_s in due_s.items():
                if at_s <= now_s:
                    self._ask(port, at_s)
                    due_s[port] = at_s + self._gap_s(rates[port])
            wait_s = min([*due_s.values(), now_s + 1.0]) - perf_counter()
            self._take(max(0.0, wait_s), again=True)
        found.duration_s = perf_counter() - begun_s
        found.cpu_share = (process_time() - cpu_s) / found.duration_s
        until_s = perf_counter() + _GIVE_UP_S
        while self._under_way and perf_counter() < until_s:
            self._take(1.0, again=False)
        found.statuses = dict(self._statuses)
        return found

    def _gap_s(self, per_s: float) -> float:
        return self._chance.expovariate(per_s)

    def _ask(self, port: int, due_s: float) -> None:
        asked = _Asked(port, due_s)
        if asked.socket.connect_ex(("127.0.0.1", port)) not in {0, errno.EINPROGRESS}:
            self._end(asked)
            return
        self._under_way += 1
        self._selector.register(asked.socket, selectors.EVENT_WRITE, asked)

    def _take(self, wait_s: float, *, again: bool) -> None:
        """Send and read where that is possible now; ``again`` is whether the closed loop goes on."""
        for key, events in self._selector.select(wait_s):
            asked: _Asked = key.data
            if events & selectors.EVENT_WRITE:
                self._send(asked)
            elif self._read(asked):
                self._selector.unregister(asked.socket)
                self._under_way -= 1
                self._end(asked)
                if again and asked.port == self._plan.service and self._plan.in_flight:
                    self._ask(asked.port, perf_counter())

    def _send(self, asked: _Asked) -> None:
        with suppress(OSError):  # it is then read as a connection without a response
            asked.socket.send(self._request)
        self._selector.modify(asked.socket, selectors.EVENT_READ, asked)

    def _read(self, asked: _Asked) -> bool:
        """Read what is there; true at the end of the response, where the server closes."""
        try:
            piece = asked.socket.recv(_READ)
        except BlockingIOError:
            return False
        except OSError:
            return True
        asked.received += piece
        return not piece

    def _end(self, asked: _Asked) -> None:
        ended_s = perf_counter()
        asked.socket.close()
        if asked.port == self._plan.beside:
            return
        status = int(asked.received[9:12] or b"0")
        self._statuses[status] += 1
        if status == 200:
            content = json.loads(asked.received.partition(b"\r\n\r\n")[2])
            self._found.took_ms.append(1e3 * (ended_s - asked.due_s))
            self._found.there_ms.append(content["timings_ms"]["total"])


def respond() -> None:
    """Answer every request with 429, for ever."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)
    selector = selectors.EpollSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            found: Any = key.fileobj
            if found is listener:
                opened, _ = listener.accept()
                selector.register(opened, selectors.EVENT_READ)
                continue
            with suppress(OSError):  # the client may have left
                if found.recv(_READ):
                    found.send(_REFUSAL)
            selector.unregister(found)
            found.close()


if __name__ == "__main__":
    if sys.argv[1:] == ["respond"]:
        respond()
    else:
        print(json.dumps(asdict(_Client(Plan(**json.load(sys.stdin))).run())))
