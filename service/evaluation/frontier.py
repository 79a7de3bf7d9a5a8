"""The known KL, win rate and reward of each policy and mode that this server serves.

The figures come from training records, an evaluation file and stored load tests. Evaluations and load tests
of other revisions than those served are left out; a training record of others is shown with a note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pydantic import ValidationError

from service.generation.references import scorer_ref
from service.loadtest.schema import LoadTestResult, Quality
from service.runtime.runtime import Runtime
from service.schemas import ModelRef
from service.schemas.frontier import (
    BonPoint,
    Bound,
    Distance,
    Frontier,
    LivePoint,
    PolicyPoint,
)
from service.settings import REFERENCE, ServiceSettings
from vbon.errors import DataError
from vbon.maths.distribution import kl_upper_bound, max_win_rate
from vbon.maths.intervals import MeanInterval
from vbon.storage.evaluation_record import EvaluationRecord, MethodRow, read_evaluation
from vbon.storage.training_record import HeldoutFigures, TrainingRecord, read_training_record

UPPER_BOUND = "upper bound"
_NO_RECORD = (
    "its directory has no training.json, so its KL, win rate and reward are unknown; measure them "
    "with `vbon evaluate --checkpoints {name}={path} ...`"
)
_NO_EVALUATION = (
    "the points of best-of-n are unknown; measure them with `vbon evaluate --policy {ref} "
    "--reward REWARD --prompts heldout.jsonl --out evaluation`, then start this server with "
    "`--evaluation evaluation/evaluation.json`"
)
_NO_RUNS = (
    "no load test of these models is stored, so live modes have no points; start one under Runs"
)


@dataclass(frozen=True, slots=True)
class ServedModels:
    """The models that this server serves, with their revisions."""

    policies: dict[str, ModelRef]
    reward: ModelRef | None
    gold: ModelRef | None


def served_models(runtime: Runtime) -> ServedModels:
    """The models of a runtime."""
    policies = {
        name: ModelRef(name=name, path=engine.info.path, revision=engine.info.revision)
        for name, engine in runtime.policies.items()
    }
    return ServedModels(
        policies, scorer_ref("reward", runtime.reward), scorer_ref("gold", runtime.gold)
    )


def frontier_of(runtime: Runtime, runs: Sequence[dict[str, object]]) -> Frontier:
    """All known figures, with notes on those that are missing. Reads files.

    Args:
        runs: results of stored load tests, newest first.
    """
    served, settings = served_models(runtime), runtime.settings
    notes: list[str] = []
    evaluation = _evaluation(settings.evaluation, served, notes)
    policies = [_policy_point(one, served, evaluation) for one in served.policies.values()]
    rows = [] if evaluation is None else evaluation.rows
    best_of_n = [_best_of_n(row) for row in rows if row.method == "best-of-n"]
    live = _live_points(runs, served, {point.name: point.kl_nats for point in policies})
    if settings.evaluation is None:
        notes.append(_NO_EVALUATION.format(ref=served.policies[REFERENCE].path))
    if not live:
        notes.append(_NO_RUNS)
    return Frontier(
        policies=policies,
        best_of_n=best_of_n,
        live=live,
        bounds=_bounds(settings, [point.n for point in best_of_n]),
        reward_model=served.reward,
        gold_model=served.gold,
        evaluation=None if evaluation is None else settings.evaluation,
        notes=notes,
    )


def _bounds(settings: ServiceSettings, measured: Sequence[int]) -> list[Bound]:
    """The bounds at powers of 2 up to the server's limit, at its default N, and where measured."""
    powers = {2**k for k in range(12) if 2**k <= settings.limits.max_n}
    return [
        Bound(n=n, kl_nats=kl_upper_bound(n), win_rate=max_win_rate(n))
        for n in sorted(powers | {settings.default_n} | set(measured))
    ]


def _evaluation(
    file: str | None, served: ServedModels, notes: list[str]
) -> EvaluationRecord | None:
    """The evaluation, if it used the reference policy and the reward model served; else adds a note."""
    if file is None:
        return None
    try:
        found = read_evaluation(file)
    except DataError as error:
        notes.append(str(error))
        return None
    reward = None if served.reward is None else served.reward.revision
    for name, revision in (("reference", served.policies[REFERENCE].revision), ("reward", reward)):
        if found.revisions.get(name) != revision:
            notes.append(
                f"{file} is not shown, because it evaluates {name} {found.revisions.get(name)} and this "
                f"server has {revision}"
            )
            return None
    return found


def _policy_point(
    policy: ModelRef, served: ServedModels, evaluation: EvaluationRecord | None
) -> PolicyPoint:
    training = read_training_record(policy.path)
    row = _row_of(policy, evaluation)
    if row is not None:
        held: HeldoutFigures | MethodRow | None = row
    else:
        held = None if training is None else training.heldout
    if held is None:
        return _unmeasured(policy, training)
    notes = [] if row is not None or training is None else _differences(training, served)
    return PolicyPoint(
        name=policy.name,
        policy=policy,
        kl_nats=Distance(**asdict(held.kl_nats), kind=_kind(held.kl_kind)),
        win_rate=held.win_rate,
        reward=held.reward,
        gold=held.gold,
        gold_win_rate=held.gold_win_rate,
        training=training,
        source="training record" if row is None else "evaluation",
        notes=notes,
    )


def _kind(kind: str | None) -> str | None:
    return "definition" if kind == "zero" else kind


def _row_of(policy: ModelRef, evaluation: EvaluationRecord | None) -> MethodRow | None:
    """The evaluation's row for the policy, if it is of the same revision."""
    if evaluation is None:
        return None
    name = "reference" if policy.name == REFERENCE else policy.name
    if evaluation.revisions.get(name) != policy.revision:
        return None
    return next((row for row in evaluation.rows if row.method == name), None)


def _unmeasured(policy: ModelRef, training: TrainingRecord | None) -> PolicyPoint:
    is_reference = policy.name == REFERENCE
    notes = []
    if is_reference:
        notes.append("KL 0 and win rate 1/2 hold by definition; its reward has not been measured")
    elif training is None:
        notes.append(_NO_RECORD.format(name=policy.name, path=policy.path))
    else:
        notes.append("its training record has no held-out figures")
    zero = Distance(mean=0, low=0, high=0, count=0, kind="definition")
    return PolicyPoint(
        name=policy.name,
        policy=policy,
        kl_nats=zero if is_reference else None,
        win_rate=MeanInterval(mean=0.5, low=0.5, high=0.5, count=0) if is_reference else None,
        reward=None,
        gold=None,
        gold_win_rate=None,
        training=training,
        source="definition" if is_reference else None,
        notes=notes,
    )


def _differences(training: TrainingRecord, served: ServedModels) -> list[str]:
    """A note for each model in the training record that differs from the one served."""
    reward = None if served.reward is None else served.reward.revision
    asked = (
        ("policy_revision", "reference", served.policies[REFERENCE].revision, "KL and win rate"),
        ("reward_revision", "reward model", reward, "win rate and reward"),
    )
    return [
        f"its {what} refer to another {which} ({training.settings[key]}; here {revision})"
        for key, which, revision, what in asked
        if training.settings.get(key) not in (None, revision)
    ]


def _best_of_n(row: MethodRow) -> BonPoint:
    return BonPoint(
        n=row.n,
        kl_nats=Distance(**asdict(row.kl_nats), kind=row.kl_kind),
        win_rate=row.win_rate,
        reward=row.reward,
        gold=row.gold,
        gold_win_rate=row.gold_win_rate,
    )


def _live_points(
    runs: Sequence[dict[str, object]], served: ServedModels, distances: dict[str, Distance | None]
) -> list[LivePoint]:
    found: dict[tuple[str, int], LivePoint] = {}
    for run in runs:
        try:
            result = LoadTestResult.model_validate(run)
        except ValidationError:  # stored by an incompatible version
            continue
        for one in result.quality:
            if (one.mode, one.n) not in found and same_models(result, one, served):
                found[one.mode, one.n] = _live_point(result, one, distances)
    return list(found.values())


def same_models(result: LoadTestResult, one: Quality, served: ServedModels) -> bool:
    """True if the load test used the policies and the reward model served now, for this mode."""
    name, _, over = one.mode.partition("@")
    drawn_from = {m.name: m.policy.name for m in result.server.modes if m.policy is not None}
    revisions = {policy.name: policy.revision for policy in result.server.policies}
    rewards = {mode.reward_model.revision for mode in result.server.modes if mode.reward_model}
    return (
        served.reward is not None
        and rewards <= {served.reward.revision}
        and all(
            policy in served.policies and revisions.get(policy) == served.policies[policy].revision
            for policy in (REFERENCE, over or drawn_from.get(name, ""))
        )
    )


def _live_point(
    result: LoadTestResult, one: Quality, distances: dict[str, Distance | None]
) -> LivePoint:
    distance = distances.get(one.mode)
    if one.mode == "bon":
        bound = kl_upper_bound(one.n)
        distance = Distance(mean=bound, low=bound, high=bound, count=0, kind=UPPER_BOUND)
    return LivePoint(
        mode=one.mode,
        n=one.n,
        kl_nats=distance,
        win_rate=one.win_rate,
        reward=one.reward,
        run=result.id,
        measured=result.created,
    )
