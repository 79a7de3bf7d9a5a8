"""The admission of one of several front ends, which the host of all of them decides."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import aclosing
from contextvars import Context
from dataclasses import dataclass, replace
from itertools import count
from time import monotonic
from typing import Any, Protocol
from uuid import uuid4

from service.admission.admission import Admission
from service.admission.asks import Admits, Ask, check_allowed
from service.admission.host import REPEAT_S, SharedState
from service.admission.leases import GoneError, Leases
from service.context.caller import Caller, current_caller
from vbon.errors import InvalidInputError, OverloadedError, VbonError

logger = logging.getLogger(__name__)

# Seconds between two attempts to reach the host, and those that the start waits for the first one.
AGAIN_S = 0.25
FIRST_S = 5.0
# Seconds after which fewer front ends are believed: at the start of a host they have not all joined yet.
FEWER_S = 60.0
# Requests that ended last, whose tokens the host is told of when this front end joins again.
_MOST_ENDED = 4096
# Time to retry of a request that one front end's share does not allow.
SHARE_RETRY_S = 5.0


class Link(Protocol):
    """A connection to the host, whose methods are called by name (:class:`AdmissionHost`)."""

    async def call(self, method: str, *args: Any) -> Any:
        """The result of a method; raises its error, or one of the connection."""

    def stream(self, method: str, *args: Any) -> AsyncGenerator[Any, None]:
        """The items of a method that yields some; raises its error, or one of the connection."""

    def tell(self, method: str, *args: Any) -> None:
        """Call a method without waiting for its result."""

    def close(self) -> None:
        """End the connection, and every open call with an error."""


@dataclass(frozen=True, slots=True)
class Held:
    """The places of an admitted request, by the number that this front end gave it."""

    number: int
    ask: Ask


class SharedAdmission(Admits):
    """Asks the host of several front ends for each request, and tells it when the request has ended.

    While the host is away, this front end admits by itself, within 1/F of the limits and of the keys'
    allowances for F front ends. Requests that run when the host goes or comes back go on and keep counting;
    those that wait ask again at the other place.

    Args:
        connect: opens a connection to the host.
        own: this front end's admission for so many front ends.
        front_ends: the number of front ends, until the host has told it.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Link]],
        own: Callable[[int], Admission],
        *,
        front_ends: int,
    ) -> None:
        self._connect, self._own, self._front_ends = connect, own, front_ends
        self._name, self._numbers = uuid4().hex, count(1)
        self._held: dict[int, Ask] = {}
        self._ended: dict[int, tuple[Ask, int]] = {}
        self._fewer: tuple[float, int] | None = None
        self._asking: dict[int, Ask] = {}
        self._backend: _Alone | _AtHost = _Alone(own(front_ends), front_ends)
        self._joining: asyncio.Task[None] | None = None
        self._joined = asyncio.Event()
        self._told_away = self._stopped = False

    @property
    def shared(self) -> bool:
        """True while the host decides."""
        return isinstance(self._backend, _AtHost)

    @property
    def running(self) -> int:
        """Sequences admitted, those of all front ends."""
        return self._backend.state.running

    @property
    def waiting(self) -> int:
        """Sequences waiting, those of all front ends."""
        return self._backend.state.waiting

    @property
    def own_running(self) -> int:
        """Sequences admitted, those of this front end alone."""
        return sum(ask.sequences for ask in self._held.values())

    @property
    def own_waiting(self) -> int:
        """Sequences waiting, those of this front end alone."""
        return sum(ask.sequences for ask in self._asking.values())

    @property
    def full(self) -> bool:
        """True if any request would be rejected, as far as this front end has been told."""
        return self._backend.state.full

    def retry_after_s(self) -> float:
        """Seconds until the requests now waiting are admitted, at the measured pace; 1 to 60."""
        return self._backend.state.retry_after_s

    async def start(self) -> None:
        """Join the host; if it does not answer soon, go on without it."""
        self._stopped = False
        self._joining = asyncio.create_task(
            self._stay_joined(), name="shared-limits", context=Context()
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_S):
                await self._joined.wait()

    async def stop(self) -> None:
        """Leave the host, which gives back what this front end holds."""
        # Ray turns a cancellation that meets one of its calls into an error of its own.
        self._stopped = True
        if self._joining is not None:
            self._joining.cancel()
            await asyncio.gather(self._joining, return_exceptions=True)

    async def admit(self, ask: Ask) -> Held:
        """Wait for the places of a request.

        Raises:
            OverloadedError, InvalidInputError: as :meth:`service.admission.admission.Admission.request`.
        """
        number = next(self._numbers)
        self._asking[number] = ask
        try:
            while True:
                backend = self._backend
                try:
                    await backend.enter(number, ask)
                except GoneError:
                    self._lost(backend)
                    continue
                # Otherwise the places have been given back with all that was held there.
                if backend is self._backend:
                    self._held[number] = ask
                    return Held(number, ask)
        finally:
            del self._asking[number]

    def release(self, lease: Held, decoded: int | None) -> None:
        """Give back the places of a request that has ended; once, and then no more."""
        if self._held.pop(lease.number, None) is None:
            return
        self._backend.leave(lease.number, decoded, used=True)
        if decoded is not None and lease.ask.caller.tokens_per_minute is not None:
            # The host may be away, or not hear of it on a connection that is about to end. If it has charged
            # the request, then as if that had decoded all that it may.
            self._ended[lease.number] = lease.ask, decoded
            if len(self._ended) > _MOST_ENDED:
                del self._ended[next(iter(self._ended))]

    def charge(self, tokens: int) -> None:
        """Charge the current caller for work that led to no answer, up to all it has left this minute."""
        if tokens and (caller := current_caller.get()).tokens_per_minute is not None:
            self._backend.charge(caller, tokens)

    async def check_not_used_up(self) -> None:
        """Check that the current caller may have any token at all, before work is done for it.

        Raises:
            OverloadedError: its tokens a minute are used up.
        """
        caller = current_caller.get()
        while caller.tokens_per_minute is not None:
            backend = self._backend
            try:
                await backend.check_left(caller)
                break
            except GoneError:
                self._lost(backend)

    async def _stay_joined(self) -> None:
        while True:
            link: Link | None = None
            try:
                link = await self._connect()
                await self._follow(link)
                why = "it ended the connection"
            except Exception as error:  # whatever it is, this front end goes on, and asks again
                why = str(error) or type(error).__name__
            finally:
                if link is not None:
                    link.close()
                self._go_alone()
            if self._stopped:
                return
            self._tell_away(why)
            await asyncio.sleep(AGAIN_S)

    async def _follow(self, link: Link) -> None:
        """Let the host decide for as long as the connection lasts."""
        session, told_s = uuid4().hex, monotonic()
        host: _AtHost | None = None
        async with aclosing(link.stream("join", session, self._name)) as states:
            async for state in states:
                self._learn_front_ends(state.front_ends)
                if host is None:
                    host = _AtHost(link, session, state)
                    self._go_to(host)
                host.state = state
                if monotonic() - told_s >= REPEAT_S:
                    told_s = monotonic()
                    host.keep_only([*self._held, *self._asking])

    def _learn_front_ends(self, number: int) -> None:
        """Take over the number of front ends; a smaller one after it has been smaller for some time."""
        if number >= self._front_ends:
            self._front_ends, self._fewer = number, None
            return
        since_s, most = self._fewer or (monotonic(), number)
        self._fewer = since_s, max(most, number)
        if monotonic() - since_s >= FEWER_S:
            self._front_ends, self._fewer = self._fewer[1], None

    def _go_to(self, host: _AtHost) -> None:
        ended = [(number, ask, decoded) for number, (ask, decoded) in self._ended.items()]
        host.adopt(self._name, list(self._held.items()), ended)
        before, self._backend = self._backend, host
        before.end()
        self._joined.set()
        if self._told_away:
            logger.info("the host of the shared limits is back")
            self._told_away = False

    def _go_alone(self) -> None:
        if not isinstance(self._backend, _AtHost):
            return
        self._fewer = None
        alone = _Alone(self._own(self._front_ends), self._front_ends)
        for number, ask in self._held.items():
            alone.adopt(number, ask)
        self._backend = alone

    def _lost(self, backend: _Alone | _AtHost) -> None:
        """Go on alone, if the host that did not answer is still the one that decides."""
        if backend is self._backend and isinstance(backend, _AtHost):
            self._go_alone()
            backend.end()

    def _tell_away(self, why: str) -> None:
        if not self._told_away:
            logger.warning(
                "the host of the shared limits is away (%s); this front end goes on with 1/%d of them until "
                "it is back",
                why,
                self._front_ends,
            )
            self._told_away = True


class _AtHost:
    """The host, as one front end that has joined asks it."""

    def __init__(self, link: Link, session: str, state: SharedState) -> None:
        self.state = state
        self._link, self._session = link, session

    async def enter(self, number: int, ask: Ask) -> None:
        try:
            await self._link.call("enter", self._session, number, ask)
        except asyncio.CancelledError:
            # It may have been admitted in the same moment.
            self.leave(number, 0, used=False)
            raise
        except (OverloadedError, InvalidInputError):
            raise
        except VbonError as error:
            raise GoneError from error

    def adopt(
        self,
        front_end: str,
        held: list[tuple[int, Ask]],
        ended: list[tuple[int, Ask, int]],
    ) -> None:
        self._link.tell("adopt", self._session, front_end, held, ended)

    def leave(self, number: int, decoded: int | None, *, used: bool) -> None:
        self._link.tell("leave", self._session, number, decoded, used)

    def keep_only(self, numbers: Collection[int]) -> None:
        self._link.tell("keep_only", self._session, list(numbers))

    def charge(self, caller: Caller, tokens: int) -> None:
        self._link.tell("charge", caller, tokens)

    async def check_left(self, caller: Caller) -> None:
        try:
            await self._link.call("check_left", caller)
        except OverloadedError:
            raise
        except VbonError as error:
            raise GoneError from error

    def end(self) -> None:
        self._link.close()


class _Alone:
    """This front end's share of the limits, without the host."""

    def __init__(self, admission: Admission, front_ends: int) -> None:
        self._admission, self._front_ends = admission, front_ends
        self._leases = Leases(admission)

    @property
    def state(self) -> SharedState:
        one = self._admission
        return SharedState(one.running, one.waiting, one.full, one.retry_after_s(), 1)

    async def enter(self, number: int, ask: Ask) -> None:
        check_allowed(ask)
        own = self._share_of(ask.caller)
        for most, asked, what in (
            (own.max_sequences, ask.sequences, "sequences at once"),
            (own.tokens_per_minute, ask.most_tokens, "tokens a minute"),
        ):
            if most is not None and asked > most:
                raise OverloadedError(
                    f"asked for {asked} {what}; while the host of the shared limits is away, key "
                    f"{own.name!r} may have {most} at each of {self._front_ends} front ends; retry later, or "
                    "ask for less",
                    retry_after_s=SHARE_RETRY_S,
                )
        await self._leases.enter(number, replace(ask, caller=own))

    def adopt(self, number: int, ask: Ask) -> None:
        self._leases.adopt(number, replace(ask, caller=self._share_of(ask.caller)))

    def leave(self, number: int, decoded: int | None, *, used: bool) -> None:
        self._leases.leave(number, decoded, used=used)

    def charge(self, caller: Caller, tokens: int) -> None:
        self._admission.charge_to(self._share_of(caller), tokens)

    async def check_left(self, caller: Caller) -> None:
        self._admission.check_left(self._share_of(caller))

    def end(self) -> None:
        self._leases.end()

    def _share_of(self, caller: Caller) -> Caller:
        return replace(
            caller,
            max_sequences=_share(caller.max_sequences, self._front_ends),
            tokens_per_minute=_share(caller.tokens_per_minute, self._front_ends),
        )


def _share(limit: int | None, front_ends: int) -> int | None:
    return None if limit is None else max(1, limit // front_ends)
