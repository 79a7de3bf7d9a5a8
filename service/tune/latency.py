"""Latency and throughput of settings under the stated load, measured as a load test measures them.

They are measured at a few n and interpolated linearly between those, since every further candidate adds the
same work. Rules that only choose take as long as best-of-n of the same n. For a rule that stops drawing, the
rounds that follow each other are added up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.loadtest.analysis.cell_results import throughput
from service.loadtest.load.arrivals import unit_arrivals
from service.loadtest.load.client import LoadClient
from service.loadtest.load.connection import ConnectionPool
from service.loadtest.load.loops import BlockLength, BlockRunner
from service.loadtest.load.targets import Ask, NativeTarget
from service.loadtest.observation import BlockRecord, Observation
from service.loadtest.plan import Block, Load, LoadCell, Variant
from service.tune.drawing import Drawing
from service.tune.server import Served
from service.tune.setting import BON, Measured, Setting, setting_of
from vbon.maths.intervals import MeanInterval
from vbon.maths.seeds import seed_of
from vbon.maths.statistics import bootstrap_mean
from vbon.prompt_files import prompt_record
from vbon.prompts import Prompt

_RESAMPLES = 1000
_LEAST_REQUESTS = 20  # of a block: fewer say little about a 95th percentile
_MOST_STRETCH = 6.0  # a block of slow answers lasts at most so many times its usual length


@dataclass(frozen=True, slots=True)
class Timing:
    """Latency and throughput of a setting under load.

    Attributes:
        failed: requests that failed, left out of all figures.
        answers_per_s: answers per second; of an open loop, at most the rate.
    """

    mean_s: MeanInterval
    p95_s: MeanInterval
    answers_per_s: float
    requests: int
    failed: int


@dataclass(frozen=True, slots=True)
class Expected:
    """Latency and machine time of an answer, measured or interpolated.

    Attributes:
        seconds_per_answer: machine time: the inverse of answers per second.
    """

    mean_s: MeanInterval
    p95_s: MeanInterval
    seconds_per_answer: float


@dataclass(frozen=True, slots=True)
class SettingTarget(NativeTarget):
    """The native API with the sampling and settings that a setting sends."""

    setting: Setting | None = None

    def ask(self, variant: Variant, prompt: Prompt) -> Ask:
        """The request of the setting; single samples are not scored."""
        assert self.setting is not None
        body: dict[str, Any] = {**prompt_record(prompt), **self.setting.body}
        if self.setting.single:
            body["score"] = False
        if self.collected:
            body["store"] = False
        return Ask(self.setting.path, body, streamed=False)


class LoadedServer:
    """Measures settings under the stated load.

    Args:
        load: requests in flight, or requests per second.
        block_s: seconds of a measured block; its lead-in is a fifth of it.
    """

    def __init__(
        self,
        served: Served,
        prompts: Sequence[Prompt],
        load: Load,
        block_s: float,
        timeout_s: float,
        seed: int,
        on_seen: Callable[[Observation], None] = lambda _: None,
    ) -> None:
        self._served, self._prompts, self._load = served, prompts, load
        self._block_s, self._timeout_s, self._seed = block_s, timeout_s, seed
        self._on_seen = on_seen

    async def measure(self, setting: Setting, stretch: float = 1.0) -> Timing | None:
        """A block of this setting; ``None`` if no request was answered."""
        pool = ConnectionPool(self._served.url, dict(self._served.headers))
        target = SettingTarget(
            setting.drawing.max_tokens,
            setting.drawing.temperature,
            False,
            False,
            self._served.collects,
            setting,
        )
        client = LoadClient(pool, target, self._timeout_s)
        try:
            record = await self._block(client, setting, self._block_s * stretch)
            if len(record.measured) < _LEAST_REQUESTS and self._load.kind == "closed":
                longer = _LEAST_REQUESTS / max(len(record.measured), 1)
                seconds = self._block_s * stretch * min(longer, _MOST_STRETCH)
                record = await self._block(client, setting, seconds)
        finally:
            await pool.close()
        return timing_of(record)

    async def _block(self, client: LoadClient, setting: Setting, seconds: float) -> BlockRecord:
        variant = Variant(setting.mode, setting.n, not setting.single, setting.drawing.policy)
        runner = BlockRunner(
            client,
            Block(LoadCell(variant, self._load), 0),
            self._prompts,
            BlockLength(0, seconds / 5, seconds),
            seed_of(f"{self._seed}/{setting.label}") % len(self._prompts),
            self._on_seen,
        )
        if self._load.kind == "closed":
            return await runner.run_closed()
        return await runner.run_open(unit_arrivals("random", 1.0, self._seed), 1024)


def timing_of(record: BlockRecord) -> Timing | None:
    """The figures of a block; ``None`` if nothing was answered."""
    answered = np.array([one.e2e_ms / 1e3 for one in record.measured if one.error is None])
    if not len(answered):
        return None
    return Timing(
        bootstrap_mean(answered),
        _percentile(answered),
        throughput(record, lambda _: 1.0),
        len(answered),
        len(record.measured) - len(answered),
    )


def _percentile(values: np.ndarray[Any, Any]) -> MeanInterval:
    """The 95th percentile with its 95% bootstrap interval over requests."""
    picks = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    drawn = np.quantile(values[picks], 0.95, axis=1)
    point = float(np.quantile(values, 0.95))
    low, high = (float(end) for end in np.quantile(drawn, [0.025, 0.975]))
    return MeanInterval(point, min(low, point), max(high, point), len(values))


def measured_counts(n_max: int) -> list[int]:
    """The n at which latency is measured: 1, 2, the geometric middle and the largest."""
    middle = round((2 * n_max) ** 0.5)
    return sorted({n for n in (1, 2, middle, n_max) if n <= n_max})


def latency_settings(policies: Sequence[str], drawing: Drawing, n_max: int) -> list[Setting]:
    """The settings whose latency is measured: each policy at a few n, at the server's own sampling."""
    found = []
    for policy in policies:
        own = Drawing(policy, drawing.temperature, drawing.top_p, drawing.max_tokens, drawing.top_k)
        for n in measured_counts(n_max):
            found.append(setting_of(policy if n == 1 else BON, own, n, {}))
    return found


class LatencyModel:
    """Latencies that were measured, and those interpolated between them."""

    def __init__(self) -> None:
        self._by_policy: dict[str, dict[int, Timing]] = {}
        self.exact: dict[Setting, Timing] = {}

    def add(self, setting: Setting, timing: Timing) -> None:
        """Take in a measurement; plain best-of-n and single samples also serve others of their policy."""
        self.exact[setting] = timing
        if setting.mode in (BON, setting.drawing.policy):
            self._by_policy.setdefault(setting.drawing.policy, {})[setting.n] = timing

    def expected(self, measured: Measured) -> Expected | None:
        """The latency of a setting; ``None`` if it cannot be told from what was measured."""
        setting = measured.setting
        timing = self.exact.get(setting)
        if timing is not None:
            return Expected(timing.mean_s, timing.p95_s, 1 / timing.answers_per_s)
        if setting.live:
            return None
        if setting.mode == "adaptive-bon":
            return self._stopping(measured)
        return self._plain(setting.drawing.policy, setting.n)

    def _plain(self, policy: str, n: float) -> Expected | None:
        points = self._by_policy.get(policy, {})
        counts = sorted(points)
        if not counts or not counts[0] <= n <= counts[-1]:
            return None
        place = int(np.searchsorted(counts, n))
        high = counts[place]
        low = high if high == n else counts[place - 1]
        share = 0.0 if high == low else (n - low) / (high - low)
        ends = [(points[low], 1 - share), (points[high], share)]
        return Expected(
            _sum([(one.mean_s, weight) for one, weight in ends]),
            _sum([(one.p95_s, weight) for one, weight in ends]),
            sum(weight / one.answers_per_s for one, weight in ends),
        )

    def _stopping(self, measured: Measured) -> Expected | None:
        """A rule that stops drawing: its rounds after each other, and the machine time of its candidates."""
        setting = measured.setting
        settings: Mapping[str, Any] = setting.settings
        most = int(settings.get("max_n") or setting.n)
        first = min(int(settings.get("min_n", 4)), most)
        later = min(int(settings.get("round_size", 2)), most)
        mean_rounds, most_rounds = measured.rounds
        mean_drawn = min(first + (mean_rounds - 1) * later, most)
        begin, further, work = (
            self._plain(setting.drawing.policy, n) for n in (first, later, mean_drawn)
        )
        if begin is None or further is None or work is None:
            return None
        return Expected(
            _sum([(begin.mean_s, 1.0), (further.mean_s, mean_rounds - 1)]),
            _sum([(begin.p95_s, 1.0), (further.p95_s, most_rounds - 1)]),
            work.seconds_per_answer,
        )


def _sum(parts: Sequence[tuple[MeanInterval, float]]) -> MeanInterval:
    """A weighted sum of figures, with the sums of their ends: wider than need be, never too narrow."""
    used = [(one, weight) for one, weight in parts if weight > 0]
    return MeanInterval(
        sum(one.mean * weight for one, weight in used),
        sum(one.low * weight for one, weight in used),
        sum(one.high * weight for one, weight in used),
        min(one.count for one, _ in used),
    )
