"""The host of one admission for several front ends, which are other processes.

A front end joins for as long as its connection lasts. What it holds is given back when the connection ends,
for whatever reason. A front end that comes back tells what it still holds, since its requests went on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from service.admission.admission import Admission
from service.admission.asks import Ask
from service.admission.leases import GoneError, Leases
from service.context.caller import Caller
from vbon.errors import NotReadyError

# Changes that follow each other this closely are told together.
NOTICE_S = 0.01
# Without a change, the state is told this often; front ends then tell what they hold.
REPEAT_S = 5.0
SETTLE_S = 2.0
# Front ends without a connection whose requests are remembered, in case they join again.
_MOST_AWAY = 256


@dataclass(frozen=True, slots=True)
class SharedState:
    """The state of the host's admission, for the decisions that front ends take without asking.

    Attributes:
        front_ends: the front ends that have joined.
    """

    running: int
    waiting: int
    full: bool
    retry_after_s: float
    front_ends: int


class AdmissionHost:
    """One admission, with its queue and the keys' tokens a minute, that several front ends ask.

    It admits nobody until all front ends have joined, or ``settle_s`` have passed since the first one did:
    after a restart, the requests that they still run must count first.

    Args:
        admission: nobody else may use it.
        front_ends: the number of front ends that are expected.
    """

    def __init__(
        self, admission: Admission, *, front_ends: int, settle_s: float = SETTLE_S
    ) -> None:
        self._admission, self._expected, self._settle_s = admission, front_ends, settle_s
        self._joined: dict[str, Leases] = {}
        self._sessions: dict[str, str] = {}
        self._charged: dict[str, frozenset[int]] = {}
        self._told: set[str] = set()
        self._watchers: set[asyncio.Event] = set()
        self._settling: asyncio.TimerHandle | None = None
        admission.close()

    @property
    def state(self) -> SharedState:
        """The state now."""
        one = self._admission
        return SharedState(
            one.running, one.waiting, one.full, one.retry_after_s(), len(self._joined)
        )

    async def join(self, session: str, front_end: str) -> AsyncGenerator[SharedState, None]:
        """Be a front end until the iterator is left; yields the state now and when it changes.

        Args:
            front_end: its name, with which it joins again under another session.
        """
        if front_end in self._sessions:  # the end of its last connection has not been noticed
            self._end(front_end)
        self._sessions[front_end] = session
        self._joined[session] = Leases(self._admission)
        changed = asyncio.Event()
        self._watchers.add(changed)
        self._notice()
        if self._settling is None:
            loop = asyncio.get_running_loop()
            self._settling = loop.call_later(self._settle_s, self._open)
        try:
            while True:
                yield self.state
                changed.clear()
                try:
                    async with asyncio.timeout(REPEAT_S):
                        await changed.wait()
                except TimeoutError:
                    continue
                await asyncio.sleep(NOTICE_S)
        finally:
            self._watchers.discard(changed)
            if self._sessions.get(front_end) == session:
                self._end(front_end)
            self._notice()

    def _end(self, front_end: str) -> None:
        session = self._sessions.pop(front_end)
        charged = self._joined.pop(session).end()
        if session in self._told:
            self._told.discard(session)
        else:  # what was charged before is still to be told
            charged |= self._charged.pop(front_end, frozenset())
        self._charged[front_end] = charged
        if len(self._charged) > _MOST_AWAY:
            del self._charged[next(iter(self._charged))]

    async def adopt(
        self,
        session: str,
        front_end: str,
        held: list[tuple[int, Ask]],
        ended: list[tuple[int, Ask, int]],
    ) -> None:
        """Count the requests that a front end runs already; it tells them once, before it asks.

        Args:
            ended: those that ended last, with the tokens that they decoded; what the host has not been told
                of them is made up for.
        """
        leases = self._joined.get(session)
        if leases is None:
            return
        charged = self._charged.pop(front_end, frozenset())
        for number, ask, decoded in ended:
            if number in charged:
                self._admission.give_back(ask, decoded)
        for number, ask in held:
            leases.adopt(number, ask, charged=number in charged)
        self._told.add(session)
        if len(self._told) >= self._expected:
            self._open()
        self._notice()

    async def enter(self, session: str, number: int, ask: Ask) -> None:
        """Wait for the places of a request.

        Raises:
            OverloadedError, InvalidInputError: as :meth:`service.admission.admission.Admission.request`.
            NotReadyError: the front end is not joined any more.
        """
        leases = self._joined.get(session)
        self._notice()
        try:
            if leases is None:
                raise GoneError
            await leases.enter(number, ask)
        except GoneError as error:
            raise NotReadyError("the front end is not joined to these limits any more") from error
        finally:
            self._notice()

    async def leave(self, session: str, number: int, decoded: int | None, used: bool) -> None:
        """Give back the places of a request, or its place in the queue."""
        if (leases := self._joined.get(session)) is not None:
            leases.leave(number, decoded, used=used)
            self._notice()

    async def keep_only(self, session: str, numbers: list[int]) -> None:
        """Give back the places of all requests of a front end but these."""
        if (leases := self._joined.get(session)) is not None:
            leases.keep_only(numbers)
            self._notice()

    async def charge(self, caller: Caller, tokens: int) -> None:
        """Charge a caller for work that led to no answer."""
        self._admission.charge_to(caller, tokens)

    async def check_left(self, caller: Caller) -> None:
        """Check that a caller may have any token at all.

        Raises:
            OverloadedError: its tokens a minute are used up.
        """
        self._admission.check_left(caller)

    def _open(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
        self._admission.open()
        self._notice()

    def _notice(self) -> None:
        for changed in self._watchers:
            changed.set()


# The methods that front ends call.
METHODS = ("join", "adopt", "enter", "leave", "keep_only", "charge", "check_left")
