"""Computes the figures of a cell from its blocks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from statistics import mean

from service.loadtest.analysis.intervals import interval, percentile_interval, quantiles
from service.loadtest.observation import BlockRecord, Observation
from service.loadtest.plan import LoadCell
from service.loadtest.schema import CellResult, Quantiles, RoundResult
from vbon.maths.intervals import MeanInterval, MedianRange
from vbon.maths.statistics import median_range


def cell_result(
    cell: LoadCell, blocks: Sequence[BlockRecord], slos: dict[str, float], *, streamed: bool
) -> CellResult:
    """The figures of one cell: latencies pooled over all rounds, rates as median and range over rounds.

    Raises:
        ValueError: the cell has no blocks.
    """
    seen = [one for block in blocks for one in block.measured]
    answered = [one for one in seen if one.error is None]

    def pooled(value: Callable[[Observation], float | None]) -> Quantiles | None:
        return quantiles(value(one) for one in answered)

    def rate(weight: Callable[[Observation], float]) -> MedianRange:
        return median_range([throughput(block, weight) for block in blocks])

    good = sum(one.meets(slos) for one in seen)
    return CellResult(
        variant=cell.variant.label,
        mode=cell.variant.name,
        n=cell.variant.n,
        load_kind=cell.load.kind,
        load=cell.load.value,
        requests=len(answered),
        errors=dict(Counter(one.error for one in seen if one.error is not None)),
        streamed=streamed,
        requests_per_s=rate(lambda _: 1.0),
        generated_tokens_per_s=rate(lambda one: one.generated_tokens or 0),
        returned_tokens_per_s=rate(lambda one: one.returned_tokens or 0),
        goodput_per_s=rate(lambda one: float(one.meets(slos))) if slos else None,
        goodput_share=good / len(seen) if slos and seen else None,
        e2e_ms=pooled(lambda one: one.e2e_ms),
        ttft_ms=pooled(lambda one: one.ttft_ms),
        tpot_ms=pooled(lambda one: one.tpot_ms),
        itl_ms=quantiles(gap for one in answered for gap in one.gaps_ms),
        queue_ms=pooled(lambda one: one.queue_ms),
        rerank_ms=pooled(lambda one: one.rerank_ms) if cell.variant.reranks else None,
        scoring_ms=pooled(lambda one: one.scoring_ms) if cell.variant.reranks else None,
        truncated_share=_truncated_share(answered),
        send_lag_ms=quantiles((one.sent_s - one.due_s) * 1e3 for one in seen)
        if cell.load.kind == "open"
        else None,
        client_cpu=max(block.client_cpu for block in blocks),
        block_s=min(block.seconds for block in blocks),
        rounds=[_round(block, slos) for block in blocks],
        generated_tokens=_over_prompts(answered, lambda one: one.generated_tokens),
        latency_mean_s=_over_prompts(answered, lambda one: one.e2e_ms / 1e3),
        latency_p95_s=percentile_interval([one.e2e_ms / 1e3 for one in answered], 0.95),
    )


def _over_prompts(
    answered: Sequence[Observation], value: Callable[[Observation], float | None]
) -> MeanInterval | None:
    """The mean over prompts of their mean values; ``None`` if an answer does not tell the value."""
    by_prompt: dict[int, list[float]] = defaultdict(list)
    for one in answered:
        found = value(one)
        if found is None:
            return None
        by_prompt[one.prompt].append(found)
    return interval([mean(values) for values in by_prompt.values()])


def throughput(block: BlockRecord, weight: Callable[[Observation], float]) -> float:
    """Sum of the answered requests' weights per second, each scaled by :meth:`BlockRecord.share`."""
    total = sum(block.share(one) * weight(one) for one in block.observations if one.error is None)
    return total / block.seconds


def _truncated_share(answered: Sequence[Observation]) -> float | None:
    """The share of the answers that the token limit cut off; ``None`` if the server does not tell."""
    told = [one.truncated for one in answered if one.truncated is not None]
    return sum(told) / len(told) if told else None


def _round(block: BlockRecord, slos: dict[str, float]) -> RoundResult:
    answered = [one.e2e_ms for one in block.measured if one.error is None]
    found = quantiles(answered)
    return RoundResult(
        round=block.round,
        requests=len(answered),
        requests_per_s=throughput(block, lambda _: 1.0),
        returned_tokens_per_s=throughput(block, lambda one: one.returned_tokens or 0),
        p50_e2e_ms=None if found is None else found.p50,
        p95_e2e_ms=None if found is None else found.p95,
        goodput_per_s=throughput(block, lambda one: float(one.meets(slos))) if slos else None,
        goodput_share=_good_share(block, slos),
    )


def _good_share(block: BlockRecord, slos: dict[str, float]) -> float | None:
    sent = block.measured
    return sum(one.meets(slos) for one in sent) / len(sent) if slos and sent else None
