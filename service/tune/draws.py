"""Draws candidates of prompts, and answers of modes that change what is drawn."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from service.tune.drawing import (
    Drawing,
    Drawn,
    PromptCandidates,
    candidates_of,
    read_drawn,
    write_drawn,
)
from service.tune.replay import Opponents
from service.tune.server import Asker, RequestFailedError
from service.tune.setting import BON, Measured, Setting
from vbon.concurrency import all_or_first_error
from vbon.errors import VbonError
from vbon.maths.seeds import seed_of
from vbon.measured.target import Metric
from vbon.prompts import Prompt

_MOST_FAILED = 0.2  # of a drawing's prompts; of more it says little, and the trial fails


class DrawingFailedError(VbonError):
    """Too many requests of a drawing or of a live setting failed; the message counts them by kind."""


class PromptPart:
    """Prompts with one role: to tune, to validate or to test on.

    Args:
        name: the role; draws of different roles have different seeds.
    """

    def __init__(
        self, name: str, prompts: Sequence[Prompt], asker: Asker, directory: Path, seed: int
    ) -> None:
        self.name, self.prompts = name, list(prompts)
        self._asker, self._directory, self._seed = asker, directory, seed
        self._identity = {**asker.served.identity, "prompts": digest_of_prompts(prompts)}

    async def draw(self, drawing: Drawing, n: int, purpose: str = "") -> Drawn:
        """Draw n candidates of each prompt, or read those that were kept.

        Args:
            purpose: tells drawings apart that must not share candidates.

        Raises:
            DrawingFailedError: more than a fifth of the requests failed.
            ServerError: the server's models have changed.
        """
        path = self._directory / f"{self.name}-{purpose}{drawing.key}-{n}.json"
        identity = {**self._identity, "seed": self._seed}
        kept = read_drawn(path, identity)
        if kept is not None:
            return kept
        begun = perf_counter()
        body: dict[str, Any] = {**drawing.sampling, "n": n, "return_candidates": True}
        if self._asker.served.gold is not None:
            body["gold"] = True
        errors: Counter[str] = Counter()

        async def one(place: int) -> PromptCandidates | None:
            seed = self._seed_of(f"{purpose}{drawing.key}", place)
            mode = f"/generate?mode={BON}&policy={drawing.policy}"
            try:
                answer = await self._asker.ask(mode, self.prompts[place], {**body, "seed": seed})
                found = candidates_of(answer, seed)
            except RequestFailedError as error:
                errors[str(error)] += 1
                return None
            except (KeyError, TypeError, ValueError):
                errors["malformed answer"] += 1
                return None
            return found if found.count == n else None

        prompts = await all_or_first_error(one(place) for place in range(len(self.prompts)))
        drawn = Drawn(drawing, n, tuple(prompts), dict(errors), perf_counter() - begun)
        _check(drawing.label, len(drawn.known), len(prompts), errors)
        if all(np.isnan(one.rewards).all() for _, one in drawn.known):
            raise DrawingFailedError(f"{drawing.label}: no candidate could be scored")
        write_drawn(path, drawn, identity)
        return drawn

    async def measure_live(
        self, setting: Setting, opponents: Opponents | None = None, samples: int = 2
    ) -> Measured:
        """Answer each prompt some times with a mode that changes what is drawn.

        Raises:
            DrawingFailedError: more than a fifth of the requests failed, or none could be scored.
            ServerError: the server's models have changed.
        """
        body: dict[str, Any] = dict(setting.body)
        if self._asker.served.gold is not None:
            body["gold"] = True
        errors: Counter[str] = Counter()
        unscored = 0

        async def one(place: int, sample: int) -> tuple[float, float, float] | None:
            nonlocal unscored
            seed = self._seed_of(f"{setting.label}/{sample}", place)
            try:
                answer = await self._asker.ask(
                    setting.path, self.prompts[place], {**body, "seed": seed}
                )
                reward, gold = answer["reward"], answer.get("gold_reward")
                tokens = float(answer["usage"]["generated_tokens"])
            except RequestFailedError as error:
                errors[str(error)] += 1
                return None
            except (KeyError, TypeError, ValueError):
                errors["malformed answer"] += 1
                return None
            unscored += reward is None
            return _number(reward), _number(gold), tokens

        count = len(self.prompts)
        answers = await all_or_first_error(one(p, s) for p in range(count) for s in range(samples))
        by_prompt = [answers[p * samples : (p + 1) * samples] for p in range(count)]
        known = [[one for one in own if one is not None] for own in by_prompt]
        _check(setting.label, sum(map(len, known)), count * samples, errors)
        gains: dict[Metric, Any] = {
            "reward": np.array([_mean(own, 0) for own in known]),
            "gold": np.array([_mean(own, 1) for own in known]),
        }
        if opponents is not None:
            gains["win-rate"] = np.array(
                [_wins(own, opponents.rewards[place]) for place, own in enumerate(known)]
            )
        if np.isnan(gains["reward"]).all():
            raise DrawingFailedError(f"{setting.label}: no answer could be scored")
        tokens = np.array([_mean(own, 2) for own in known])
        failed = sum(not own for own in known)
        return Measured(setting, gains, tokens, failed=failed, unscored=unscored)

    def _seed_of(self, purpose: str, place: int) -> int:
        return seed_of(f"{self._seed}/{self.name}/{purpose}/{place}")


def digest_of_prompts(prompts: Sequence[Prompt]) -> str:
    """A hash of the prompts' texts, in order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(prompt.key.encode() + b"\0")
    return digest.hexdigest()


def _check(label: str, answered: int, asked: int, errors: Mapping[str, int]) -> None:
    failed = asked - answered
    if failed > _MOST_FAILED * asked or not answered:
        kinds = ", ".join(f"{count} x {kind}" for kind, count in errors.items()) or "wrong counts"
        raise DrawingFailedError(f"{label}: {failed} of {asked} requests failed ({kinds})")


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _mean(answers: Sequence[tuple[float, float, float]], place: int) -> float:
    values = [one[place] for one in answers if not math.isnan(one[place])]
    return float(np.mean(values)) if values else math.nan


def _wins(answers: Sequence[tuple[float, float, float]], rivals: Any) -> float:
    rewards = [one[0] for one in answers if not math.isnan(one[0])]
    if rivals is None or not rewards:
        return math.nan
    shares = [
        (np.searchsorted(rivals, r, "left") + np.searchsorted(rivals, r, "right"))
        / (2 * len(rivals))
        for r in rewards
    ]
    return float(np.mean(shares))
