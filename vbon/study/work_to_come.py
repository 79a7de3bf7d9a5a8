"""Work of a study's steps before they have begun, as far as it follows from settings and earlier steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vbon.storage.evaluation_record import POLICY_SAMPLES, REFERENCE_SAMPLES
from vbon.study.config import StudyConfig
from vbon.study.time_left import UNIT_BOUNDS_S, Paces, Work
from vbon.work_report import LOAD_TEST, MEASURED_ANSWERS, PROMPTS_SAMPLED

START, SERVED = "start of a command", "service and comparison"
# The load test's own defaults, which this package does not import; a test compares them.
ROUNDS, BLOCK_S, WARMUP_S, LEAST_BLOCK_S, LEVELS = 5, 5.0, 1.0, 3.0, 3


class WorkToCome:
    """Work by step; it is asked for anew at each look, because earlier steps decide it.

    Args:
        modes: the modes that the load test measures unless its settings name others.
    """

    def __init__(self, config: StudyConfig, paces: Paces, modes: Sequence[str]) -> None:
        self._config, self._paces, self._modes = config, paces, modes

    def of_sampling(self) -> Sequence[Work]:
        """One unit a prompt to train on."""
        prompts = self._prompts("train")
        # Before the split nobody knows their number.
        kind, amount = (PROMPTS_SAMPLED, prompts) if prompts else ("split", 1)
        return Work(START, name="sampling"), Work(kind, amount, name="sampling")

    def of_training(self, objective: str) -> Sequence[Work]:
        """A whole training: from half the shortest of the others to twice the longest, if there are any."""
        kinds = [f"step train {name}" for name in self._config.objectives if name != objective]
        others = [took for kind in kinds if (took := self._paces.seconds_of(kind)) is not None]
        low, high = (min(others) / 2, 2 * max(others)) if others else (0.0, None)
        return (Work(f"step train {objective}", 1, low, high, f"fine-tuning with {objective}"),)

    def of_evaluation(self) -> Sequence[Work]:
        """One unit an answer to a test prompt."""
        settings, checkpoints = self._config.evaluation, len(self._config.objectives)
        each = _number(settings, "reference_samples", REFERENCE_SAMPLES)
        each += checkpoints * _number(settings, "policy_samples", POLICY_SAMPLES)
        prompts = self._prompts("test")
        kind, amount = (MEASURED_ANSWERS, prompts * each) if prompts else ("split", 1)
        return Work(START, name="evaluation"), Work(kind, amount, name="evaluation")

    def of_measuring(self) -> Sequence[Work]:
        """The service's start, which is like that of sampling by the same engine, and the load test."""
        start = self._paces.seconds_of(START)
        low, high = (0.0, None) if start is None else (start, 5 * start + 60)
        return Work(SERVED, 1, low, high), self._load_test()

    def _load_test(self) -> Work:
        settings = self._config.loadtest
        rounds = _number(settings, "rounds", ROUNDS)
        variants = self._variants(settings)
        given = [*_listed(settings, "concurrency"), *_listed(settings, "rate")]
        if settings.get("requests") or settings.get("saturate"):
            return Work("unbounded load test", name=LOAD_TEST)
        if not given:  # a calibration chooses levels and lengths
            blocks = rounds * LEVELS * variants
            return Work("calibrated load test", 1, blocks * LEAST_BLOCK_S, None, LOAD_TEST)
        block_s = _number(settings, "ramp_s", 0) + _number(settings, "warmup_s", WARMUP_S)
        block_s += _number(settings, "duration_s", BLOCK_S)
        planned = rounds * len(given) * variants * block_s
        low, high = UNIT_BOUNDS_S[LOAD_TEST]
        return Work(LOAD_TEST, planned, low * planned, high * planned)

    def _variants(self, settings: Mapping[str, Any]) -> int:
        """Modes of one sample count once, the others once for each N."""
        modes = _listed(settings, "modes") or self._modes
        single = {"ref", *self._config.objectives}
        values = max(1, len(_listed(settings, "n")))
        return sum(1 if mode in single else values for mode in modes)

    def _prompts(self, part: str) -> int:
        try:
            with (self._config.out / "prompts" / f"{part}.jsonl").open("rb") as file:
                return sum(1 for _ in file)
        except OSError:
            return 0


def _number(settings: Mapping[str, Any], name: str, default: float) -> float:
    """A setting that its own command checks later; one that is not a number counts as its default."""
    value = settings.get(name, default)
    return value if isinstance(value, int | float) else default


def _listed(settings: Mapping[str, Any], name: str) -> list[Any]:
    value = settings.get(name) or []
    return value if isinstance(value, list) else [value]
