"""Serve's router of a policy's calls, which applies the rule of :mod:`vbon.engine.affinity`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from service.fleet import registry
from vbon.engine.affinity import Load, PrefixAffinity, least_busy

# Calls whose replicas are remembered, in case that they are made again.
_MOST_TRIED = 4_096


class PolicyRouter(RequestRouter):
    """Sends the sequences of a prompt to a replica that has its prefix, other calls to the least busy one.

    A call's keyword ``sequences`` is the number of sequences that it decodes; with ``affinity``, its first
    argument is the prompt's token ids. Calls with the same keyword ``retry_of`` go to different replicas.
    Loads are the sequences that this front end has in flight.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Take the deployment's ``capacity``, the sequences of a replica, and its ``placement``."""
        self._capacity = int(kwargs["capacity"])
        self._affinity = PrefixAffinity() if kwargs["placement"] == "prefix" else None
        self._sent: dict[str, tuple[str, int]] = {}
        self._tried: OrderedDict[str, set[str]] = OrderedDict()
        self._in_flight: dict[str, int] = {}
        self._served: dict[str, int] = {}
        # Serve copies this class with this module's values; only other modules are the process's own.
        registry.ROUTERS[self._deployment_id.app_name, self._deployment_id.name] = self

    @property
    def replicas(self) -> int:
        """The number of replicas that take calls."""
        return len(self.curr_replicas)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The chosen replica first, and all others after it."""
        if pending_request is not None:
            # Serve tries these ranks again after a pause, instead of at once.
            pending_request.routing_context.should_backoff = True
            self._discount(pending_request.metadata.internal_request_id)
        by_name = {one.replica_id.unique_id: one for one in candidate_replicas}
        loads = [
            Load(name, self._in_flight.get(name, 0), self._capacity, self._served.get(name, 0))
            for name in by_name
        ]
        tried = self._tried.get(_retry_of(pending_request), set())
        name = self._choose(
            [load for load in loads if load.name not in tried] or loads, pending_request
        )
        if name is None:
            return []
        # From now on, because Serve tells of a call only once its replica has answered that it takes it.
        if pending_request is not None and not pending_request.future.done():
            self._count(pending_request, name)
        others = [one for other, one in by_name.items() if other != name]
        return [[by_name[name]], others]

    def _choose(self, loads: Sequence[Load], request: PendingRequest | None) -> str | None:
        if request is None or self._affinity is None or not request.kwargs.get("affinity"):
            return least_busy(loads)
        group = self._affinity.group(request.args[0])
        return group.choose(loads, _sequences(request))

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, **options: Any
    ) -> RunningReplica:
        """Serve's own choice; a caller that leaves while it waits for it leaves no load."""
        try:
            return await super()._choose_replica_for_request(pending_request, **options)
        except BaseException:
            self._discount(pending_request.metadata.internal_request_id)
            raise

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """Remember which replica has taken a call, which may be another one than was chosen first."""
        name = replica_id.unique_id
        if call := _retry_of(pending_request):
            self._tried.setdefault(call, set()).add(name)
        while len(self._tried) > _MOST_TRIED:
            self._tried.popitem(last=False)
        self._served[name] = self._served.get(name, 0) + _sequences(pending_request)
        # A short call may have ended already.
        if pending_request.metadata.internal_request_id in self._sent:
            self._count(pending_request, name)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Discount the sequences of a call that has ended in any way."""
        self._discount(internal_request_id)

    def _count(self, request: PendingRequest, name: str) -> None:
        """Count the sequences of a call at one replica, and no longer at one that was chosen before."""
        identity, count = request.metadata.internal_request_id, _sequences(request)
        self._discount(identity)
        self._sent[identity] = name, count
        self._in_flight[name] = self._in_flight.get(name, 0) + count

    def _discount(self, identity: str) -> None:
        name, count = self._sent.pop(identity, ("", 0))
        if name in self._in_flight:
            self._in_flight[name] -= count

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take the replicas that Serve runs now, and forget those that are gone."""
        super().update_replicas(replicas)
        names = {one.replica_id.unique_id for one in replicas}
        for name in self._in_flight.keys() - names:
            self._forget(name)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Forget a replica that has died."""
        super().on_replica_actor_died(replica_id)
        self._forget(replica_id.unique_id)

    def _forget(self, name: str) -> None:
        self._sent = {call: sent for call, sent in self._sent.items() if sent[0] != name}
        self._in_flight.pop(name, None)
        self._served.pop(name, None)
        if self._affinity is not None:
            self._affinity.forget(name)


def _retry_of(request: PendingRequest | None) -> str:
    found = None if request is None else request.kwargs.get("retry_of")
    return str(found) if found else ""


def _sequences(request: PendingRequest) -> int:
    return int(request.kwargs.get("sequences", 1))
