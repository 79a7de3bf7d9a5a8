"""The loop of ``vbon distil run``: one round after the other, from the state that the last start has left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from vbon.distil.cache import MOST_OF_ONE_PROMPT
from vbon.distil.loop.config import DistilRunConfig
from vbon.distil.loop.drift import FEWEST, LOOKS, MOST, find_drift, looks_due
from vbon.distil.loop.prune import prune
from vbon.distil.loop.recipe import least_samples
from vbon.distil.loop.reporting import Reporter
from vbon.distil.loop.rounds import RoundSteps
from vbon.distil.loop.service import FINAL, ServedRollout, Service, open_service
from vbon.distil.loop.state import ROUNDS, STATE, TITLES, LoopState, Round
from vbon.distil.loop.stream import Collected, Stream
from vbon.errors import DataError
from vbon.storage.atomic import write_errors
from vbon.storage.locks import sole_writer
from vbon.study.steps import command
from vbon.terminal import duration, table_console

_SAY_EVERY_S = 60.0  # seconds between two lines about waiting
_REMEDY = "stop that loop, or wait for it to end"


def run_loop(config: DistilRunConfig) -> None:
    """Run rounds until interrupted, or one with ``--once``.

    Raises:
        DataError: the directory or its state cannot be used.
        StepFailedError: a command failed. ServiceRefusedError: the service refused.
    """
    if not config.dir.is_dir():
        raise DataError(
            f"{config.dir} is not a directory of collected answers (vbon serve --distil.dir)"
        )
    console = table_console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    rounds = config.dir / ROUNDS
    with write_errors(rounds):
        rounds.mkdir(mode=0o700, exist_ok=True)  # caches contain prompts
    with sole_writer(rounds / STATE, remedy=_REMEDY):
        Loop(config, open_service(config, say), console, Tools()).run()


@dataclass(frozen=True, slots=True)
class Tools:
    """Things that tests replace: how commands run, how time passes."""

    command: Callable[..., None] = command
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.time


class Loop:
    """A loop and its rounds; one process at a time runs it."""

    def __init__(
        self, config: DistilRunConfig, service: Service | None, console: Console, tools: Tools
    ) -> None:
        self.config, self.service, self.console, self.tools = config, service, console, tools
        self.directory = config.dir / ROUNDS
        self.state = LoopState.read(self.directory)
        self.stream = Stream(config.dir, config.heldout_share, sealed_only=service is None)
        self.reporter = Reporter(service)
        self._said_s = -_SAY_EVERY_S
        self._fell = False  # the live checkpoint's quality fell, and no round has begun since

    def run(self) -> None:
        """Run rounds."""
        self._prune()
        try:
            self._run_rounds()
        except KeyboardInterrupt:
            self._stopped()
            raise
        # After an error nothing is told, so that the last report becomes stale, which somebody notices.
        self._stopped()

    def _stopped(self) -> None:
        if self.state.rounds:
            self.reporter.stopped(self.state.rounds[-1].id)

    def _run_rounds(self) -> None:
        while True:
            current = self.state.current or self._begin()
            steps = RoundSteps(
                self.config,
                self.state,
                current,
                service=self.service,
                command=self.tools.command,
                say=self.say,
            )
            while current.step != "done":
                self._do(steps, current)
            self._show(current)
            self._prune()
            if self.config.once:
                with self.reporter.during(current.id, "done", None):
                    self._follow(current)
                return

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, highlight=False, markup=False)

    def save(self) -> None:
        """Write the state."""
        self.state.write(self.directory)

    def _prune(self) -> None:
        """Remove old checkpoints, and say which."""
        if all(one.step != "done" for one in self.state.rounds):
            return
        removed, freed = prune(self.directory, self.state, self.rollout(), self.config.keep_rounds)
        if removed:
            self.say(
                f"removed old checkpoints ({', '.join(removed)}; {freed / 1e6:,.1f} MB); the newest "
                f"{self.config.keep_rounds} stay (--keep-rounds), and those that answer, wait or are gone "
                "back to"
            )

    def _begin(self) -> Round:
        """A new round, whose id neither this directory nor the service has used."""
        used = [one.number for one in self.state.rounds]
        rollout = self.service.rollout() if self.service else None
        if rollout is not None:
            used += [int(one.id) for one in rollout.checkpoints if one.id.isdecimal()]
        fresh = Round(number=max(used, default=0) + 1)
        self.state.rounds.append(fresh)
        self.save()
        return fresh

    def _do(self, steps: RoundSteps, current: Round) -> None:
        """Do the next step of a round, and write that it is done."""
        step = current.step
        expected = self.state.expected_s(step) if step != "collect" else None
        about = f" (about {duration(expected)})" if expected else ""
        following = f"; next: {TITLES[current.following]}" if current.following != "done" else ""
        title = f"round {current.id}: {TITLES[step]}{about}{following}"
        self.console.rule(title, align="left", style="dim")
        begun_s = time.perf_counter()
        try:
            if step == "collect":
                going_on = self._collect(current)
            else:
                with self.reporter.during(current.id, step, expected):
                    going_on = steps.run(step)
        finally:
            spent = current.seconds.get(step, 0.0) + time.perf_counter() - begun_s
            current.seconds[step] = round(spent, 1)
        current.step = current.following if going_on else "done"
        if current.step == "done":
            steps.clean_up()
        self.save()

    # -- waiting

    def _collect(self, current: Round) -> bool:
        """Wait until a round is due; remember of which answers."""
        while True:
            self._watch()
            begun_s = time.perf_counter()
            collected = self.stream.newest()
            took_s = time.perf_counter() - begun_s
            if collected is not None and self._is_due(current, collected):
                current.identity = collected.identity.digest
                current.n = self.config.n or collected.num_samples
                self._fell = False
                return True
            if collected is None:
                self.reporter.waits(
                    current.id, 0, self.config.min_prompts, None, self.config.poll_s
                )
            # Reading a large open shard again and again must not take a core.
            self.tools.sleep(max(self.config.poll_s, 20 * took_s))

    def _is_due(self, current: Round, collected: Collected) -> bool:
        """True if there are enough new prompts, or fewer and a reason not to wait; says how many."""
        seen_s = self._seen_s(collected)
        wanted = self.config.min_prompts if seen_s is None else self.config.later
        num_samples = self.config.n or collected.num_samples
        least = least_samples(self.config.objective, num_samples)
        new = collected.to_train_on(least, seen_s) if num_samples > 1 else []
        if len(new) >= wanted:
            self.say(f"{len(new):,} new prompts of {wanted:,}")
            return True
        if self._fell and len(new) >= FEWEST:
            current.why = "the win rate of the live checkpoint has fallen"
        elif seen_s is not None and looks_due(len(new), wanted) > current.looked:
            current.looked = looks_due(len(new), wanted)
            self.save()  # a look that is taken again would not keep the level
            trained_s = self._trained_s(collected) or seen_s
            before, after = collected.asked_around(trained_s, MOST)
            drift = find_drift(before, after, self.config.drift_alpha / len(LOOKS))
            if drift is not None:
                current.why = f"the prompts have changed since the last training: {drift}"
        if current.why is not None:
            self.say(f"{current.why}; the round begins with {len(new):,} of {wanted:,} new prompts")
            return True
        left_s = self._left_s(collected, len(new), wanted, seen_s)
        self.reporter.waits(current.id, len(new), wanted, left_s, self.config.poll_s)
        self._say_waiting(collected, len(new), wanted, left_s)
        return False

    def _seen_s(self, collected: Collected) -> float | None:
        """Unix time of the newest answer of this identity that a round has used; ``None`` if none has."""
        return self._latest(collected, self.state.rounds)

    def _trained_s(self, collected: Collected) -> float | None:
        return self._latest(collected, self.state.trained)

    @staticmethod
    def _latest(collected: Collected, rounds: list[Round]) -> float | None:
        digest = collected.identity.digest
        times = [one.newest_s for one in rounds if one.identity == digest and one.newest_s]
        return max(times, default=None)

    def _left_s(
        self, collected: Collected, new_prompts: int, wanted: int, since_s: float | None
    ) -> float | None:
        """Seconds until there are enough new prompts, if they go on coming as they did."""
        now_s = self.tools.clock()
        begun_s = since_s or min((one.time_s for one in collected.prompts.values()), default=now_s)
        if not new_prompts or now_s <= begun_s:
            return None
        return (wanted - new_prompts) * (now_s - begun_s) / new_prompts

    def _say_waiting(
        self, collected: Collected, new_prompts: int, wanted: int, left_s: float | None
    ) -> None:
        now_s = self.tools.clock()
        if now_s - self._said_s < _SAY_EVERY_S:
            return
        self._said_s = now_s
        left = "" if left_s is None else f", about {duration(left_s)} left"
        self.say(
            f"{new_prompts:,} of {wanted:,} new prompts to train on, from {len(collected.asked):,} "
            f"answers in all{left}"
        )
        answers, share = len(collected.asked), collected.largest_share
        if answers >= FEWEST and share > MOST_OF_ONE_PROMPT:
            # Such prompts are one, so without a word the loop would seem to wait for nothing.
            self.say(
                f"warning: one prompt makes up {share:.0%} of the {answers:,} answers, and counts once; if "
                "it is a health check, send it with store: false"
            )

    # -- what the service does

    def rollout(self) -> ServedRollout | None:
        """The rollout of the service; ``None`` without a service that serves checkpoints."""
        return self.service.rollout() if self.service else None

    def _watch(self) -> ServedRollout | None:
        """Look at what has become of the submitted checkpoints, and say what has changed."""
        followed = [one for one in self.state.rounds if one.status is not None]
        if not followed:
            return None
        rollout = self.rollout()
        if rollout is None:
            return None
        changed = False
        for one in followed:
            now = rollout.checkpoint(one.id)
            if now is None or str(now) == one.status:
                continue
            self.say(f"checkpoint {one.id}: {now}")
            one.status, changed = str(now), True
            self._fell |= now.status == "rolled_back" and now.why == "fall"
        if changed:
            self.save()
        return rollout

    def _follow(self, current: Round) -> None:
        """Wait until the service has done with a checkpoint what it can do without a person."""
        while current.status is not None:
            rollout = self._watch()
            found = rollout.checkpoint(current.id) if rollout else None
            if found is None or found.status in FINAL:
                return
            if found.status == "waiting" and found.approved is None:
                self.say(
                    f"checkpoint {current.id} waits for a person (vbon distil promote {current.id})"
                )
                return
            self.tools.sleep(self.config.poll_s)

    def _show(self, current: Round) -> None:
        """Say how a round has ended."""
        if current.refused:
            self.say(f"round {current.id} was not trained:")
            for reason in current.refused:
                self.say(f"  - {reason}")
            return
        took = sum(s for step, s in current.seconds.items() if step != "collect")
        self.say(f"round {current.id}: {current.verdict}, after {duration(took)}")
