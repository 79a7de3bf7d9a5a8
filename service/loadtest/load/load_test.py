"""Runs the planned blocks and writes each into the journal when it is finished."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from time import perf_counter

from service.loadtest.analysis.cell_results import cell_result
from service.loadtest.analysis.saturation_search import begun_searches, hopeless
from service.loadtest.config import LoadTestSettings
from service.loadtest.journal import Journal
from service.loadtest.load.arrivals import unit_arrivals
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
    scored_variants,
    scoring_passes,
)
from service.loadtest.schema import Probe
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
    ) -> None:
        self.variants = variants
        self._settings, self._prompts = settings, prompts
        self._journal, self._progress = journal, progress
        self._pool = ConnectionPool(settings.url, request_headers(settings))
        self._client = LoadClient(self._pool, target_of(settings), settings.timeout_s)

    async def run(self) -> None:
        """Measure everything that the journal does not hold yet.

        Raises:
            ExportError: the journal could not be written.
        """
        blocks = planned_blocks(self._settings, self.variants)
        finished = {line["key"] for line in self._journal.of_kind("block")}
        self._progress.planned(len(blocks), sum(block.key in finished for block in blocks))
        gc.collect()
        gc.freeze()  # long-lived objects need not be scanned while latencies are measured
        try:
            await self._warm_up()
            # Rewards follow the first round, so a run that is interrupted later can report everything.
            for number in range(self._settings.rounds):
                for block in (one for one in blocks if one.round == number):
                    if block.key not in finished:
                        await self._block(block)
                if number == 0 and self._settings.api == "native":
                    await self._score()
            if self._settings.saturate:
                await self._saturate()
        finally:
            await self._pool.close()

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
        settings = self._settings
        length = BlockLength(
            settings.ramp_s, settings.warmup_s, settings.duration_s, settings.requests
        )
        known = None if settings.requests else length.lead_s + length.seconds
        self._progress.begin(block.key, known)
        runner = self._runner(block, length)
        record = await (
            runner.run_closed() if block.cell.load.kind == "closed" else self._run_open(runner)
        )
        self._journal.append("block", record.model_dump(mode="json", exclude_defaults=True))
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
                self._pool, variant, self._prompts, settings, self._progress.scored
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
        self._progress.begin(f"saturation: {block.cell.key}", seconds + settings.warmup_s)
        runner = self._runner(block, BlockLength(0, settings.warmup_s, seconds))

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


def target_of(settings: LoadTestSettings) -> Target:
    """The API of the server under test."""
    kind = NativeTarget if settings.api == "native" else OpenAiTarget
    return kind(*settings.sampling, settings.ignore_eos, settings.stream)
