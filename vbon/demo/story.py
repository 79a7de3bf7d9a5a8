"""Runs ``vbon demo --distil``: live best-of-N pays for its own replacement, from nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.markup import escape

from vbon.demo.config import DemoConfig
from vbon.demo.processes import DemoFailedError, Part, ended, wait
from vbon.demo.run import MAX_TOKENS, NUM_SAMPLES, Demo
from vbon.demo.stages import Stage, Stages
from vbon.demo.traffic import Sent, Traffic
from vbon.errors import DataError
from vbon.prompt_files import read_prompt_file
from vbon.storage.atomic import write_json

STAGES = (
    Stage("make a toy policy, a reward model and a gold reward model, side by side", 100),
    Stage("start the service: best-of-16 answers all requests, and its answers are collected", 45),
    Stage("send requests as fast as best-of-16 answers, until there are enough prompts", 25),
    Stage("`vbon distil run` trains beside the service, and compares on held-out prompts", 90),
    Stage("requests move to the checkpoint step by step, on live evidence", 50),
    Stage("send the same prompts through ref, bon and vbon, then as many as vBoN answers", 30),
    Stage("the prompts change; the loop notices, trains and compares again", 130),
    Stage("requests move to the second checkpoint, if it was promoted", 50),
)
# Requests a second: the steady rate leaves most of two cores to training; the brisk one brings evidence
# sooner while nothing is trained.
_STEADY_PER_S, _BRISK_PER_S = 3.0, 8.0
_SETTLE_S, _FULL_SPEED_S = 2.0, 8.0  # at full speed: left out of the figure, and measured
_LIMIT_S = 1200.0
_SAY_EVERY_S = 20.0
# A margin that the toy can keep: its vBoN wins 0.82 to 0.87 of comparisons, best-of-16 0.94.
_MARGIN, _SHARES, _SHADOW_SHARE = 0.15, (0.25, 1.0), 0.25
# The second round would wait for more than the short prompts that are left, so only their change starts it.
_MIN_PROMPTS, _EVERY = 180, 300
_MOST_OF_SHORT = 0.6  # of the short prompts, a fifth never trains
_TRAINING = {"steps": 100, "prompts_per_step": 8, "samples_per_prompt": 4}
_POLICY = "vbon"  # the name of the live checkpoint, which `vbon compare` knows
RESULT = "distil-story.json"


def run_story(config: DemoConfig) -> None:
    """Run the story; return when it is told (``--once``) or interrupted.

    Raises:
        DataError: the port is taken. DemoFailedError: a part failed, or no checkpoint took over.
    """
    with ExitStack() as parts:
        # A directory of its own: it needs more prompts than the plain demo.
        own = config.model_copy(update={"out": config.out / "distil"})
        DistilStory(own, parts).run()


@dataclass
class Moments:
    """Numbers of requests at the turns of the story; ``None`` for what has not happened."""

    takeover: int | None = None
    change: int | None = None
    noticed: int | None = None
    second: int | None = None


class DistilStory(Demo):
    """A run of the story."""

    def __init__(self, config: DemoConfig, parts: ExitStack) -> None:
        super().__init__(config, parts)
        self.stages = Stages(STAGES, self.console)
        self.collected = self.out / "collected"
        self.key_file = self.out / "admin.key"
        self.moments = Moments()
        self.min_prompts = _MIN_PROMPTS
        self.per_s: dict[str, float] = {}  # requests a second at full speed, by who answered
        self._said_s, self._before = time.monotonic(), Sent()

    def run(self) -> None:
        """Run all stages and tell what came of them."""
        self._check_port()
        with self.stages.next():
            self._start(*self._warm_imports(), niceness=19)
            models = self._start("models", *self._sandbox(), *self._more_prompts())
            wait(self.console, [models], lambda: ended(models))
        short, longer = self._prompts()
        self.min_prompts = min(_MIN_PROMPTS, int(_MOST_OF_SHORT * len(short)))
        with self.stages.next():
            self._forget_earlier_story()
            self._make_key()
            service = self._start("service", *self._serve())
            wait(self.console, [service], self._ready, needs=[service])
            self._show_first_answer()
        traffic = self._traffic(short)
        self._parts.callback(traffic.stop)
        # The service is busy meanwhile: on two cores, 20 steps took 18 s with one thread, and 114 s with two.
        loop = self._start("loop", *self._loop(), threads=max(1, (os.cpu_count() or 2) // 2))
        needs = [service, loop]
        with self.stages.next():
            traffic.start()
            self._collect_at_full_speed(traffic, needs)
        with self.stages.next():
            traffic.pace(_STEADY_PER_S)
            self._until(lambda: self._decided(1), traffic, needs)
            self._show_decision(1)
        with self.stages.next():
            traffic.pace(_BRISK_PER_S)
            self._until(lambda: self._rollout()["live"] is not None, traffic, needs)
            self.moments.takeover = traffic.snapshot().requests
            self.console.print(
                f"      vBoN answers all requests since request {self.moments.takeover}"
            )
        with self.stages.next():
            traffic.pace(0)
            self._shown("the comparison", *self._compare(service))
            self._answer_at_full_speed(short, traffic)
        with self.stages.next():
            self.moments.change = traffic.snapshot().requests
            traffic.change(longer)
            traffic.pace(_BRISK_PER_S)
            self._until(lambda: self._noticed(traffic), traffic, needs)
            traffic.pace(_STEADY_PER_S)
            self._until(lambda: self._decided(2), traffic, needs)
            self._show_decision(2)
        with self.stages.next():
            traffic.pace(_BRISK_PER_S)
            self._until(lambda: self._settled(2), traffic, needs)
            if self._rollout()["live"] == "0002":
                self.moments.second = traffic.snapshot().requests
        traffic.stop()
        self._tell(traffic.snapshot())
        if not self.config.once:
            self._stay(service)

    # -- parts

    def _more_prompts(self) -> list[str]:
        return ["--train-prompts", "900", "--heldout-prompts", "64"]

    def _prompts(self) -> tuple[list[str], list[str]]:
        """The prompts before the change, which are short, and those after it, which are longer."""
        file = read_prompt_file(self.out / "prompts" / "train.jsonl")
        texts = [prompt.key for prompt in file.distinct()]
        return halves(texts)

    def _forget_earlier_story(self) -> None:
        """Begin from nothing: a story that was told before has collected and trained already."""
        shutil.rmtree(self.collected, ignore_errors=True)
        (self.out / "distil.db").unlink(missing_ok=True)

    def _make_key(self) -> None:
        """Make an admin's key, without which nobody may submit checkpoints."""
        keys = self.out / "keys.jsonl"
        keys.unlink(missing_ok=True)
        words = ["service", "keys", "add", "story", "--role", "admin", "--file", str(keys)]
        made = subprocess.run(
            [sys.executable, "-m", *words], capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise DemoFailedError(f"no key could be made: {made.stderr}")
        self.key_file.touch(mode=0o600)
        self.key_file.write_text(made.stdout)

    def _curl_key(self) -> str:
        return f' -H "Authorization: Bearer $(cat {self.key_file})"'

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key_file.read_text().strip()}"}

    def _serve(self) -> list[str]:
        shares = [word for share in _SHARES for word in ("--distil.shares", str(share))]
        return [
            *("service", "serve", "--host", self.config.host, "--port", str(self.config.port)),
            *("--engine.enforce-eager", "--store", self._path("distil.db")),
            *("--policies", f"ref={self._path('policy')}", "--reward", self._path("reward")),
            *("--gold", self._path("gold"), "--default-n", str(NUM_SAMPLES)),
            *("--default-max-tokens", MAX_TOKENS),
            *("--auth.keys-file", self._path("keys.jsonl")),
            *("--distil.dir", str(self.collected), "--distil.policy", _POLICY, *shares),
            *("--distil.margin", str(_MARGIN), "--distil.shadow-share", str(_SHADOW_SHARE)),
        ]

    def _loop(self) -> list[str]:
        return [
            *("vbon", "distil", "run", str(self.collected), "--url", self.url, "--poll-s", "1"),
            *("--key-file", str(self.key_file)),
            *("--gold", self._path("gold"), "--min-prompts", str(self.min_prompts)),
            *("--every", str(_EVERY), "--heldout-prompts", "64", "--margin", "0.05"),
            *("--training", json.dumps(_TRAINING)),
        ]

    # -- requests

    def _traffic(self, prompts: list[str]) -> Traffic:
        return Traffic(
            self.url, prompts, per_s=None, max_tokens=int(MAX_TOKENS), headers=self._headers()
        )

    def _collect_at_full_speed(self, traffic: Traffic, needs: list[Part]) -> None:
        """Let best-of-N answer as fast as it can until the loop has enough prompts, and show how fast."""
        time.sleep(_SETTLE_S)
        before, begun_s = traffic.snapshot(), time.monotonic()
        # A fast machine may have enough by now, and the rate is of one request at least.
        self._until(
            lambda: self._has_collected(1) and traffic.snapshot().requests > before.requests,
            traffic,
            needs,
        )
        count = traffic.snapshot().requests - before.requests
        self.per_s["bon"] = count / (time.monotonic() - begun_s)
        self.console.print(
            f"      best-of-{NUM_SAMPLES} answers {self.per_s['bon']:.0f} requests a second at full speed",
            highlight=False,
        )

    def _answer_at_full_speed(self, prompts: list[str], traffic: Traffic) -> None:
        """Show how many requests vBoN answers now; they are not counted in the costs of the story."""
        burst = self._traffic(prompts)
        self._parts.callback(burst.stop)
        burst.start()
        time.sleep(_SETTLE_S)
        before, begun_s = burst.snapshot(), time.monotonic()
        time.sleep(_FULL_SPEED_S)
        count = burst.snapshot().requests - before.requests
        self.per_s["vbon"] = count / (time.monotonic() - begun_s)
        burst.stop()
        sent = burst.snapshot()
        if sent.failed:
            raise DemoFailedError(f"{sent.failed} requests failed: {sent.failures[0]}")
        before_s, now_s = self.per_s["bon"], self.per_s["vbon"]
        self.console.print(
            f"      vBoN answers {now_s:.0f} requests a second at full speed; before, best-of-{NUM_SAMPLES} "
            f"answered {before_s:.0f}: {now_s / before_s:.1f} times as many",
            style="bold",
            highlight=False,
        )

    # -- waiting

    def _until(self, done: Callable[[], bool], traffic: Traffic, needs: list[Part]) -> None:
        """Wait, and show what the requests cost meanwhile."""
        limit_s = time.monotonic() + _LIMIT_S
        with self.console.status("") as status:
            while not done():
                for part in needs:
                    if part.process.poll() is not None:
                        raise part.failure()
                if time.monotonic() > limit_s:
                    raise DemoFailedError(
                        f"nothing came of it in {_LIMIT_S:.0f} s; see {self.out / 'logs' / 'loop.log'}"
                    )
                status.update(escape(needs[-1].last_line()[:100]))
                if time.monotonic() - self._said_s > _SAY_EVERY_S:
                    self._say_cost(traffic.snapshot())
                time.sleep(0.5)

    def _say_cost(self, now: Sent) -> None:
        """Print the rate and the cost of the requests since the last line."""
        before, seconds = self._before, time.monotonic() - self._said_s
        count = now.requests - before.requests
        self._before, self._said_s = now, time.monotonic()
        if not count:
            return
        arms = ", ".join(f"{arm} {n / count:.0%}" for arm, n in (now.arms - before.arms).items())
        tokens = (now.tokens.total() - before.tokens.total()) / count
        failed = f"; {now.failed} failed" if now.failed else ""
        self.console.print(
            f"      {now.requests} requests; the last {count} ({count / seconds:.1f} a second): "
            f"{tokens:.0f} tokens each, answered by {arms}{failed}",
            style="dim",
            highlight=False,
        )

    def _rounds(self) -> list[dict[str, Any]]:
        try:
            text = (self.collected / "rounds" / "state.json").read_text(encoding="utf-8")
        except OSError:
            return []
        return list(json.loads(text)["rounds"])

    def _has_collected(self, number: int) -> bool:
        """True once a round has enough prompts."""
        rounds = self._rounds()
        return len(rounds) >= number and rounds[number - 1]["step"] != "collect"

    def _decided(self, number: int) -> bool:
        """True once a round has ended; a first one that was refused ends the story."""
        rounds = self._rounds()
        if len(rounds) < number or rounds[number - 1]["step"] != "done":
            return False
        one = rounds[number - 1]
        if number == 1 and one["verdict"] != "promote":
            why = one["refused"] or one["verdict"]
            raise DemoFailedError(f"the first checkpoint was not promoted: {why}")
        return True

    def _noticed(self, traffic: Traffic) -> bool:
        rounds = self._rounds()
        if len(rounds) < 2:
            return False
        if self.moments.noticed is None and (rounds[1]["why"] or rounds[1]["step"] != "collect"):
            self.moments.noticed = traffic.snapshot().requests
            why = rounds[1]["why"] or "the second round has enough prompts"
            self.console.print(f"      {why}", highlight=False, markup=False)
        return self.moments.noticed is not None

    def _settled(self, number: int) -> bool:
        """True once the service has done with a round's checkpoint what it can."""
        name = f"{number:04d}"
        found = next((one for one in self._rollout()["checkpoints"] if one["id"] == name), None)
        return (
            found is None
            or (found["status"] != "rolling" and found["approved"] is None)
            or (found["status"] in ("live", "refused", "rolled_back", "retired"))
        )

    def _rollout(self) -> dict[str, Any]:
        url = f"{self.url}/distil/checkpoints"
        answer = httpx.get(url, headers=self._headers(), timeout=60)
        return dict(answer.raise_for_status().json())

    # -- what came of it

    def _show_decision(self, number: int) -> None:
        file = self.collected / "rounds" / f"{number:04d}" / "decision.json"
        if not file.exists():
            return
        decision = json.loads(file.read_text(encoding="utf-8"))
        figures = decision["figures"]
        rate, best = figures["candidate"]["win_rate"], figures["bon"]["win_rate"]
        self.console.print(
            f"      {decision['verdict']}: win rate {rate['mean']:.3f} "
            f"[{rate['low']:.3f}, {rate['high']:.3f}] over the reference policy, "
            f"best-of-{NUM_SAMPLES} {best['mean']:.3f}",
            highlight=False,
            markup=False,
        )

    def _speed(self) -> str:
        each = " requests a second at full speed"
        before, now = self.per_s.get("bon"), self.per_s.get("vbon")
        return f"{before or 0:.0f}{each} before, {now or 0:.0f} afterwards"

    def _tell(self, sent: Sent) -> None:
        """Print the figures of the story, and write them to a file."""
        rollout, rounds, moments = self._rollout(), self._rounds(), self.moments
        best = sent.tokens["bon"] / max(1, sent.arms["bon"])
        answered = sent.requests - sent.failed
        spent = {
            "answers": sent.tokens.total(),
            "shadows": rollout["shadows"]["tokens"],
            "training": rollout["training_tokens"],
        }
        total, always = sum(spent.values()), best * answered
        win_rate = _live_win_rate(rollout["checkpoints"])
        held = win_rate / (NUM_SAMPLES / (NUM_SAMPLES + 1)) if win_rate else None
        after = sent.tokens["live"] / max(1, sent.arms["live"])
        # Of each later request: what best-of-N would cost, less its answer and its part of the shadows.
        saved = best - after - _SHADOW_SHARE * best
        result = {
            "requests": sent.requests,
            "failed": sent.failed,
            "requests_per_s_at_full_speed": self.per_s,
            "took_over_after": moments.takeover,
            "prompts_changed_at": moments.change,
            "change_noticed_at": moments.noticed,
            "second_took_over_at": moments.second,
            "drift": rounds[1]["why"] if len(rounds) > 1 else None,
            "live": rollout["live"],
            "live_win_rate": win_rate,
            "share_of_best_of_n": held,
            "tokens": {**spent, "total": total, "always_best_of_n": always},
            "tokens_a_request": {"best-of-n": best, "live": after},
            "pays_back_after": max(0.0, (total - always) / saved) if saved > 0 else None,
            "rounds": [
                {k: one[k] for k in ("number", "verdict", "status", "seconds")} for one in rounds
            ],
        }
        write_json(Path(self.out / RESULT), result)
        share = "not measured" if held is None else f"{held:.0%} of best-of-{NUM_SAMPLES}'s"
        noticed = (
            ""
            if moments.noticed is None
            else (f", noticed {moments.noticed - (moments.change or 0)} requests later")
        )
        ratio = total / always if always else 0.0
        lines = [
            f"requests: {sent.requests}, failed: {sent.failed}",
            f"vBoN took over after {moments.takeover} requests",
            self._speed(),
            f"live win rate over the reference policy: {win_rate or float('nan'):.3f}, {share}",
            f"the prompts changed at request {moments.change}{noticed}: "
            f"{result['drift'] or 'no drift was found'}",
            f"tokens a request: {best:.0f} of best-of-{NUM_SAMPLES}, {after:.0f} of vBoN",
            f"tokens of the whole story: {total:,.0f} (answers {spent['answers']:,}, comparisons "
            f"{spent['shadows']:,}, training {spent['training']:,}); always best-of-{NUM_SAMPLES}: "
            f"{always:,.0f}, so {ratio:.2f} times",
        ]
        if saved > 0 and total > always:
            lines.append(f"it pays back after {(total - always) / saved:,.0f} further requests")
        self.console.print()
        for line in lines:
            self.console.print(f"  {line}", highlight=False, markup=False)
        self.console.print(
            f"\nall of it took {self.stages.elapsed_s:.0f} s; figures: {self.out / RESULT}",
            highlight=False,
        )
        for failure in sent.failures:
            self.console.print(f"  failed: {failure}", markup=False)
        if sent.failed:
            raise DemoFailedError(f"{sent.failed} requests failed")


def halves(texts: list[str]) -> tuple[list[str], list[str]]:
    """Texts of few words and those of more, as equally many as word counts allow.

    Raises:
        DataError: all have equally many words.
    """
    counts = [len(text.split()) for text in texts]
    limits = sorted(set(counts))[:-1]
    if not limits:
        raise DataError(
            "all prompts have equally many words, so they cannot change; give another --corpus"
        )
    limit = min(limits, key=lambda most: abs(sum(n <= most for n in counts) - len(counts) / 2))
    short = [text for text, n in zip(texts, counts, strict=True) if n <= limit]
    return short, [text for text, n in zip(texts, counts, strict=True) if n > limit]


def _live_win_rate(checkpoints: list[dict[str, Any]]) -> float | None:
    """The mean over all comparisons of checkpoints while they were live; ``None`` without any."""
    seen = [
        (one["evidence"]["shadows"], one["evidence"]["win_rate"])
        for one in checkpoints
        if one["was_live"] and one["evidence"]["shadows"]
    ]
    count = sum(shadows for shadows, _ in seen)
    return sum(shadows * rate for shadows, rate in seen) / count if count else None
