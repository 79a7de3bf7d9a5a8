"""The comparison on which "N times inference or one fine-tune?" is decided, from stored load tests.

The newest load test counts that measured the models served now and compares a tuned checkpoint with
best-of-N. It is handed on as measured, round by round: whoever reads it can put in another price, training
time, volume or latency limit and compute the same verdict anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError

from service.evaluation.frontier import ServedModels, same_models
from service.loadtest.analysis.break_even import capacity_of
from service.loadtest.analysis.intervals import interval
from service.loadtest.schema import BreakEven, CellResult, LoadTestResult, Quality
from service.schemas.decision import (
    Decision,
    DecisionPair,
    DecisionSide,
    Judge,
    LoadLevel,
    MeasuredRound,
    PeopleVerdict,
)
from vbon.maths.intervals import MeanInterval

if TYPE_CHECKING:
    from service.store import HumanWinRate

_NO_RUN = "No load test of the models that are served now is stored."
_NO_STORE = "This server keeps no load tests; start it with --store FILE."
_NO_PAIR = (
    "The load tests of these models compare no tuned checkpoint with a mode that samples several "
    "candidates."
)
_NO_TUNED = (
    "Only the reference policy is served. Train a checkpoint with `vbon train vbon` and serve it with "
    "`--policies.vbon DIR`."
)


def decision_of(
    served: ServedModels,
    runs: Sequence[dict[str, object]],
    people: Sequence[HumanWinRate],
    *,
    kept: bool,
) -> Decision:
    """The newest comparison that the stored load tests hold of the models served.

    Args:
        runs: results of stored load tests, newest first.
        people: the verdicts on blind pairs.
        kept: whether this server has a store.
    """
    own = []
    for run in runs:
        try:
            result = LoadTestResult.model_validate(run)
        except ValidationError:  # stored by an incompatible version
            continue
        if result.quality and all(same_models(result, one, served) for one in result.quality):
            own.append(result)
    compared = next((result for result in own if result.break_even), None)
    if compared is not None:
        return _from(compared, people)
    missing = [_NO_TUNED] if len(served.policies) == 1 else []
    missing.append(_NO_STORE if not kept else _NO_PAIR if own else _NO_RUN)
    return Decision(
        run=None,
        measured=None,
        currency="USD",
        price_per_hour=1.0,
        machine=None,
        prompts=0,
        pairs=[],
        sides=[],
        warnings=[],
        missing=missing,
    )


def _from(result: LoadTestResult, people: Sequence[HumanWinRate]) -> Decision:
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
    people: Sequence[HumanWinRate],
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
        people=_people(tuned, sampled, people),
    )


def _difference(sampled: dict[str, float], tuned: dict[str, float]) -> MeanInterval | None:
    shared = sorted(sampled.keys() & tuned.keys(), key=int)
    return interval([sampled[prompt] - tuned[prompt] for prompt in shared])


def _people(
    tuned: DecisionSide, sampled: DecisionSide, people: Sequence[HumanWinRate]
) -> PeopleVerdict | None:
    own, other = (tuned.mode, tuned.n), (sampled.mode, sampled.n)
    for line in people:
        one, against = (line.mode, line.n), (line.against, line.against_n)
        if (one, against) == (own, other):
            return PeopleVerdict(
                wins=line.wins, losses=line.losses, ties=line.ties, win_rate=line.win_rate
            )
        if (one, against) == (other, own):
            rate = line.win_rate
            turned = MeanInterval(1 - rate.mean, 1 - rate.high, 1 - rate.low, rate.count)
            return PeopleVerdict(
                wins=line.losses, losses=line.wins, ties=line.ties, win_rate=turned
            )
    return None
