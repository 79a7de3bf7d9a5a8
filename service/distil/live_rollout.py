"""The rollout of checkpoints in a running service: its state, engines, router and comparisons together."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service.distil.auto_router import AutoRouter
from service.distil.keeper import RolloutKeeper
from service.distil.rollout import Rollout
from service.distil.rollout_parts import Event, Models, RolloutPlan, Status
from service.distil.served import NotLoadedError, ServedCheckpoints, Wanted
from service.distil.shadows import Shadowed, Shadows
from service.distil.submitted import submitted
from service.runtime.reload import ModelBuilder
from service.runtime.routing import Routing
from service.runtime.runtime import Runtime
from service.settings import REFERENCE
from service.store.async_store import AsyncStore
from vbon.distil.decision import Decision, Spent
from vbon.errors import InvalidInputError
from vbon.threads import in_own_thread

logger = logging.getLogger(__name__)

MODELS_S = 0.5  # between two looks at the models in use
PAUSE_S = 5.0  # after an error that nobody foresaw
LOOK_S = 2.0  # for the directories of checkpoints, which may be on another machine


@dataclass(frozen=True, slots=True)
class Seen:
    """The status of a checkpoint, and the step of its rollout, as a caller has seen them."""

    status: Status
    step: int | None = None


class LiveRollout:
    """Serves checkpoints that are submitted, and moves requests of mode ``auto`` to them and back.

    Decisions change which arm answers at once, and the engines follow.

    Attributes:
        rollbacks: checkpoints that were rolled back since the start, by reason.
        lora_rank: highest rank of adapters that the reference policy's engine has room for, if it has any.
    """

    def __init__(self, runtime: Runtime, builder: ModelBuilder, store: AsyncStore) -> None:
        settings = runtime.settings.distil
        assert settings.policy is not None  # callers make a rollout only for a policy
        assert settings.dir is not None  # checked with the settings
        self.settings, self._runtime = settings, runtime
        self.plan = RolloutPlan(
            n=runtime.settings.auto_n,
            margin=settings.margin,
            shares=tuple(settings.shares),
            alpha=settings.alpha,
            run_length=settings.run_length,
            approve=settings.approve,
        )
        # A reference policy on another server takes no adapters.
        remote = runtime.settings.policies[REFERENCE].startswith(("http://", "https://"))
        self.lora_rank = None if remote else settings.lora_rank
        self._directory = Path(settings.dir).expanduser()
        self.keeper = RolloutKeeper(store, self.plan, self._on_events)
        live, following = settings.policies
        self.served = ServedCheckpoints(runtime, builder, (live, following), self._wanted)
        self.shadows = Shadows(runtime, self._on_shadow)
        self.router = AutoRouter(settings, self.keeper, self.served, self.shadows)
        self.rollbacks: Counter[str] = Counter(
            dict.fromkeys(("win_rate", "fall", "person", "failed"), 0)
        )
        self._models: Models | None = None  # that the state knows of
        self._changed = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[set[str]] | None = None
        runtime.router = self.router

    def start(self) -> None:
        """Read the state from the store and serve its checkpoints; returns at once."""
        self.keeper.start()
        self._following = asyncio.create_task(self._follow(), name="serve-checkpoints")

    async def stop(self) -> None:
        """Stop comparisons and loading, and store the state. The runtime stops the engines that it serves."""
        await self.shadows.stop()
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self.served.stop()
        await self.keeper.stop()

    async def submit(self, path: str, decision: Decision) -> str:
        """Take in a checkpoint of the trainer, and return its id; the same one again changes nothing.

        Raises:
            InvalidInputError: the path or its files cannot be used, or another checkpoint has this id.
            StoreError: it cannot be stored now.
        """
        self.keeper.check_read()
        reference = self._runtime.policies[REFERENCE].info.path
        found = await in_own_thread(
            "check-model", submitted, self._directory, path, decision, reference
        )
        known = self.keeper.records.get(found.id)
        if known is not None and known.revision != found.revision:
            raise InvalidInputError(
                f"checkpoint {found.id} was submitted with revision {known.revision}, and its directory "
                f"holds {found.revision} now; checkpoints never change, so write this one to another round",
                field="path",
            )
        await self.keeper.decide(lambda rollout: rollout.submit(found.id, decision.verdict), found)
        return found.id

    async def promote(self, name: str, seen: Seen | None = None) -> None:
        """Start the rollout of a checkpoint, or move one that is rolled out to its next step.

        The same request again changes nothing, since the checkpoint is not as it was seen any more.

        Args:
            seen: status and step that the caller knows of. Without it, a rollout is started and never moved.

        Raises:
            NotFoundError: there is none of this id.
            InvalidInputError: its directory was removed.
            StoreError: it cannot be stored now.
        """
        await self._check_there(name, "id")
        await self.keeper.decide(lambda rollout: _promoted(rollout, name, seen))

    async def refuse(self, name: str) -> None:
        """Refuse a waiting checkpoint, or roll back one that is rolled out.

        Raises:
            NotFoundError: there is none of this id.
            InvalidInputError: it is live, or was.
            StoreError: it cannot be stored now.
        """
        self.keeper.record(name)
        await self.keeper.decide(lambda rollout: rollout.refuse(name))

    async def roll_back(self, to: str | None) -> None:
        """Give all requests to a checkpoint that was live before, or to best-of-N; takes effect at once.

        Raises:
            NotFoundError: there is none of this id.
            InvalidInputError: it has never been live, or its directory was removed.
            StoreError: the state of the rollout is not known.
        """
        if to is not None:
            await self._check_there(to, "to")
        await self.keeper.decide_at_once(lambda rollout: rollout.roll_back(to))

    async def removed(self, *names: str) -> Collection[str]:
        """The ids of the checkpoints, all or these, whose directories do not exist any more.

        None is counted as removed while the file system does not answer, or answers with an error.
        """
        keeper = self.keeper
        paths = {name: keeper.record(name).path for name in names or keeper.records}
        if (before := self._looking) is not None and not before.done():
            # A thread that hangs in the file system cannot be ended, so no further one joins it.
            await asyncio.wait({before}, timeout=LOOK_S)
            if not before.done():
                return set()
        look = in_own_thread("look-for-checkpoints", _removed, paths)
        self._looking = looking = asyncio.create_task(look, name="look-for-checkpoints")
        await asyncio.wait({looking}, timeout=LOOK_S)
        return looking.result() if looking.done() else set()

    async def _check_there(self, name: str, field: str) -> None:
        if await self.removed(name):
            raise InvalidInputError(
                f"the directory of checkpoint {name} was removed (vbon distil run --keep-rounds); put it "
                f"back at {self.keeper.record(name).path}, or name another checkpoint",
                field=field,
            )

    @property
    def stored(self) -> bool:
        """True if the store has every decision."""
        return self.keeper.read and self.keeper.stored

    @property
    def spent(self) -> Spent:
        """The cost of all submitted checkpoints."""
        costs = [
            Spent.model_validate(one.decision["spent"]) for one in self.keeper.records.values()
        ]
        return Spent(
            training_s=sum(one.training_s for one in costs), tokens=sum(one.tokens for one in costs)
        )

    def arms(self) -> list[Routing]:
        """Each arm with the share of the requests of mode ``auto`` that it gets now."""
        rollout, loaded = self.keeper.rollout, self.served.names
        rolling = rollout.rolling if rollout.rolling and rollout.rolling.id in loaded else None
        live = rollout.live if rollout.live and rollout.live.id in loaded else None
        step = None if rolling is None else rolling.step
        share = 0.0 if step is None else self.plan.shares[step]
        return [
            Routing("bon", 0.0 if live else 1 - share),
            Routing("live", 1 - share if live else 0.0, None, live.id if live else None),
            Routing("next", share, step, rolling.id if rolling else None),
        ]

    def _wanted(self) -> dict[str, Wanted]:
        rollout = self.keeper.rollout
        found = {}
        for name, chosen in zip(
            self.settings.policies, (rollout.live, rollout.rolling), strict=True
        ):
            record = None if chosen is None else self.keeper.records.get(chosen.id)
            if record is not None:
                found[name] = Wanted(record.id, record.path, record.revision)
        return found

    def _on_events(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.kind in ("started", "restarted", "live"):
                self.shadows.begun[event.checkpoint] += 1
            if event.kind == "rolled_back":
                self.rollbacks[str(event.detail["reason"])] += 1
                logger.warning(
                    "checkpoint %s was rolled back (%s)", event.checkpoint, event.detail["reason"]
                )
        self._changed.set()

    def _on_shadow(self, found: Shadowed) -> None:
        if not found.failed:
            self.keeper.totals.shadowed(found.arm, found.tokens, self.plan.n)
        elif found.arm == "bon":  # the checkpoint that is rolled out failed a comparison
            self.keeper.totals.failures["next"] += 1
        self._see_models()
        self.keeper.observe(found.checkpoint, found.win_rate, flat=found.flat)

    def _see_models(self) -> None:
        """Have the tests begin anew if the reference policy or the reward model is another one now."""
        runtime = self._runtime
        if runtime.reward is not None:
            reference = runtime.policies[REFERENCE].info.revision
            models = Models(reference, runtime.reward.revision)
            if self.keeper.read and models != self._models:
                self._models = models
                self.keeper.see_models(models)

    async def _follow(self) -> None:
        """Serve the checkpoints of the state, again after every change."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(MODELS_S):
                    await self._changed.wait()
            self._see_models()
            if not self._changed.is_set():
                continue
            self._changed.clear()
            try:
                await self.served.follow()
            except NotLoadedError as error:
                logger.error("checkpoint %s cannot be served: %s", error.checkpoint, error)
                self.keeper.fail(error.checkpoint, str(error))
                self._changed.set()  # others may be wanted too
            except Exception:  # the state stays, and the next attempt may succeed
                logger.exception("could not serve the checkpoints of the rollout")
                self._changed.set()
                await asyncio.sleep(PAUSE_S)


def _removed(paths: Mapping[str, str]) -> set[str]:
    """The names whose directories do not exist, where the file system can tell."""
    found = set()
    for name, path in paths.items():
        with suppress(OSError):  # no permission, or a mount that has gone stale
            if not Path(path).is_dir():
                found.add(name)
    return found


def _promoted(rollout: Rollout, name: str, seen: Seen | None) -> list[Event]:
    """Promote a checkpoint that is still as the caller has seen it."""
    found = rollout.checkpoint(name)
    if seen is None:
        return [] if found.status == "rolling" else rollout.promote(name)
    return rollout.promote(name) if Seen(found.status, found.step) == seen else []
