"""Rollout of checkpoints: invariants over sequences of events, error rates by simulation with fixed seeds."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.distil.rollout import Rollout
from service.distil.rollout_parts import MOST_JUDGED, Event, EventKind, RolloutPlan, Status
from service.distil.shadows import judged_win_rate
from vbon.errors import InvalidInputError, NotFoundError, StoreError
from vbon.maths.sequential import FallDetector

PLAN = RolloutPlan(n=16)
CONVERSATIONS = [f"conversation {i}" for i in range(60)]
NAMES = ("a", "b", "c")

# Decides after few observations, so that short sequences reach every status.
HASTY = RolloutPlan(n=1, margin=0.1, shares=(0.3, 0.6, 1.0), alpha=0.6, run_length=3)
OTHER_PLANS = {
    "hasty": HASTY,
    "strict": replace(HASTY, margin=0.02),
    "approve": replace(HASTY, approve=True),
    "at once": replace(HASTY, shares=(1.0,)),
}
# The status after each kind of event; the others change none.
AFTER: dict[EventKind, Status] = {
    "submitted": "waiting",
    "approved": "waiting",
    "advanced": "rolling",
    "live": "live",
    "retired": "retired",
    "refused": "refused",
    "rolled_back": "rolled_back",
}


def started(*names: str, plan: RolloutPlan = PLAN) -> Rollout:
    rollout = Rollout(plan)
    for name in names:
        rollout.submit(name, "promote")
    return rollout


def with_live(name: str, plan: RolloutPlan = PLAN) -> Rollout:
    rollout = started(name, plan=plan)
    for _ in plan.shares[1:]:
        rollout.promote(name)
    return rollout


def statuses(rollout: Rollout) -> dict[str, Status]:
    return {found.id: found.status for found in rollout.checkpoints}


def kinds(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.kind, event.checkpoint) for event in events]


# -- invariants

Act = tuple[str, str, str]
ACTS = st.one_of(
    st.tuples(st.just("submit"), st.sampled_from(NAMES), st.sampled_from(["promote", "refuse", "undecided"])),
    st.tuples(st.just("observe"), st.sampled_from(NAMES), st.sampled_from(["0 0 0", "1 1 1", "0.5", "0 1"])),
    st.tuples(st.sampled_from(["promote", "refuse", "fail"]), st.sampled_from(NAMES), st.just("")),
    st.tuples(st.just("roll_back"), st.sampled_from([*NAMES, ""]), st.just("")),
    st.tuples(st.just("plan"), st.sampled_from(list(OTHER_PLANS)), st.just("")),
)  # fmt: skip


def do(rollout: Rollout, act: Act) -> list[Event] | str:
    """The events of an act, or the message with which it is refused."""
    kind, name, rest = act
    try:
        if kind == "submit":
            return rollout.submit(name, rest)  # type: ignore[arg-type]
        if kind == "observe":
            return [e for value in rest.split() for e in rollout.observe(name, float(value))]
        if kind == "plan":
            return rollout.change_plan(OTHER_PLANS[name])
        if kind == "fail":
            return rollout.fail(name, "no such file")
        if kind == "roll_back":
            return rollout.roll_back(name or None)
        return rollout.promote(name) if kind == "promote" else rollout.refuse(name)
    except (InvalidInputError, NotFoundError) as error:
        return str(error)


def check(rollout: Rollout, by_events: dict[str, Status]) -> None:
    found = statuses(rollout)
    count = Counter(found.values())
    assert count["live"] <= 1
    assert count["rolling"] <= 1
    assert by_events == found
    for loaded in (set(NAMES), {"a"}, {"b"}, set()):
        for conversation in CONVERSATIONS[:6]:
            route = rollout.route(conversation, loaded)
            if route.checkpoint is None:
                assert route.arm == "bon"
            else:
                assert found[route.checkpoint] == {"next": "rolling", "live": "live"}[route.arm]
                assert route.checkpoint in loaded
    for checkpoint in rollout.checkpoints:
        is_rolling = checkpoint.status == "rolling"
        assert is_rolling == (checkpoint.step is not None) == (checkpoint.good is not None)
        assert (checkpoint.status == "live") == (checkpoint.fall is not None)
        if checkpoint.status in ("retired", "refused", "rolled_back"):
            assert checkpoint.approved is None
        rollout.evidence(checkpoint.id)


@given(st.lists(ACTS, min_size=10, max_size=40))
def test_any_sequence_keeps_the_promises(acts: list[Act]) -> None:
    """Never two live or rolling checkpoints; no others get traffic; events tell statuses; JSON keeps all."""
    rollout, by_events = Rollout(HASTY), dict[str, Status]()
    for act in acts:
        text = rollout.to_json()
        twin = Rollout.from_json(text)
        assert twin.to_json() == text
        outcome = do(rollout, act)
        assert do(twin, act) == outcome
        assert twin.to_json() == rollout.to_json()
        if isinstance(outcome, str):
            assert rollout.to_json() == text, "an act that is refused changes nothing"
        else:
            by_events |= {e.checkpoint: AFTER[e.kind] for e in outcome if e.kind in AFTER}
        check(rollout, by_events)


def test_short_sequences_reach_every_status() -> None:
    """The acts above are enough: otherwise their invariants would say little."""
    rng, seen = random.Random(1), Counter[str]()
    fixed: list[Act] = [
        *[("submit", name, verdict) for name in NAMES for verdict in ("promote", "refuse")],
        *[("observe", name, values) for name in NAMES for values in ("0 0 0", "1 1 1")],
        *[("roll_back", name, "") for name in ("a", "")],
    ]  # fmt: skip
    for _ in range(40):
        rollout = Rollout(HASTY)
        for _ in range(20):
            do(rollout, rng.choice(fixed))
            seen.update(statuses(rollout).values())
    assert set(seen) == {"waiting", "rolling", "live", "retired", "refused", "rolled_back"}


# -- routing


def arms(rollout: Rollout, loaded: set[str], count: int = 4000) -> Counter[str]:
    return Counter(rollout.route(f"conversation {i}", loaded).arm for i in range(count))


def test_a_rolling_checkpoint_gets_its_share() -> None:
    """0.05 of 4,000 conversations is 200, with a standard deviation of 14."""
    rollout = with_live("old")
    rollout.submit("new", "promote")
    found = arms(rollout, {"old", "new"})
    assert found["next"] == pytest.approx(200, abs=60)
    assert found["live"] == 4000 - found["next"]
    route = next(r for c in CONVERSATIONS if (r := rollout.route(c, {"old", "new"})).arm == "live")
    assert (route.checkpoint, route.share, route.step) == ("old", 0.95, 0)


def test_without_a_live_checkpoint_best_of_n_answers_the_rest() -> None:
    assert set(arms(started("new"), {"new"})) == {"next", "bon"}
    assert set(arms(Rollout(PLAN), set())) == {"bon"}
    assert set(arms(with_live("new"), {"new"})) == {"live"}


def test_a_checkpoint_that_is_not_loaded_gets_nothing() -> None:
    rollout = with_live("old")
    rollout.submit("new", "promote")
    assert set(arms(rollout, {"old"})) == {"live"}
    assert set(arms(rollout, {"new"})) == {"next", "bon"}
    assert rollout.route("any", set()).share == 1


def test_conversations_stay_on_their_arm_while_the_share_grows() -> None:
    rollout = started("new")
    first = {c for c in CONVERSATIONS if rollout.route(c, {"new"}).arm == "next"}
    rollout.promote("new")
    second = {c for c in CONVERSATIONS if rollout.route(c, {"new"}).arm == "next"}
    assert rollout.checkpoint("new").step == 1
    assert first < second < set(CONVERSATIONS)


def test_each_checkpoint_begins_with_conversations_of_its_own() -> None:
    """Otherwise, the same people would try every new checkpoint."""
    plan = replace(PLAN, shares=(0.5, 1.0))
    one, other = started("a", plan=plan), started("b", plan=plan)
    differ = sum(
        one.route(c, NAMES).arm != other.route(c, NAMES).arm for c in map(str, range(1000))
    )
    assert differ == pytest.approx(500, abs=80)


def test_an_arm_s_shadows_are_the_same_share_of_the_traffic_at_each_step() -> None:
    rollout = with_live("old")
    rollout.submit("new", "promote")
    wanted = {0: (1.0, 0.1 / 0.95), 1: (0.4, 0.1 / 0.75)}
    for step, (of_next, of_live) in wanted.items():
        assert rollout.checkpoint("new").step == step
        by_arm = {r.arm: r for c in CONVERSATIONS for r in [rollout.route(c, {"old", "new"})]}
        assert rollout.shadow_probability(by_arm["next"], 0.1) == pytest.approx(of_next)
        assert rollout.shadow_probability(by_arm["live"], 0.1) == pytest.approx(of_live)
        rollout.promote("new")
    assert rollout.shadow_probability(rollout.route("any", {"new"}), 0.1) == 0.1
    assert rollout.shadow_probability(rollout.route("any", set()), 0.1) == 0.0


# -- evidence


def of_16(mean: float, rng: random.Random) -> Callable[[], float]:
    """Win rates of an answer whose quantile is Beta(a, 1) with this mean, each from 16 candidates."""
    a = mean / (1 - mean)

    def draw() -> float:
        quantile = rng.betavariate(a, 1)
        return sum(rng.random() < quantile for _ in range(16)) / 16

    return draw


def outcome_of(rollout: Rollout, name: str, draw: Callable[[], float], most: int) -> Status:
    """The status when it is no longer rolling, or after so many observations."""
    for _ in range(most):
        rollout.observe(name, draw())
        if rollout.checkpoint(name).status != "rolling":
            break
    return rollout.checkpoint(name).status


@pytest.mark.parametrize(
    ("mean", "status"), [(0.95, "live"), (0.8, "rolled_back"), (0.4, "rolled_back")]
)
def test_good_checkpoints_reach_all_traffic_and_bad_ones_go(mean: float, status: Status) -> None:
    for seed in range(4):
        rollout = started("new")
        assert outcome_of(rollout, "new", of_16(mean, random.Random(seed)), 700) == status


@pytest.mark.parametrize("success", [0.02, 0.05, 0.1])
def test_a_checkpoint_as_good_as_best_of_n_passes_where_rewards_of_1_are_rare(
    success: float,
) -> None:
    """Answers with the success of best-of-16, each judged by 16 candidates; the reference itself fails."""
    best = 1 - (1 - success) ** 16
    for seed, (answered, status) in enumerate([(best, "live")] * 3 + [(success, "rolled_back")]):
        rng, rollout = random.Random(seed), started("new")
        for _ in range(4000):
            rewards = [float(rng.random() < success) for _ in range(16)]
            answer = float(rng.random() < answered)
            judged = judged_win_rate(answer, rewards)
            assert judged is not None
            rollout.observe("new", judged, flat={answer} == set(rewards))
            if rollout.rolling is None:
                break
        assert rollout.checkpoint("new").status == status


def test_equal_rewards_promote_nothing_and_take_nothing_away() -> None:
    """A constant reward gives u = 0.94 after every answer of any checkpoint, and tells nothing."""
    constant = judged_win_rate(0.25, [0.25] * 16)
    assert constant == pytest.approx(16 / 17)
    rollout = started("new")
    for _ in range(1000):
        assert rollout.observe("new", constant, flat=True) == []
    found = rollout.evidence("new")
    assert (found.shadows, found.good) == (1000, pytest.approx(0.0))
    assert rollout.checkpoint("new").step == 0
    # What is known without them counts as before, also against it.
    draw = of_16(0.4, random.Random(0))
    while rollout.rolling is not None:
        rollout.observe("new", draw())
    assert rollout.checkpoint("new").status == "rolled_back"
    live = with_live("old")
    for _ in range(1000):
        assert live.observe("old", constant, flat=True) == []
    assert live.live is not None


def test_tests_of_an_earlier_release_begin_anew_with_the_wider_range() -> None:
    """Its observations were at most 1, so the tests could not take in what ties add."""
    rollout = with_live("old")
    rollout.submit("new", "promote")
    for name in ("old", "new"):
        rollout.observe(name, 0.9)
    state = json.loads(rollout.to_json())
    for one in state["checkpoints"]:
        for test in ("good", "bad", "fall"):
            if one[test] is not None:
                del one[test]["most"]
    found = Rollout.from_json(json.dumps(state))
    assert {one.kind for one in found.change_plan(PLAN)} >= {"restarted"}
    for name in ("old", "new"):
        assert found.evidence(name).shadows == 0
        found.observe(name, 1.4)
    assert Rollout.from_json(found.to_json()).change_plan(PLAN) == []


def test_a_checkpoint_that_is_worse_live_than_held_out_is_rolled_back_to_the_live_one() -> None:
    rollout, draw = with_live("old"), of_16(0.5, random.Random(2))
    rollout.submit("new", "promote")
    events: list[Event] = []
    while rollout.rolling is not None:
        events += rollout.observe("new", draw())
    assert kinds(events) == [("rolled_back", "new")]
    detail = events[0].detail
    assert (detail["reason"], detail["from"]) == ("win_rate", "rolling")
    assert detail["shadows"] == rollout.evidence("new").shadows < 20
    assert rollout.checkpoint("new").why == "win_rate"
    assert set(arms(rollout, {"old", "new"})) == {"live"}


def test_each_step_needs_its_own_evidence() -> None:
    """Answers that beat all candidates: the second step takes as many of them as the first."""
    rollout, since, taken = started("new"), 0, list[int]()
    while rollout.checkpoint("new").status == "rolling":
        since += 1
        if rollout.observe("new", 1.0):
            taken.append(since)
            since = 0
    assert taken[0] == taken[1] > 25
    assert len(taken) == 2


def test_a_rollback_counts_the_evidence_of_all_steps() -> None:
    rollout = started("new")
    for value in (0.75, 0.8):
        rollout.observe("new", value)
    before = rollout.evidence("new").bad
    rollout.promote("new")
    assert rollout.evidence("new").bad == before
    assert rollout.evidence("new").good == 0


def test_the_evidence_shows_how_far_the_tests_are() -> None:
    rollout = started("new")
    assert rollout.evidence("new").win_rate is None
    rollout.observe("new", 1.0)
    rollout.observe("new", 0.5)
    found = rollout.evidence("new")
    assert (found.shadows, found.win_rate) == (2, 0.75)
    assert found.needed == pytest.approx(math.log(20))
    assert found.good is not None
    assert found.bad is not None
    assert found.good < 0 < found.bad
    live = with_live("old")
    live.observe("old", 0.0)
    watched = live.evidence("old")
    assert watched.fall is not None
    assert watched.fall > 0
    assert watched.fall_needed == pytest.approx(math.log(100_000))
    assert watched.good is None


def test_errors_at_the_threshold_are_as_rare_as_promised() -> None:
    """Win rates of exactly the threshold, alpha = 0.2, 80 rollouts of 120 observations.

    29 or more of 80 at a true rate of 0.2 have a probability of 5e-4, for either error.
    """
    plan = replace(PLAN, alpha=0.2)
    draw = of_16(plan.threshold, random.Random(3))
    ends = Counter(outcome_of(started("new", plan=plan), "new", draw, 120) for _ in range(80))
    assert ends["rolled_back"] <= 28
    assert ends["live"] <= 28


def test_a_fall_of_the_live_checkpoint_sends_traffic_to_best_of_n() -> None:
    rng = random.Random(4)
    rollout, good, fallen = with_live("old"), of_16(0.95, rng), of_16(0.75, rng)
    for _ in range(500):
        assert rollout.observe("old", good()) == []
    events: list[Event] = []
    for _ in range(150):
        events += rollout.observe("old", fallen())
    assert kinds(events) == [("rolled_back", "old")]
    assert events[0].detail["reason"] == "fall"
    assert set(arms(rollout, {"old"})) == {"bon"}


def test_a_fall_is_acted_on_at_the_promised_run_length() -> None:
    rollout, detector = with_live("old"), FallDetector(PLAN.threshold, most=MOST_JUDGED)
    while rollout.live is not None:
        assert not detector.alarms(PLAN.run_length)
        detector = detector.observe(0.7)
        rollout.observe("old", 0.7)
    assert detector.alarms(PLAN.run_length)


def test_a_fall_of_the_live_checkpoint_leaves_the_rolling_one_alone() -> None:
    rollout = with_live("old")
    rollout.submit("new", "promote")
    while rollout.live is not None:
        rollout.observe("old", 0.0)
    assert statuses(rollout) == {"old": "rolled_back", "new": "rolling"}
    assert set(arms(rollout, {"old", "new"})) == {"next", "bon"}


def test_late_observations_of_a_checkpoint_that_went_are_left_out() -> None:
    rollout = with_live("old")
    rollout.roll_back(None)
    before = rollout.to_json()
    assert rollout.observe("old", 0.0) == []
    assert rollout.to_json() == before


# -- the trainer and persons


def test_the_same_submission_again_changes_nothing() -> None:
    rollout = started("a")
    before = rollout.to_json()
    assert rollout.submit("a", "promote") == []
    assert rollout.submit("a", "refuse") == []
    assert rollout.to_json() == before


def test_one_rolls_and_the_newest_waits_for_it() -> None:
    rollout = started("a", "b", "c")
    assert statuses(rollout) == {"a": "rolling", "b": "waiting", "c": "waiting"}
    rollout.promote("a")
    events = rollout.promote("a")
    assert kinds(events) == [
        ("live", "a"), ("retired", "b"), ("started", "c"), ("advanced", "c"),
    ]  # fmt: skip
    assert events[1].detail["reason"] == "superseded by c"
    rollout.promote("c")
    assert kinds(rollout.promote("c")) == [("retired", "a"), ("live", "c")]


def test_a_person_s_choice_goes_before_a_newer_one() -> None:
    rollout = started("a", "b", "c")
    rollout.promote("b")
    rollout.refuse("a")
    assert statuses(rollout) == {"a": "rolled_back", "b": "rolling", "c": "waiting"}


def test_a_person_must_approve_if_the_settings_say_so() -> None:
    rollout = started("a", "b", plan=replace(PLAN, approve=True))
    assert rollout.rolling is None
    assert kinds(rollout.promote("a")) == [("approved", "a"), ("started", "a"), ("advanced", "a")]
    assert statuses(rollout) == {"a": "rolling", "b": "waiting"}


def test_undecided_ones_wait_for_a_person_and_refused_ones_can_be_promoted() -> None:
    rollout = Rollout(PLAN)
    assert kinds(rollout.submit("a", "undecided")) == [("submitted", "a")]
    assert kinds(rollout.submit("b", "refuse")) == [("submitted", "b"), ("refused", "b")]
    assert statuses(rollout) == {"a": "waiting", "b": "refused"}
    rollout.promote("b")
    assert statuses(rollout) == {"a": "retired", "b": "rolling"}


def test_a_rolled_back_checkpoint_that_a_person_promotes_begins_anew() -> None:
    rollout = started("a")
    while rollout.rolling is not None:
        rollout.observe("a", 0.0)
    rollout.promote("a")
    found = rollout.checkpoint("a")
    assert (found.status, found.step, found.shadows, found.why) == ("rolling", 0, 0, None)
    assert rollout.observe("a", 1.0) == []


def test_going_back_in_one_step_to_any_that_was_live() -> None:
    rollout = with_live("a")
    rollout.submit("b", "promote")
    rollout.promote("b")
    rollout.promote("b")
    rollout.submit("c", "promote")
    assert statuses(rollout) == {"a": "retired", "b": "live", "c": "rolling"}
    events = rollout.roll_back("a")
    assert kinds(events) == [("rolled_back", "c"), ("rolled_back", "b"), ("live", "a")]
    assert {e.detail["reason"] for e in events} == {"person"}
    assert set(arms(rollout, {"a", "b", "c"})) == {"live"}
    assert rollout.roll_back("a") == []
    assert kinds(rollout.roll_back("b")) == [("rolled_back", "a"), ("live", "b")]


def test_only_what_was_live_can_be_gone_back_to() -> None:
    rollout = with_live("a")
    rollout.submit("b", "refuse")
    with pytest.raises(InvalidInputError, match="never been live; promote it"):
        rollout.roll_back("b")
    with pytest.raises(NotFoundError, match="'x'"):
        rollout.roll_back("x")
    assert statuses(rollout) == {"a": "live", "b": "refused"}


def test_after_a_person_s_rollback_nothing_starts_by_itself_but_what_is_new() -> None:
    rollout = started("a", "b")
    rollout.roll_back(None)
    rollout.change_plan(PLAN)  # as at a restart
    assert statuses(rollout) == {"a": "rolled_back", "b": "waiting"}
    rollout.submit("c", "promote")
    assert statuses(rollout) == {"a": "rolled_back", "b": "retired", "c": "rolling"}


def test_a_live_checkpoint_is_rolled_back_rather_than_refused() -> None:
    with pytest.raises(InvalidInputError, match="is live; only waiting and rolling"):
        with_live("a").refuse("a")


def test_a_checkpoint_that_cannot_be_loaded_makes_room_for_the_next() -> None:
    rollout = started("a", "b")
    events = rollout.fail("a", "no such file")
    assert kinds(events) == [("rolled_back", "a"), ("started", "b"), ("advanced", "b")]
    assert (events[0].detail["reason"], events[0].detail["message"]) == ("failed", "no such file")
    assert rollout.fail("a", "again") == []


# -- settings and JSON


def test_a_changed_threshold_begins_the_tests_anew() -> None:
    rollout = with_live("old")
    rollout.submit("new", "promote")
    rollout.promote("new")
    for name in ("old", "new"):
        rollout.observe(name, 0.5)
    assert rollout.change_plan(PLAN) == []
    events = rollout.change_plan(replace(PLAN, margin=0.1))
    assert kinds(events) == [("restarted", "old"), ("restarted", "new"), ("advanced", "new")]
    found = rollout.checkpoint("new")
    assert found.step == 0
    assert found.bad is not None
    assert found.bad.count == 0
    assert found.bad.threshold == pytest.approx(16 / 17 - 0.1)
    live = rollout.checkpoint("old")
    assert live.fall is not None
    assert live.fall.threshold == pytest.approx(16 / 17 - 0.1)


def test_another_error_rate_keeps_the_evidence() -> None:
    rollout = started("new")
    rollout.observe("new", 0.5)
    assert rollout.change_plan(replace(PLAN, alpha=0.01)) == []
    assert rollout.evidence("new").shadows == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2, "plan": "of a later form"}, "version 2, and this program reads 1"),
        ({"plan": None}, "cannot be read"),
        ({"checkpoints": [{"id": "a", "status": "live"}, {"id": "b", "status": "live"}]}, "two live"),
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_used_is_refused(change: dict[str, object], message: str) -> None:
    state = json.loads(Rollout(PLAN).to_json())
    with pytest.raises(StoreError, match=message):
        Rollout.from_json(json.dumps(state | change))
    with pytest.raises(StoreError, match="cannot be read"):
        Rollout.from_json("{")


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"shares": ()}, "distil.shares"),
        ({"shares": (0.5,)}, "distil.shares"),
        ({"shares": (0.5, 0.5, 1.0)}, "distil.shares"),
        ({"shares": (0.0, 1.0)}, "distil.shares"),
        ({"margin": 0.95}, "distil.margin"),
        ({"margin": -0.06}, "distil.margin"),
    ],
)
def test_impossible_plans_are_refused(wrong: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        replace(PLAN, **wrong)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_what_waits_needs_a_person_once_the_settings_want_one() -> None:
    rollout = started("a", "b")
    rollout.change_plan(replace(PLAN, approve=True))
    assert statuses(rollout) == {"a": "rolling", "b": "waiting"}
    rollout.refuse("a")
    assert statuses(rollout) == {"a": "rolled_back", "b": "waiting"}
    rollout.promote("b")
    assert statuses(rollout)["b"] == "rolling"
