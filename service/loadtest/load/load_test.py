"""Runs the planned blocks and writes each into the journal when it is finished."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from time import perf_counter

from service.loadtest.analysis.calibration import calibration_of, planned_s
from service.loadtest.analysis.cell_results import cell_result
from service.loadtest.analysis.extension import (
    extension_of,
    extension_words,
    rounds_of,
    too_long,
    wanted,
)
from service.loadtest.analysis.result import build_result
from service.loadtest.analysis.saturation_search import (
    begun_searches,
    confirmed_rates,
    hopeless,
)
from service.loadtest.analysis.text import duration
from service.loadtest.config import BLOCK_S, WARMUP_S, LoadTestSettings
from service.loadtest.defaults import settled
from service.loadtest.journal import Journal
from service.loadtest.load.announcements import beforehand, calibration_words
from service.loadtest.load.arrivals import unit_arrivals
from service.loadtest.load.calibrate import calibrate
from service.loadtest.load.client import LoadClient
from service.loadtest.load.connection import ConnectionPool
from service.loadtest.load.loops import BlockLength, BlockRunner
from service.loadtest.load.progress import Progress
from service.loadtest.load.scoring import score_variant
from service.loadtest.load.server_description import request_headers
from service.loadtest.load.targets import NativeTarget, OpenAiTarget, Target
from service.loadtest.observation import BlockRecord, Observation
from service.loadtest.plan import (
    Block,
    Load,
    LoadCell,
    Variant,
    planned_blocks,
    saturation_blocks,
    scored_variants,
    scoring_passes,
)
from service.loadtest.schema import CalibratedCell, Calibration, Probe, ServerDescription
from vbon.errors import DataError
from vbon.maths.seeds import seed_of
from vbon.prompts import Prompt

# Requests per variant before anything is measured; the last one gives its idle latency.
_WARM_UPS = 4
_PROBE_REQUESTS = 40  # a probe at a low rate lasts until about this many requests were sent ...
_PROBE_STRETCH = 6  # ... but at most this many times its usual length
_SETTLE_S = 60.0  # the longest wait after a failed probe


class LoadTest:
    """One run against one server.

    Attributes:
        variants: the variants to measure; each is one cell at every load level.
    """

    def __init__(
        self,
        settings: LoadTestSettings,
        variants: Sequence[Variant],
        prompts: Sequence[Prompt],
        journal: Journal,
        progress: Progress,
        server: ServerDescription | None = None,
    ) -> None:
        self.variants = variants
        self._settings = settled(settings, server, variants)
        self._prompts, self._server = prompts, server
        self._journal, self._progress = journal, progress
        self._calibration: Calibration | None = None
        self._left_s: float | None = None
        self._pool = ConnectionPool(settings.url, request_headers(settings))
        self._client = LoadClient(self._pool, target_of(self._settings, server), settings.timeout_s)

    async def run(self) -> None:
        """Measure everything that the journal does not hold yet.

        Raises:
            ExportError: the journal could not be written.
        """
        gc.collect()
        gc.freeze()  # long-lived objects need not be scanned while latencies are measured
        try:
            self._progress.note(beforehand(self._settings))
            await self._warm_up()
            if self._settings.chooses_levels:
                await self._calibrate()
            blocks = planned_blocks(self._settings, self.variants, self._calibration)
            await self._blocks(blocks, scored=True)
            await self._extend()
            if self._settings.saturate:
                await self._saturate()
                rates = confirmed_rates(self._journal, self.variants, self._settings)
                await self._blocks([*blocks, *saturation_blocks(self._settings, rates)])
        finally:
            await self._pool.close()

    async def _blocks(self, blocks: Sequence[Block], *, scored: bool = False) -> None:
        finished = {line["key"] for line in self._journal.of_kind("block")}
        left = [block for block in blocks if block.key not in finished]
        self._left_s = self._expected_s(left)
        self._progress.planned(len(blocks), len(blocks) - len(left), self._left_s)
        # Rewards follow the first round, so a run that is interrupted later can report everything.
        for number in range(1 + max((block.round for block in left), default=0)):
            for block in (one for one in left if one.round == number):
                await self._block(block)
            if scored and number == 0 and self._settings.api == "native":
                await self._score()

    async def _extend(self) -> None:
        """Measure more rounds if the ranges over those measured are slightly too wide to decide."""
        if extension_of(self._journal) is None:
            self._look_at_ranges()
        rounds = rounds_of(self._settings, self._journal)
        if rounds > self._settings.rounds:
            blocks = planned_blocks(self._settings, self.variants, self._calibration, rounds)
            await self._blocks(blocks)

    def _look_at_ranges(self) -> None:
        """Write an extension into the journal if the ranges ask for one and there is time for it."""
        settings, server = self._settings, self._server
        round_s = self._expected_s(planned_blocks(settings, self.variants, self._calibration, 1))
        if round_s is None or server is None or settings.saturate or not settings.extend:
            return
        found = build_result(settings, server, self.variants, self._prompts, self._journal)
        extension = wanted(found.break_even, settings.rounds)
        if extension is None:
            return
        no_time = too_long(settings, extension, round_s)
        if no_time is None:
            self._journal.append("extension", extension.model_dump(mode="json"))
        self._progress.note(no_time or extension_words(extension))

    def _expected_s(self, blocks: Sequence[Block]) -> float | None:
        """Seconds that these blocks should take; ``None`` if they end after a number of requests."""
        if self._settings.requests is not None:
            return None
        return sum(self._block_s(block) for block in blocks)

    def _block_s(self, block: Block) -> float:
        chosen = self._chosen(block)
        if chosen is not None:
            return chosen.expected_s
        length = self._length(block)
        return length.lead_s + length.seconds

    def _chosen(self, block: Block) -> CalibratedCell | None:
        cells = [] if self._calibration is None else self._calibration.cells
        wanted = block.cell.variant.label, block.cell.load.value
        return next((one for one in cells if (one.variant, one.in_flight) == wanted), None)

    def _length(self, block: Block) -> BlockLength:
        settings, chosen = self._settings, self._chosen(block)
        warmup_s, seconds = settings.warmup_s, settings.duration_s
        if chosen is not None:
            warmup_s, seconds = chosen.warmup_s, chosen.duration_s
        return BlockLength(
            settings.ramp_s,
            WARMUP_S if warmup_s is None else warmup_s,
            seconds or BLOCK_S,
            settings.requests,
        )

    async def _calibrate(self) -> None:
        self._calibration = calibration_of(self._journal)
        if self._calibration is None:
            idle = {line["variant"]: line["e2e_ms"] / 1e3 for line in self._journal.of_kind("idle")}
            found = await calibrate(
                self._settings, self.variants, self._server, idle, self._calibrating_block
            )
            self._journal.append("calibration", found.model_dump(mode="json"))
            self._calibration = found
        for line in calibration_words(self._calibration, self._settings):
            self._progress.note(line)
        limit = self._settings.limit_s
        needed = planned_s(self._calibration, self._settings.rounds)
        if limit is not None and needed > limit and self._settings.requests is None:
            raise DataError(
                f"the blocks need {duration(needed)} to see whole answers in {self._settings.rounds} rounds; "
                f"this server allows {duration(limit)} (limits.loadtest_max_s): measure fewer modes or N, "
                "fewer max_tokens, or give levels and durations"
            )

    async def _calibrating_block(self, block: Block, length: BlockLength) -> BlockRecord:
        self._progress.begin(f"calibrating: {block.cell.key}", length.lead_s + length.seconds)
        return await self._runner(block, length).run_closed()

    async def _warm_up(self) -> None:
        self._progress.begin("warming up", None)
        known = {line["variant"] for line in self._journal.of_kind("idle")}
        for variant in self.variants:
            idle = BlockLength(0, 0, 0, requests=_WARM_UPS)
            block = Block(LoadCell(variant, Load("closed", 1)), -1)
            record = await self._runner(block, idle).run_closed()
            last = record.observations[-1]
            if variant.label not in known:
                self._journal.append(
                    "idle",
                    {"variant": variant.label, "e2e_ms": last.e2e_ms, "error": last.error},
                )

    async def _block(self, block: Block) -> None:
        length = self._length(block)
        known = None if length.requests else length.lead_s + length.seconds
        self._progress.begin(block.key, known, self._left_s)
        runner = self._runner(block, length)
        record = await (
            runner.run_closed() if block.cell.load.kind == "closed" else self._run_open(runner)
        )
        self._journal.append("block", record.model_dump(mode="json", exclude_defaults=True))
        if self._left_s is not None:
            self._left_s -= self._block_s(block)
        self._progress.finished(record)

    def _runner(self, block: Block, length: BlockLength) -> BlockRunner:
        # All cells of a round get the same prompts in the same order.
        offset = seed_of(repr((self._settings.seed, "prompts", block.round))) % len(self._prompts)
        return BlockRunner(
            self._client, block, self._prompts, length, offset, on_seen=self._progress.seen
        )

    async def _run_open(self, runner: BlockRunner) -> BlockRecord:
        settings, block = self._settings, runner.block
        seed = seed_of(repr((settings.seed, "arrivals", block.cell.load.value, block.round)))
        units = unit_arrivals(settings.arrival, settings.burstiness, seed)
        return await runner.run_open(units, settings.max_in_flight)

    async def _score(self) -> None:
        settings = self._settings
        if settings.quality_prompts == 0:
            return
        finished = {line["variant"] for line in self._journal.of_kind("quality")}
        for scoring in scoring_passes(scored_variants(self.variants, settings)):
            variant = scoring.variant
            if variant.label in finished:
                continue
            self._progress.begin(f"scoring {variant.label}", None)
            rows = await score_variant(
                self._pool,
                variant,
                self._prompts,
                settings,
                self._progress.scored,
                gold=self._server is not None and self._server.gold_model is not None,
                collected=self._server is not None and self._server.collects,
            )
            self._journal.append(
                "quality",
                {
                    "variant": variant.label,
                    "rows": [row.model_dump(exclude_defaults=True) for row in rows],
                },
            )

    async def _saturate(self) -> None:
        """Probe each variant in turn until every search has ended."""
        searches = begun_searches(self._journal, self.variants, self._settings)
        while True:
            next_rates = {label: search.next_rate() for label, search in searches.items()}
            if not any(next_rates.values()):
                return
            for variant in self.variants:
                rate = next_rates.get(variant.label)
                if rate is not None:
                    probe = await self._probe(variant, rate, len(searches[variant.label].rates))
                    searches[variant.label].note(rate, probe.passed)

    async def _probe(self, variant: Variant, rate: float, number: int) -> Probe:
        settings, limit = self._settings, self._settings.slos["e2e"]
        base = settings.saturate_duration_s
        seconds = min(max(base, _PROBE_REQUESTS / rate), _PROBE_STRETCH * base)
        block = Block(LoadCell(variant, Load("open", rate)), number)
        lead_s = WARMUP_S if settings.warmup_s is None else settings.warmup_s
        self._progress.begin(f"saturation: {block.cell.key}", seconds + lead_s)
        runner = self._runner(block, BlockLength(0, lead_s, seconds))

        def is_late(one: Observation) -> bool:
            return one.measured and not one.meets({"e2e": limit})

        runner.hopeless = lambda seen: hopeless(sum(map(is_late, seen)), rate * seconds)
        record = await self._run_open(runner)
        found = cell_result(block.cell, [record], {}, streamed=False)
        late, sent = sum(map(is_late, record.measured)), len(record.measured)
        # A probe that was cut short failed by the number of requests expected of it, not by those it sent.
        passed = sent > 0 and late <= 0.05 * sent and not runner.hopeless(record.observations)
        probe = Probe(
            rate=rate,
            requests=sent,
            late_share=late / sent if sent else 1.0,
            p95_ms=None if found.e2e_ms is None else found.e2e_ms.p95,
            passed=passed,
        )
        self._journal.append("probe", {"variant": variant.label, **probe.model_dump()})
        if not passed:
            await self._settle(variant)
        self._progress.note(
            f"{block.cell.key}: {'within' if passed else 'over'} {limit:g} ms "
            f"({probe.late_share:.1%} of {sent} requests late or failed)"
        )
        return probe

    async def _settle(self, variant: Variant) -> None:
        """Wait until the server answers as fast as when idle.

        Some servers go on working on requests that their client has cancelled.
        """
        idle = {line["variant"]: line["e2e_ms"] for line in self._journal.of_kind("idle")}
        begun, alone = perf_counter(), Block(LoadCell(variant, Load("closed", 1)), -1)
        while perf_counter() - begun < _SETTLE_S:
            record = await self._runner(alone, BlockLength(0, 0, 0, requests=1)).run_closed()
            seen = record.observations[0]
            if seen.error is None and seen.e2e_ms <= 2 * idle[variant.label]:
                return


def target_of(settings: LoadTestSettings, server: ServerDescription | None = None) -> Target:
    """The API of the server under test."""
    sent = (*settings.sampling, settings.ignore_eos, bool(settings.stream))
    if settings.api == "openai":
        return OpenAiTarget(*sent)
    return NativeTarget(*sent, collected=server is not None and server.collects)
