"""The processes that serve one part, as this process is connected to them, and the choice among them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from service.wire.client import WireClient
from service.wire.errors import ConnectionLostError, LeavingError, WireError
from service.wire.interface import Interface
from service.wire.timing import Timing
from vbon.engine.affinity import Load, Placement, PrefixAffinity, least_busy
from vbon.errors import CheckpointError

logger = logging.getLogger(__name__)

# Seconds before a connection is tried again, doubled each time up to the second.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0

State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a server of the wire, and the secret that it asks for."""

    url: str
    secret: str


class Replica(Generic[State]):
    """One process, and the calls of this one that are under way in it.

    Attributes:
        state: the last that the method ``watch`` told; ``None`` without a connection.
        in_flight: sequences (of a reward model: texts) that this process has sent and that have not ended.
        served: those that have ended.
    """

    def __init__(self, name: str, address: Address, interface: Interface, timing: Timing) -> None:
        self.name, self.address = name, address
        self.client = WireClient(address.url, interface, secret=address.secret, timing=timing)
        self.state: State | None = None
        self.in_flight = self.served = 0
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def takes_calls(self) -> bool:
        """True if it is connected, has told its state and is not about to end."""
        return self.state is not None and self.client.connected and not self.client.leaving

    @contextmanager
    def load(self, sequences: int) -> Iterator[None]:
        """Count sequences as being in flight until their call ends."""
        self.in_flight += sequences
        self.idle.clear()
        try:
            yield
        finally:
            self.in_flight -= sequences
            self.served += sequences
            if self.in_flight == 0:
                self.idle.set()


class Replicas(Generic[State]):
    """The replicas of one part. Connections that are lost are made again until :meth:`set` leaves them out.

    Attributes:
        listeners: called whenever a replica comes, goes or tells another state.

    Args:
        owner: the part in words, for errors.
        interface: of the servers; it has a method ``watch``, which yields a replica's state.
        capacity: sequences that a replica decodes at once, for the choice by prefix.
        all_per_own: tells how many sequences all front ends have for each one that this process has sent.
    """

    def __init__(
        self,
        owner: str,
        interface: Interface,
        *,
        capacity: int = 1,
        placement: Placement = "least-busy",
        all_per_own: Callable[[], float] = lambda: 1.0,
        timing: Timing | None = None,
    ) -> None:
        self.owner = owner
        self._interface, self._capacity = interface, capacity
        self._timing, self._all_per_own = timing or Timing(), all_per_own
        self._affinity = PrefixAffinity() if placement == "prefix" else None
        self._replicas: dict[str, Replica[State]] = {}
        self._tasks: dict[asyncio.Task[None], Replica[State]] = {}
        self._changed = asyncio.Event()
        self._users = 0
        self.listeners: list[Callable[[], None]] = []

    async def use(self) -> None:
        """Begin to use the replicas; who does calls :meth:`release` in the end."""
        self._users += 1
        if self._users == 1:
            await self.begin()

    async def release(self) -> None:
        """End one use; after the last one, all connections are closed."""
        self._users -= 1
        if self._users == 0:
            await self.close()

    async def begin(self) -> None:
        """Find the replicas and :meth:`set` them."""

    def set(self, addresses: Mapping[str, Address]) -> None:
        """Use these replicas from now on. Calls in flight at others end there."""
        for name, replica in list(self._replicas.items()):
            if addresses.get(name) != replica.address:
                del self._replicas[name]
                self._forget(name)
                for task, kept in self._tasks.items():
                    if kept is replica:
                        task.cancel()
        for name, address in addresses.items():
            if name not in self._replicas:
                replica = Replica[State](name, address, self._interface, self._timing)
                self._replicas[name] = replica
                task = asyncio.create_task(self._keep(replica), context=Context())
                self._tasks[task] = replica
                task.add_done_callback(lambda task: self._tasks.pop(task, None))
        self._tell_change()

    @property
    def names(self) -> Collection[str]:
        """The names of those that are in use, connected or not."""
        return self._replicas.keys()

    def address_of(self, name: str) -> Address:
        """The address of one of those in use."""
        return self._replicas[name].address

    def ready(self, usable: Callable[[State], bool] = lambda _: True) -> list[Replica[State]]:
        """The replicas that take calls and have a state that is usable."""
        return [
            one
            for one in self._replicas.values()
            if one.state is not None and one.takes_calls and usable(one.state)
        ]

    def choose(
        self,
        usable: Callable[[State], bool] = lambda _: True,
        *,
        sequences: int = 1,
        token_ids: Sequence[int] | None = None,
        tried: Collection[str] = (),
    ) -> Replica[State] | None:
        """The replica for a call; ``None`` if no replica takes calls.

        Args:
            token_ids: of the prompt, for sequences that go where its prefix is.
            tried: names of replicas that failed in this call; they are chosen only if there are no others.
        """
        found = self.ready(usable)
        found = [one for one in found if one.name not in tried] or found
        loads = [Load(one.name, one.in_flight, self._capacity, one.served) for one in found]
        if self._affinity is None or token_ids is None:
            name = least_busy(loads)
        elif len(loads) == 1:
            name = loads[0].name
        else:
            group = self._affinity.group(token_ids)
            name = group.choose(loads, sequences, self._all_per_own())
        return None if name is None else self._replicas[name]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition is true, which is looked at whenever a replica changes."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """Close all connections; what is in flight ends with an error."""
        self.set({})
        for replica in list(self._tasks.values()):
            replica.client.close()
        await asyncio.gather(*list(self._tasks), return_exceptions=True)

    async def _keep(self, replica: Replica[State]) -> None:
        """Stay connected to a replica; when cancelled, let its calls end and close the connection."""
        try:
            pause_s, told = _FIRST_PAUSE_S, ""
            while True:
                with contextlib.suppress(ConnectionLostError):
                    try:
                        await replica.client.connect()
                    except ConnectionLostError as error:
                        # Otherwise nobody listens, which those who start replicas know.
                        if error.__cause__ is None and str(error) != told:
                            told = str(error)
                            logger.warning("%s: a replica refuses to be used: %s", self.owner, told)
                        raise
                    pause_s = _FIRST_PAUSE_S
                    await self._follow(replica)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        except asyncio.CancelledError:
            replica.state = None
            await self._until_idle(replica)
            raise
        finally:
            replica.client.close()

    async def _follow(self, replica: Replica[State]) -> None:
        """Follow what a replica tells of itself until the connection is lost."""
        try:
            async for state in replica.client.stream("watch"):
                replica.state = state
                self._tell_change()
        except LeavingError:
            pass
        except WireError as error:
            if not isinstance(error, ConnectionLostError):
                logger.error("%s: a replica is of no use: %s", self.owner, error)
        finally:
            replica.state = None
            self._forget(replica.name)
            self._tell_change()
        # Calls that are under way in a replica that is about to end still end there.
        await replica.client.lost()

    async def _until_idle(self, replica: Replica[State]) -> None:
        idle = asyncio.ensure_future(replica.idle.wait())
        lost = asyncio.ensure_future(replica.client.lost())
        try:
            await asyncio.wait({idle, lost}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            idle.cancel()
            lost.cancel()

    def _forget(self, name: str) -> None:
        if self._affinity is not None:
            self._affinity.forget(name)

    def _tell_change(self) -> None:
        self._changed.set()
        for listener in list(self.listeners):
            listener()


class ReplicasInUse(Generic[State]):
    """The use that an engine or a scorer makes of replicas, from its start to its stop.

    Args:
        learn: called whenever a replica changes, from the start on.
        start_timeout_s: seconds in which :meth:`start` waits for the first replica.
        remedy: the end of the error if there was none.
    """

    def __init__(
        self,
        replicas: Replicas[State],
        learn: Callable[[], None],
        start_timeout_s: float,
        remedy: str,
    ) -> None:
        self._replicas, self._learn = replicas, learn
        self._start_timeout_s, self._remedy = start_timeout_s, remedy
        self._begun = False

    async def start(self, owner: str, ready: Callable[[], object]) -> None:
        """Wait until the replicas of ``owner`` are ready; may be called again.

        Raises:
            CheckpointError: no replica was ready in time.
        """
        if not self._begun:
            self._begun = True
            await self._replicas.use()
            self._replicas.listeners.append(self._learn)
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await self._replicas.until(ready)
        except TimeoutError as error:
            raise CheckpointError(
                f"no replica of {owner} was ready within {self._start_timeout_s:g} s; {self._remedy}"
            ) from error
        self._learn()

    async def stop(self) -> None:
        """End the use, if it has begun."""
        if self._begun:
            self._begun = False
            self._replicas.listeners.remove(self._learn)
            await self._replicas.release()


class FixedReplicas(Replicas[State]):
    """Replicas whose addresses are known, such as one process of the same machine.

    Args:
        addresses: of the replicas, by their names; other arguments are those of :class:`Replicas`.
    """

    def __init__(
        self, owner: str, interface: Interface, addresses: Mapping[str, Address], **options: Any
    ) -> None:
        super().__init__(owner, interface, **options)
        self._addresses = addresses

    async def begin(self) -> None:
        """Connect to all of them."""
        self.set(self._addresses)
