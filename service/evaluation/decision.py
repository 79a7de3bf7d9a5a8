"""The comparison on which "N times inference or one fine-tune?" is decided, from stored load tests.

The newest load test counts that measured the models served now and compares a tuned checkpoint with
best-of-N.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from pydantic import ValidationError

from service.evaluation.frontier import ServedModels, same_models
from service.loadtest.analysis.decision_data import (
    Decision,
    DecisionSide,
    PeopleVerdict,
    decision_data,
)
from service.loadtest.schema import LoadTestResult
from vbon.maths.intervals import MeanInterval

if TYPE_CHECKING:
    from service.store import HumanWinRate

_NO_RUN = "No load test of the models that are served now is stored."
_NO_STORE = "This server keeps no load tests; start it with --store FILE."
_NO_PAIR = (
    "The load tests of these models compare no tuned checkpoint with a mode that samples several "
    "candidates."
)
# The same where older load tests were not looked at.
_NO_NEW_RUN = "None of the newest {} load tests is of the models that are served now."
_NO_NEW_PAIR = (
    "The newest {} load tests compare no tuned checkpoint of these models with a mode that samples "
    "several candidates."
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
    most: int = 0,
) -> Decision:
    """The newest comparison that the stored load tests hold of the models served.

    Args:
        runs: results of stored load tests, newest first.
        people: the verdicts on blind pairs, of the models served.
        kept: whether this server has a store.
        most: the number of runs that were asked for; 0 for all.
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
        return decision_data(compared, partial(_people, people))
    missing = [_NO_TUNED] if len(served.policies) == 1 else []
    if not kept:
        missing.append(_NO_STORE)
    elif 0 < most <= len(runs):
        missing.append((_NO_NEW_PAIR if own else _NO_NEW_RUN).format(most))
    else:
        missing.append(_NO_PAIR if own else _NO_RUN)
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


def _people(
    people: Sequence[HumanWinRate], tuned: DecisionSide, sampled: DecisionSide
) -> PeopleVerdict | None:
    own, other = (tuned.mode, tuned.n), (sampled.mode, sampled.n)
    for line in people:
        one, against = (line.mode, line.n), (line.against, line.against_n)
        if (one, against) == (own, other):
            return PeopleVerdict(
                wins=line.wins,
                losses=line.losses,
                ties=line.ties + line.both_bad,
                win_rate=line.win_rate,
            )
        if (one, against) == (other, own):
            rate = line.win_rate
            turned = MeanInterval(1 - rate.mean, 1 - rate.high, 1 - rate.low, rate.count)
            return PeopleVerdict(
                wins=line.losses,
                losses=line.wins,
                ties=line.ties + line.both_bad,
                win_rate=turned,
            )
    return None
