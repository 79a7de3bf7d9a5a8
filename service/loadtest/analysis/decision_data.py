"""A tuned checkpoint against live best-of-N, with all that a verdict is computed from.

The load test is handed on as measured, round by round: whoever reads it can put in another price, training
time, volume or latency limit and compute the same verdict anew, as the page and the report do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import BaseModel, Field

from service.loadtest.analysis.break_even import capacity_of
from service.loadtest.analysis.intervals import interval
from service.loadtest.schema import BreakEven, CellResult, LoadTestResult, Quality
from vbon.maths.intervals import MeanInterval

Judge = Literal["reward", "gold"]


class MeasuredRound(BaseModel):
    """The throughput of one round of a load level."""

    round: int
    answers_per_s: float = Field(description="within the SLOs of the load test, if it had any")


class LoadLevel(BaseModel):
    """One load level at which a variant was measured."""

    load: str = Field(description="in words, such as `64 in flight`")
    p95_ms: float | None = Field(description="p95 of E2E; null if no answer was timed")
    above: float = Field(
        description="by how much the true rate may exceed one that a search confirmed, as a factor; else 1"
    )
    rounds: list[MeasuredRound]


class DecisionSide(BaseModel):
    """One variant, a mode with its N, as the load test measured it."""

    variant: str
    mode: str
    n: int
    tokens_per_answer: float | None = Field(
        description="generated tokens, those of discarded candidates included"
    )
    rewards: dict[Judge, MeanInterval] = Field(
        description="mean reward by the serving and by the gold reward model; absent: not measured"
    )
    win_rates: dict[Judge, MeanInterval] = Field(description="against one sample of the baseline")
    truncated_share: float | None
    levels: list[LoadLevel] = Field(description="empty: it answered nothing")


class PeopleVerdict(BaseModel):
    """The verdicts of people on blind pairs of the two variants."""

    wins: int = Field(description="verdicts for the tuned checkpoint")
    losses: int
    ties: int
    win_rate: MeanInterval = Field(
        description="share of verdicts for the tuned checkpoint, a tie counting 1/2, Wilson interval"
    )


class DecisionPair(BaseModel):
    """A tuned checkpoint against one variant that samples several candidates."""

    tuned: str = Field(description="a variant of `sides`")
    sampled: str = Field(description="a variant of `sides`")
    state: Literal["not measured", "preliminary", "decided"]
    reasons: list[str] = Field(description="what the load test lacks for a decision")
    training_hours: float | None = Field(description="device hours; null if unknown")
    training_source: str
    given_up: dict[Judge, MeanInterval] = Field(
        description="reward of sampled minus tuned, paired by prompt; absent: not measured"
    )
    judged_by: Judge = Field(description="the judge of `equal_n` and of `state`")
    equal_n: float | None = Field(
        description="N at which best-of-N reaches the reward of the tuned checkpoint"
    )
    equal_n_low: float | None
    equal_n_high: float | None
    equal_n_beyond: bool = Field(description="true: outside the values of N that were measured")
    equal_n_low_open: bool = Field(
        description="true: the interval reaches below one sample, so equal_n_low is only a bound"
    )
    equal_n_high_open: bool = Field(
        description="true: the interval reaches above equal_n_high, which is only a bound"
    )
    people: PeopleVerdict | None = Field(description="null: nobody has judged such a pair")


class Decision(BaseModel):
    """The newest load test of the models served that compares a tuned checkpoint with best-of-N."""

    run: str | None = Field(description="id of the load test; null if there is none")
    measured: str | None = Field(description="when the load test ended, ISO 8601")
    currency: str
    price_per_hour: float
    training_price_per_hour: float | None = Field(
        None, description="price of a device hour of training; null: `price_per_hour`"
    )
    machine: str | None = Field(description="the machine that ran the load test")
    prompts: int
    pairs: list[DecisionPair] = Field(description="largest N first")
    sides: list[DecisionSide]
    warnings: list[str] = Field(description="what may mislead in the load test")
    missing: list[str] = Field(description="why there is no comparison; empty if there is one")


People = Callable[[DecisionSide, DecisionSide], PeopleVerdict | None]


def decision_data(result: LoadTestResult, people: People = lambda tuned, sampled: None) -> Decision:
    """The comparison that a load test holds.

    Args:
        people: gives the verdicts of people on a tuned and a sampled variant.
    """
    quality = {one.variant: one for one in result.quality}
    variants = dict.fromkeys([cell.variant for cell in result.cells] + list(quality))
    sides = {name: _side(name, result, quality.get(name)) for name in variants}
    ordered = sorted(result.break_even, key=lambda pair: -sides[pair.sampled].n)
    machine = result.provenance.get("machine") or {}
    return Decision(
        run=result.id,
        measured=result.created,
        currency=str(result.settings.get("currency", "USD")),
        price_per_hour=float(result.settings.get("price_per_hour", 1.0)),
        training_price_per_hour=result.settings.get("training_price_per_hour"),
        machine=str(machine["system"]) if "system" in machine else None,
        prompts=result.prompts,
        pairs=[
            _pair(one, quality, sides[one.tuned], sides[one.sampled], people) for one in ordered
        ],
        sides=list(sides.values()),
        warnings=result.warnings,
        missing=[],
    )


def _side(name: str, result: LoadTestResult, quality: Quality | None) -> DecisionSide:
    cells = [cell for cell in result.cells if cell.variant == name]
    first = quality or cells[0]
    return DecisionSide(
        variant=name,
        mode=first.mode,
        n=first.n,
        tokens_per_answer=_tokens(cells),
        rewards={} if quality is None else _by_judge(quality.reward, quality.gold),
        win_rates={} if quality is None else _by_judge(quality.win_rate, quality.gold_win_rate),
        truncated_share=None if quality is None else quality.truncated_share,
        levels=_levels(name, cells, result),
    )


def _by_judge(reward: MeanInterval | None, gold: MeanInterval | None) -> dict[Judge, MeanInterval]:
    found: dict[Judge, MeanInterval | None] = {"reward": reward, "gold": gold}
    return {judge: one for judge, one in found.items() if one is not None}


def _tokens(cells: Sequence[CellResult]) -> float | None:
    """Generated tokens per answer at the level with the most answers."""
    usable = [cell for cell in cells if cell.requests_per_s.median > 0]
    if not usable:
        return None
    most = max(usable, key=lambda cell: cell.requests_per_s.median)
    return most.generated_tokens_per_s.median / most.requests_per_s.median


def _levels(name: str, cells: Sequence[CellResult], result: LoadTestResult) -> list[LoadLevel]:
    """The levels of a variant; the searched rate alone if the search was confirmed."""
    found = next((one for one in result.saturation if one.variant == name and one.confirmed), None)
    capacity = capacity_of(name, cells, result.saturation, result.server.running_sequences)
    if capacity is not None and capacity.searched and found is not None:
        rounds = dict(capacity.by_round) or {0: capacity.requests_per_s.median}
        return [_level(capacity.source, found.p95_ms, rounds, above=capacity.above)]
    return [
        _level(
            f"{cell.load:g} {'in flight' if cell.load_kind == 'closed' else 'requests/s'}",
            None if cell.e2e_ms is None else cell.e2e_ms.p95,
            {
                one.round: one.requests_per_s if one.goodput_per_s is None else one.goodput_per_s
                for one in cell.rounds
            },
        )
        for cell in cells
        if cell.requests_per_s.median > 0
    ]


def _level(
    load: str, p95_ms: float | None, rounds: dict[int, float], *, above: float = 1.0
) -> LoadLevel:
    shown = [MeasuredRound(round=key, answers_per_s=rate) for key, rate in sorted(rounds.items())]
    return LoadLevel(load=load, p95_ms=p95_ms, above=above, rounds=shown)


def _pair(
    pair: BreakEven,
    quality: dict[str, Quality],
    tuned: DecisionSide,
    sampled: DecisionSide,
    people: People,
) -> DecisionPair:
    given_up = {}
    if pair.tuned in quality and pair.sampled in quality:
        own, other = quality[pair.tuned], quality[pair.sampled]
        given_up = _by_judge(
            _difference(other.prompt_rewards, own.prompt_rewards),
            _difference(other.prompt_golds, own.prompt_golds),
        )
    return DecisionPair(
        tuned=pair.tuned,
        sampled=pair.sampled,
        state=pair.state,
        reasons=pair.reasons,
        training_hours=pair.training_hours,
        training_source=pair.training_source,
        given_up=given_up,
        judged_by=pair.judged_by,
        equal_n=pair.equal_n,
        equal_n_low=pair.equal_n_low,
        equal_n_high=pair.equal_n_high,
        equal_n_beyond=pair.equal_n_beyond,
        equal_n_low_open=pair.equal_n_low_open,
        equal_n_high_open=pair.equal_n_high_open,
        people=people(tuned, sampled),
    )


def _difference(sampled: dict[str, float], tuned: dict[str, float]) -> MeanInterval | None:
    shared = sorted(sampled.keys() & tuned.keys(), key=int)
    return interval([sampled[prompt] - tuned[prompt] for prompt in shared])
