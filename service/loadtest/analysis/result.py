"""Builds the result of a run from its journal."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from service.loadtest.analysis.break_even import (
    MeasuredVariant,
    break_even,
    capacity_of,
    cost_of,
    training_of,
)
from service.loadtest.analysis.calibration import calibration_of
from service.loadtest.analysis.cell_results import cell_result
from service.loadtest.analysis.decision import decide
from service.loadtest.analysis.extension import extension_of, extension_words, rounds_of
from service.loadtest.analysis.full_load import load_remedy
from service.loadtest.analysis.intervals import Float
from service.loadtest.analysis.quality import baseline_of, curve_matrix, curve_of, quality_of
from service.loadtest.analysis.saturation_search import begun_searches, confirmed_rates
from service.loadtest.analysis.verdict import Side, judged
from service.loadtest.analysis.warnings import result_warnings, rising_warning, search_warnings
from service.loadtest.config import LoadTestSettings
from service.loadtest.defaults import settled
from service.loadtest.journal import Journal
from service.loadtest.observation import BlockRecord, ScoredAnswer
from service.loadtest.plan import (
    BON,
    ScoringPass,
    Variant,
    planned_blocks,
    saturation_blocks,
    scored_variants,
    scoring_passes,
)
from service.loadtest.schema import (
    BreakEven,
    Calibration,
    CellResult,
    Example,
    LoadTestResult,
    Probe,
    Quality,
    Saturation,
    ServerDescription,
    ShownAnswer,
    VariantCost,
)
from vbon.prompts import Prompt
from vbon.storage.database_urls import without_password
from vbon.storage.provenance import provenance

_EXAMPLES = 4


def build_result(
    settings: LoadTestSettings,
    server: ServerDescription,
    variants: Sequence[Variant],
    prompts: Sequence[Prompt],
    journal: Journal,
) -> LoadTestResult:
    """The result of everything that the journal holds so far."""
    settings = settled(settings, server, variants)
    calibration = calibration_of(journal) if settings.chooses_levels else None
    searched = _searched(settings, variants, journal) if settings.saturate else True
    cells, done, planned, unreached = _cells(settings, variants, journal, calibration)
    remedies = {
        variant.label: load_remedy(settings, calibration, reached=variant.label not in unreached)
        for variant in variants
    }
    rows = _rows(variants, settings, journal)
    quality = _quality(settings, rows)
    prompts_of_curve, matrix = _curve(rows, gold=False)
    gold = _curve(rows, gold=True)
    by_gold = (
        server.gold_model is not None
        and bool(gold[0])
        and all(one.gold is not None for one in quality)
    )
    saturation = _saturation(settings, variants, journal) if settings.saturate else []
    extension = extension_of(journal)
    unfinished = done < planned or not searched or (settings.chooses_levels and calibration is None)
    costs, pairs = _costs_and_pairs(
        settings,
        server,
        variants,
        cells,
        [_judged_by_gold(one) for one in quality] if by_gold else quality,
        saturation,
        gold if by_gold else (prompts_of_curve, matrix),
        remedies,
        complete=not unfinished,
    )
    if by_gold:
        pairs = [pair.model_copy(update={"judged_by": "gold"}) for pair in pairs]
    dumped = settings.model_dump(mode="json")
    if settings.store is not None:  # reports get passed on, and a database URL may hold a password
        dumped["store"] = without_password(settings.store)
    return LoadTestResult(
        id=journal.id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        complete=not unfinished,
        blocks_done=done,
        blocks_planned=planned,
        settings=dumped,
        provenance=provenance({}) | {"config": None},
        server=server,
        prompts=len(prompts),
        prompts_digest=_digest(prompts),
        cells=cells,
        calibration=calibration,
        extension=extension,
        quality=quality,
        curve=curve_of(matrix) if prompts_of_curve else [],
        gold_curve=curve_of(gold[1]) if gold[0] else [],
        saturation=saturation,
        costs=costs,
        break_even=pairs,
        decision=decide(pairs, costs, quality, cells, saturation, settings.currency),
        warnings=result_warnings(settings, server, cells, quality, done, planned)
        + search_warnings(saturation)
        + [
            rising_warning(
                cost,
                sum(cell.variant == cost.variant for cell in cells),
                remedies[cost.variant],
            )
            for cost in costs
            if cost.rising
        ]
        + ([] if extension is None else [extension_words(extension)]),
        examples=_examples(prompts, rows),
    )


def _cells(
    settings: LoadTestSettings,
    variants: Sequence[Variant],
    journal: Journal,
    calibration: Calibration | None,
) -> tuple[list[CellResult], int, int, set[str]]:
    """The cells, the blocks done and planned, and the variants of which not every level was measured."""
    rounds = rounds_of(settings, journal)
    blocks = planned_blocks(settings, variants, calibration, rounds)
    if settings.saturate:
        rates = confirmed_rates(journal, variants, settings)
        blocks = list(dict.fromkeys([*blocks, *saturation_blocks(settings, rates)]))
    records: dict[str, list[BlockRecord]] = defaultdict(list)
    asked = {block.key for block in blocks}
    for line in journal.of_kind("block"):
        record = BlockRecord.model_validate(line)
        if record.key in asked:
            records[record.cell].append(record)
    cells = [
        cell_result(
            cell,
            records[cell.key],
            settings.slos,
            streamed=bool(settings.stream) and not cell.variant.reranks,
        )
        for cell in dict.fromkeys(block.cell for block in blocks)
        if records[cell.key]
    ]
    unreached = {block.cell.variant.label for block in blocks if not records[block.cell.key]}
    return cells, sum(map(len, records.values())), len(blocks), unreached


Rows = dict[str, tuple[ScoringPass, list[ScoredAnswer]]]


def _rows(variants: Sequence[Variant], settings: LoadTestSettings, journal: Journal) -> Rows:
    """The answers of each finished scoring pass, by the label of the variant that answered."""
    asked = {one.variant.label: one for one in scoring_passes(scored_variants(variants, settings))}
    return {
        line["variant"]: (
            asked[line["variant"]],
            [ScoredAnswer.model_validate(row) for row in line["rows"]],
        )
        for line in journal.of_kind("quality")
        if line["variant"] in asked
    }


def _quality(settings: LoadTestSettings, rows: Rows) -> list[Quality]:
    baseline = None
    if settings.baseline in rows:
        baseline = baseline_of(rows[settings.baseline][1])
    found = []
    for scoring, scored in rows.values():
        for variant in scoring.stands_for:
            against = None if variant.name == settings.baseline else baseline
            found.append(quality_of(variant, scored, against))
    return found


def _judged_by_gold(quality: Quality) -> Quality:
    """The same variant with gold rewards in the place of the serving model's."""
    return quality.model_copy(
        update={
            "reward": quality.gold,
            "win_rate": quality.gold_win_rate,
            "prompt_rewards": quality.prompt_golds,
        }
    )


def _curve(rows: Rows, *, gold: bool) -> tuple[list[int], Float]:
    """Best-of-N curves of the reference policy by prompt; empty if best-of-N was not measured."""
    for scoring, scored in rows.values():
        if scoring.variant.mode == BON and scoring.variant.policy is None:
            return curve_matrix(scored, scoring.variant.n, gold=gold)
    return [], np.zeros((0, 1))


def _costs_and_pairs(
    settings: LoadTestSettings,
    server: ServerDescription,
    variants: Sequence[Variant],
    cells: Sequence[CellResult],
    quality: Sequence[Quality],
    saturation: Sequence[Saturation],
    curve: tuple[list[int], Float],
    remedies: Mapping[str, str],
    *,
    complete: bool,
) -> tuple[list[VariantCost], list[BreakEven]]:
    price = settings.price_per_hour
    by_variant = {one.variant: one for one in quality}
    modes = {mode.name: mode for mode in server.modes}
    sides = {}
    for variant in variants:
        capacity = capacity_of(variant.label, cells, saturation, server.running_sequences)
        if capacity is not None:
            sides[variant.label] = MeasuredVariant(
                variant.label, capacity, by_variant.get(variant.label), variant.n
            )
    costs = [cost_of(label, side.capacity, price) for label, side in sides.items()]
    measured = [variant for variant in variants if variant.label in sides]
    single = [v for v in measured if not v.reranks]
    sampled = [v for v in measured if v.reranks and v.policy is None]
    whole = {
        v.label: Side(
            sides[v.label],
            [cell for cell in cells if cell.variant == v.label],
            _is_adapter(v, server),
            remedies[v.label],
        )
        for v in measured
    }
    pairs = []
    for one in single:
        for many in sampled:
            if not _fine_tuned(one, many, server, settings.baseline):
                continue
            reference = _single_of(many, single, server, settings.baseline)
            pair = break_even(
                sides[one.label],
                # The curve is that of best-of-N; other rules over N candidates have another one.
                sides[many.label] if many.mode == BON else replace(sides[many.label], n=1),
                training_of(modes[one.mode], settings),
                curve,
                price,
                None if reference is None else sides[reference.label],
            )
            pairs.append(judged(pair, whole[one.label], whole[many.label], complete=complete))
    return costs, pairs


def _single_of(
    many: Variant, single: Sequence[Variant], server: ServerDescription, baseline: str
) -> Variant | None:
    """The measured mode that takes one sample of the policy from which ``many`` draws."""
    return next((v for v in single if not _fine_tuned(v, many, server, baseline)), None)


def _is_adapter(variant: Variant, server: ServerDescription) -> bool:
    """True if the server says that it samples from an unmerged adapter; each policy is a mode of its name."""
    adapters = {mode.name: mode.adapter for mode in server.modes}
    return adapters.get(variant.policy or variant.mode, False)


def _fine_tuned(one: Variant, many: Variant, server: ServerDescription, baseline: str) -> bool:
    """True if the single samples come from another policy than the candidates do."""
    modes = {mode.name: mode.policy for mode in server.modes}
    policies = {policy.name: policy for policy in server.policies}
    own, drawn = (
        modes[v.mode] if v.policy is None else policies.get(v.policy) for v in (one, many)
    )
    if own is None or drawn is None:  # the server does not tell the policies
        return one.name != baseline
    return (own.path, own.revision) != (drawn.path, drawn.revision)


def _saturation(
    settings: LoadTestSettings, variants: Sequence[Variant], journal: Journal
) -> list[Saturation]:
    probes: dict[str, list[Probe]] = defaultdict(list)
    for line in journal.of_kind("probe"):
        probes[line.pop("variant")].append(Probe.model_validate(line))
    if not journal.of_kind("idle"):
        return []
    searches = begun_searches(journal, variants, settings)
    found = []
    for variant in variants:
        search, tried = searches.get(variant.label), probes[variant.label]
        rate = None if search is None else search.passed
        at_rate = [probe.p95_ms for probe in tried if probe.rate == rate and probe.passed]
        found.append(
            Saturation(
                variant=variant.label,
                slo_ms=settings.slos["e2e"],
                rate=rate,
                above=None if search is None else search.failed,
                p95_ms=at_rate[-1] if at_rate else None,
                probes=tried,
                confirmed=search is not None and search.next_rate() is None,
            )
        )
    return found


def _searched(settings: LoadTestSettings, variants: Sequence[Variant], journal: Journal) -> bool:
    if len(journal.of_kind("idle")) < len(variants):
        return False
    searches = begun_searches(journal, variants, settings)
    return all(search.next_rate() is None for search in searches.values())


def _digest(prompts: Sequence[Prompt]) -> str:
    content = [prompt.text if prompt.text is not None else prompt.messages for prompt in prompts]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _examples(prompts: Sequence[Prompt], rows: Rows) -> list[Example]:
    shown = []
    for prompt in range(min(_EXAMPLES, len(prompts))):
        answers = {}
        for label, (_, scored) in rows.items():
            for row in scored:
                if row.prompt == prompt and row.error is None:
                    answers[label] = ShownAnswer(text=row.text, reward=row.reward)
                    break
        if answers:
            shown.append(Example(prompt=prompts[prompt].key, answers=answers))
    return shown
