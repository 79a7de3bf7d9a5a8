r"""State machine of a rollout: which checkpoint answers which share of the traffic, and when that changes.

It does no I/O and knows no engine and no clock. The service uses it as follows:

- At a start: ``Rollout(plan)`` the first time; later ``Rollout.from_json(text)``, then ``change_plan(plan)``.
- For each request, ``route(conversation, loaded)`` names the arm and the checkpoint that answers. ``loaded``
  are the ids of checkpoints whose engines can answer now. So a checkpoint that is still being loaded gets no
  traffic, and a checkpoint that becomes live is answered by the engine that it has.
- For each shadowed answer, ``observe(checkpoint, win_rate)`` with the share of reference candidates that it
  beats.
- At a start and after each reload, ``see_models(models)``, since evidence holds for these models alone.
- For persons and the trainer, ``submit``, ``promote``, ``refuse`` and ``roll_back``; for a checkpoint that
  cannot be loaded, ``fail``.
- All of these return events. If there are any, the service stores them and ``to_json()`` in one transaction,
  and then makes the engines those of ``live`` and ``rolling``; routing has changed already. Evidence without
  events may be stored now and then: what a crash loses is only evidence.

The life of a checkpoint::

    submit -> waiting -> rolling (each share but the last) -> live (the last share) -> retired
           \-> refused         \-> rolled_back                     \-> rolled_back

There is at most one live and one rolling checkpoint. A person may promote a checkpoint of any status; it then
begins at the first share, with new evidence.

Errors: a checkpoint's win rate over the reference policy may be ``margin`` below the N/(N+1) of best-of-N
(``RolloutPlan.threshold``). While it rolls, one whose win rate is at least the threshold is rolled back
with probability ``alpha`` at most, over all steps together. One whose win rate is at most the threshold
becomes live with probability ``alpha`` at most; each step needs evidence of its own. Once live, the mean
number of shadowed answers before a false alarm is at least ``run_length`` (:mod:`vbon.maths.sequential`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from service.distil.rollout_parts import (
    MOST_JUDGED,
    Approval,
    Checkpoint,
    Event,
    Evidence,
    Models,
    RollbackReason,
    RolloutPlan,
    Route,
    Status,
)
from vbon.distil.decision import Verdict
from vbon.errors import InvalidInputError, NotFoundError, StoreError
from vbon.maths.sequential import FallDetector, MeanEvidence, Side

VERSION = 1


@dataclass(frozen=True, slots=True)
class _Version:
    """The part of the JSON text that every version has."""

    version: int


@dataclass(frozen=True, slots=True)
class _State(_Version):
    """The content of the JSON text."""

    plan: RolloutPlan
    checkpoints: list[Checkpoint]
    models: Models | None = None


_VERSION, _STATE = TypeAdapter(_Version), TypeAdapter(_State)


class Rollout:
    """All checkpoints of a service, and the traffic that each gets."""

    def __init__(self, plan: RolloutPlan) -> None:
        self._plan = plan
        self._checkpoints: dict[str, Checkpoint] = {}  # in the order of submission
        self._models: Models | None = None

    # -- what there is

    @property
    def plan(self) -> RolloutPlan:
        """The settings in use."""
        return self._plan

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """All checkpoints, oldest first."""
        return tuple(self._checkpoints.values())

    @property
    def live(self) -> Checkpoint | None:
        """The checkpoint that answers what the rolling one does not."""
        return self._only("live")

    @property
    def rolling(self) -> Checkpoint | None:
        """The checkpoint that is being rolled out."""
        return self._only("rolling")

    def checkpoint(self, name: str) -> Checkpoint:
        """The checkpoint with this id.

        Raises:
            NotFoundError: there is none.
        """
        if name not in self._checkpoints:
            raise NotFoundError(
                f"there is no checkpoint {name!r}; GET /distil/checkpoints lists all"
            )
        return self._checkpoints[name]

    def evidence(self, name: str) -> Evidence:
        """The state of a checkpoint's tests."""
        found, plan = self.checkpoint(name), self._plan
        mean = found.wins / found.shadows if found.shadows else None
        if found.good is not None and found.bad is not None:
            needed = -math.log(plan.alpha)
            return Evidence(found.shadows, mean, found.good.log_e, found.bad.log_e, needed)
        if found.fall is not None:
            fall = found.fall.log_e if found.fall.count else None
            return Evidence(
                found.shadows,
                mean,
                good=None if found.good is None else found.good.log_e,
                needed=-math.log(plan.alpha) if found.good else None,
                fall=fall,
                fall_needed=math.log(plan.run_length),
                verified=found.good is None,
            )
        return Evidence(found.shadows, mean)

    # -- each request

    def route(self, conversation: str, loaded: Collection[str]) -> Route:
        """The arm that answers a request of ``mode=auto``.

        Args:
            conversation: text that all requests of a conversation share, such as its first message; they stay
                on one arm during a step, and those of a smaller share stay on it when the share grows.
            loaded: ids of the checkpoints whose engines can answer now.
        """
        rolling, live = self.rolling, self.live
        share, step = 0.0, None
        if rolling is not None and rolling.id in loaded:
            assert rolling.step is not None  # a rolling checkpoint is on a step
            share, step = self._plan.shares[rolling.step], rolling.step
            if _fraction(f"{rolling.id}\n{conversation}") < share:
                return Route("next", rolling.id, share, step)
        if live is not None and live.id in loaded:
            return Route("live", live.id, 1 - share, step)
        return Route("bon", None, 1 - share, step)

    def shadow_probability(self, route: Route, shadow_share: float) -> float:
        """Probability with which to shadow an answer, so that each arm's shadows are a share of all traffic.

        While a checkpoint has a small share of the traffic, more of its answers are shadowed, up to all of
        them. Evidence then comes as fast as later, and shadows cost the same.
        """
        return 0.0 if route.checkpoint is None else min(1.0, shadow_share / route.share)

    def observe(self, checkpoint: str, win_rate: float, *, flat: bool = False) -> list[Event]:
        """Take in a shadowed answer; events are an advance or a rollback, or nothing.

        Args:
            checkpoint: the one that answered. If it does not answer any more, the observation is left out.
            win_rate: share of the reference candidates with a lower reward, ties counted half, and what
                best-of-N gives up to ties among them; :data:`MOST_JUDGED` at most.
            flat: all rewards were equal, so nothing was compared. This counts nothing for the checkpoint, or
                a reward model that returns a constant would promote anything.

        Raises:
            ValueError: the win rate is outside this range.
        """
        found = self.checkpoint(checkpoint)
        if found.status not in ("rolling", "live"):
            return []
        proven = min(win_rate, self._plan.threshold) if flat else win_rate
        found = replace(
            found,
            shadows=found.shadows + 1,
            wins=found.wins + win_rate,
            good=found.good and found.good.observe(proven),
            bad=found.bad and found.bad.observe(win_rate),
            fall=found.fall and found.fall.observe(win_rate),
        )
        self._checkpoints[checkpoint] = found
        return list(self._act(found))

    # -- the trainer and persons

    def submit(self, name: str, verdict: Verdict) -> list[Event]:
        """Add a checkpoint; the same id again changes nothing.

        One whose verdict is ``promote`` starts by itself, unless a person must approve. One that is
        ``undecided`` waits for a person.
        """
        if name in self._checkpoints:
            return []
        by_itself = verdict == "promote" and not self._plan.approve
        approved: Approval | None = "decision" if by_itself else None
        status: Status = "refused" if verdict == "refuse" else "waiting"
        self._checkpoints[name] = Checkpoint(name, status, approved)
        events = [Event("submitted", name, {"verdict": verdict})]
        if status == "refused":
            events.append(Event("refused", name, {"reason": "decision"}))
        return [*events, *self._fill()]

    def promote(self, name: str) -> list[Event]:
        """Approve a checkpoint as a person, or move one that rolls to its next step whatever its evidence."""
        found = self.checkpoint(name)
        if found.status == "rolling":
            return self.advance("person")
        if found.status == "live" or (found.status == "waiting" and found.approved == "person"):
            return []
        self._checkpoints[name] = replace(found, status="waiting", approved="person")
        return [Event("approved", name), *self._fill()]

    def refuse(self, name: str) -> list[Event]:
        """Refuse a checkpoint as a person; one that rolls is rolled back. A second time changes nothing.

        Raises:
            InvalidInputError: it is live, or was.
        """
        found = self.checkpoint(name)
        if found.status in ("refused", "rolled_back"):
            return []
        if found.status == "rolling":
            return [*self._withdraw(found, "person"), *self._fill()]
        if found.status != "waiting":
            raise InvalidInputError(
                f"checkpoint {name} is {found.status}; only waiting and rolling ones can be refused, and "
                f"POST /distil/rollback takes traffic from a live one",
                field="id",
            )
        self._checkpoints[name] = replace(found, status="refused", approved=None)
        return [Event("refused", name, {"reason": "person"})]

    def advance(self, reason: Literal["evidence", "person"] = "person") -> list[Event]:
        """Move the rolling checkpoint to its next step; at the last share it is live."""
        rolling = self.rolling
        if rolling is None or rolling.step is None:
            raise InvalidInputError("no checkpoint is being rolled out", field="id")
        events = list(self._enter(rolling, rolling.step + 1, reason))
        return [*events, *self._fill()]

    def roll_back(self, to: str | None) -> list[Event]:
        """Give all traffic to a checkpoint that was live before, or to best-of-N, as a person.

        All others that answer are rolled back, and waiting ones wait for a person from now on.

        Raises:
            NotFoundError: there is no such checkpoint.
            InvalidInputError: it has never been live.
        """
        target = None if to is None else self.checkpoint(to)
        if target is not None and not target.was_live:
            raise InvalidInputError(
                f"checkpoint {to} has never been live; promote it, so that it begins at the first share",
                field="to",
            )
        for waiting in self._having("waiting"):
            self._checkpoints[waiting.id] = replace(waiting, approved=None)
        answering = [c for c in (self.rolling, self.live) if c is not None and c.id != to]
        events = [event for found in answering for event in self._withdraw(found, "person")]
        if target is not None and target.status != "live":
            events += self._make_live(target, "person")
        return events

    def fail(self, name: str, message: str) -> list[Event]:
        """Take traffic from a checkpoint that cannot be loaded or whose engine fails for good."""
        found = self.checkpoint(name)
        if found.status not in ("rolling", "live"):
            return []
        return [*self._withdraw(found, "failed", message), *self._fill()]

    # -- settings and JSON

    def change_plan(self, plan: RolloutPlan) -> list[Event]:
        """Use other settings; tests whose threshold or steps have changed begin anew."""
        before, self._plan = self._plan, plan
        events: list[Event] = []
        if plan.approve:  # what has not begun needs a person from now on
            for waiting in self._having("waiting"):
                if waiting.approved == "decision":
                    self._checkpoints[waiting.id] = replace(waiting, approved=None)
        live, rolling = self.live, self.rolling
        kept = [one.fall or one.bad for one in (live, rolling) if one is not None]
        # An earlier release took no observation above 1.
        other_range = any(one is not None and one.most != MOST_JUDGED for one in kept)
        if other_range or (before.threshold, before.shares) != (plan.threshold, plan.shares):
            events += self._restart("the settings")
        return [*events, *self._fill()]

    def see_models(self, models: Models) -> list[Event]:
        """Take note of the models in use. If they have changed, what is known of checkpoints holds no longer.

        The rolling checkpoint begins at the first share, with new evidence. The live one goes on, is watched
        anew, and counts as not verified until its evidence would let a rolling one advance.
        """
        before, self._models = self._models, models
        changed = "" if before is None else before.changed_to(models)
        if not changed:
            return []
        if (live := self.live) is not None:
            self._checkpoints[live.id] = replace(live, good=_evidence(self._plan, "above"))
        return list(self._restart(changed))

    def _restart(self, changed: str) -> Iterator[Event]:
        """Begin all tests anew, because of what has changed."""
        plan, live, rolling = self._plan, self.live, self.rolling
        if live is not None:
            good = None if live.good is None else _evidence(plan, "above")
            fresh = replace(live, fall=_fall_detector(plan), good=good, shadows=0, wins=0.0)
            self._checkpoints[live.id] = fresh
            yield Event("restarted", live.id, {"reason": changed, **self._measured(live)})
        if rolling is not None:
            yield Event("restarted", rolling.id, {"reason": changed, **self._measured(rolling)})
            yield from self._start(rolling)

    def to_json(self) -> str:
        """The whole state."""
        state = _State(VERSION, self._plan, list(self.checkpoints), self._models)
        return _STATE.dump_json(state).decode()

    @classmethod
    def from_json(cls, text: str) -> Rollout:
        """The state that :meth:`to_json` wrote.

        Raises:
            StoreError: the text is damaged, or of another version of this project.
        """
        try:
            version = _VERSION.validate_json(text).version
            if version != VERSION:
                raise StoreError(
                    f"the rollout in the store has version {version}, and this program reads {VERSION}; "
                    f"use a release that reads it"
                )
            state = _STATE.validate_json(text)
        except (ValidationError, InvalidInputError) as error:
            raise StoreError(f"the rollout in the store cannot be read: {error}") from error
        rollout = cls(state.plan)
        rollout._checkpoints = {found.id: found for found in state.checkpoints}
        rollout._models = state.models
        if any(len(rollout._having(status)) > 1 for status in ("live", "rolling")):
            raise StoreError("the rollout in the store has two live or two rolling checkpoints")
        return rollout

    # -- steps

    def _having(self, status: Status) -> list[Checkpoint]:
        return [found for found in self._checkpoints.values() if found.status == status]

    def _only(self, status: Status) -> Checkpoint | None:
        found = self._having(status)
        assert len(found) <= 1  # each transition keeps this
        return found[0] if found else None

    def _act(self, found: Checkpoint) -> Iterator[Event]:
        """Do what the evidence of a checkpoint demands."""
        plan = self._plan
        if found.bad is not None and found.bad.rejects(plan.alpha):
            yield from self._withdraw(found, "win_rate")
            yield from self._fill()
        elif found.status == "rolling" and found.good and found.good.rejects(plan.alpha):
            yield from self.advance("evidence")
        elif found.fall is not None and found.fall.alarms(plan.run_length):
            yield from self._withdraw(found, "fall")
        elif found.good is not None and found.good.rejects(plan.alpha):  # it is live
            self._checkpoints[found.id] = replace(found, good=None)
            yield Event("verified", found.id, self._measured(found))

    def _fill(self) -> list[Event]:
        """Start an approved checkpoint if none rolls; older ones that wait are retired.

        The newest is started, but those that persons approved go first.
        """
        waiting = self._having("waiting")
        ready = [found for found in waiting if found.approved]
        if self.rolling is not None or not ready:
            return []
        chosen = max(ready, key=lambda found: (found.approved == "person", waiting.index(found)))
        older = waiting[: waiting.index(chosen)]
        events = [self._retire(found, f"superseded by {chosen.id}") for found in older]
        return [*events, Event("started", chosen.id), *self._start(chosen)]

    def _start(self, found: Checkpoint) -> Iterator[Event]:
        fresh = replace(
            found,
            shadows=0,
            wins=0.0,
            why=None,
            bad=_evidence(self._plan, "below"),
        )
        return self._enter(fresh, 0, None)

    def _enter(self, found: Checkpoint, step: int, reason: str | None) -> Iterator[Event]:
        """Put a checkpoint on a step; the last one makes it live."""
        plan = self._plan
        if step >= len(plan.shares) - 1:
            yield from self._make_live(found, reason)
            return
        self._checkpoints[found.id] = replace(
            found,
            status="rolling",
            step=step,
            good=_evidence(plan, "above"),
        )
        detail = {"step": step, "share": plan.shares[step], "reason": reason}
        yield Event("advanced", found.id, {**detail, **self._measured(found)})

    def _make_live(self, found: Checkpoint, reason: str | None) -> Iterator[Event]:
        if (before := self.live) is not None:
            yield self._retire(before, f"replaced by {found.id}")
        self._checkpoints[found.id] = replace(
            _idle(found),
            status="live",
            was_live=True,
            shadows=0,
            wins=0.0,
            why=None,
            fall=_fall_detector(self._plan),
        )
        yield Event("live", found.id, {"reason": reason, **self._measured(found)})

    def _retire(self, found: Checkpoint, reason: str) -> Event:
        self._checkpoints[found.id] = replace(_idle(found), status="retired", approved=None)
        return Event("retired", found.id, {"reason": reason})

    def _withdraw(
        self, found: Checkpoint, reason: RollbackReason, message: str | None = None
    ) -> Iterator[Event]:
        self._checkpoints[found.id] = replace(
            _idle(found), status="rolled_back", approved=None, why=reason
        )
        detail = {"reason": reason, "from": found.status, "message": message}
        yield Event("rolled_back", found.id, {**detail, **self._measured(found)})

    def _measured(self, found: Checkpoint) -> dict[str, float | None]:
        mean = found.wins / found.shadows if found.shadows else None
        return {"shadows": found.shadows, "win_rate": mean, "threshold": self._plan.threshold}


def _evidence(plan: RolloutPlan, side: Side) -> MeanEvidence:
    return MeanEvidence(plan.threshold, side, most=MOST_JUDGED)


def _fall_detector(plan: RolloutPlan) -> FallDetector:
    return FallDetector(plan.threshold, most=MOST_JUDGED)


def _idle(found: Checkpoint) -> Checkpoint:
    """The checkpoint without tests in progress."""
    return replace(found, step=None, good=None, bad=None, fall=None)


def _fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
