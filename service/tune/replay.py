"""Replays settings from candidates that were drawn once, at the largest N, without the engine.

Best-of-n of every n <= N has a closed form (:mod:`vbon.maths.curves`). Other rules, and rules that stop
drawing, are applied by the service's own functions to subsets of the candidates. The subsets are chosen
without a look at the rewards, so the mean over them is unbiased.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from service.strategies import STRATEGIES, Strategy
from service.strategies.adaptive_bon import AdaptiveBon
from service.strategies.bon import Bon
from service.strategies.regularised import LikelihoodReranker
from service.strategies.rerank import CandidatePool, Reranker, draw
from service.tune.drawing import Drawn, Float, PromptCandidates
from service.tune.setting import BON, Measured, setting_of
from vbon.embedders.ngrams import NgramEmbedder
from vbon.errors import InvalidInputError
from vbon.maths.curves import selection_matrix
from vbon.maths.seeds import seed_of
from vbon.measured.target import Metric

_ORDERS = 4  # random orders of the candidates, each cut into blocks of n
_STOPPING_ORDERS = 16  # of a rule that stops drawing, which takes one answer from each order
# The optional fields of a pool that a replay can fill.
_FILLED = frozenset({"texts"})

_selection_matrix = lru_cache(maxsize=4)(selection_matrix)


@dataclass(frozen=True, slots=True)
class Rule:
    """A mode with its settings, whose choice can be replayed."""

    mode: str
    strategy: Reranker | AdaptiveBon

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that a request must send."""
        return self.strategy.model_dump(mode="json", exclude_unset=True)


@dataclass(frozen=True, slots=True)
class Run:
    """One order of the candidates, and the sizes of the rounds that a rule would draw in it."""

    order: np.ndarray[Any, Any]
    sizes: tuple[int, ...]

    def up_to(self, most: int) -> tuple[np.ndarray[Any, Any], int]:
        """The candidates drawn if at most ``most`` may be, and the number of rounds.

        A lower limit cuts the rounds short and changes nothing before, because a rule looks at rewards alone.
        """
        drawn = min(sum(self.sizes), most)
        begun = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        return self.order[:drawn], int((begun < drawn).sum())


@dataclass(frozen=True, slots=True)
class Opponents:
    """Samples of the reference policy, against which win rates are measured: rewards by prompt."""

    rewards: tuple[Float | None, ...]


def can_replay(mode: str, *, embedder: str = "ngrams") -> bool:
    """Tell whether a mode's choice can be replayed from kept candidates.

    Args:
        embedder: the server's, by which some rules compare texts.
    """
    if mode not in STRATEGIES or mode not in STRATEGIES.built_in:
        return False
    found = STRATEGIES[mode]
    if issubclass(found, AdaptiveBon):
        return True
    if not issubclass(found, Reranker) or found.run is not Reranker.run:
        return False
    if not found.needs_reward or not found.needs <= _FILLED:
        return False
    return embedder == "ngrams" or not found.compares_texts


def rule_of(mode: str, settings: dict[str, Any], *, reshaped: bool, tells: str) -> Rule:
    """The rule of a mode with these settings.

    Args:
        reshaped: whether candidates come from another distribution than the policy's own.
        tells: the log-probabilities that the engines tell, ``policy`` or ``sampled``; a rule that weighs them
            then weighs those, because others are not kept.

    Raises:
        InvalidInputError: the mode does not take a setting, or a value is out of range.
    """
    from service.strategies.request_fields import configured

    kind: type[Strategy] = STRATEGIES[mode]
    if issubclass(kind, LikelihoodReranker) and reshaped and "log_p" not in settings:
        settings = {**settings, "log_p": tells}
    found = configured(mode, kind(), settings)
    if not isinstance(found, Reranker | AdaptiveBon):
        raise InvalidInputError(f"mode {mode!r} cannot be replayed", field="modes")
    return Rule(mode, found)


def replay_bon(drawn: Drawn, opponents: Opponents | None = None) -> list[Measured]:
    """One sample, and best-of-n of every n up to the number of candidates drawn."""
    prompts, total = len(drawn.prompts), drawn.n
    names: list[Metric] = ["reward", "gold", *(["win-rate"] if opponents else [])]  # type: ignore[list-item]
    gains = {name: np.full((prompts, total), np.nan) for name in names}
    tokens = np.full(prompts, np.nan)
    matrix = _selection_matrix(total)
    for place, one in drawn.known:
        tokens[place] = one.lengths.mean()
        order, scored = _ascending(one)
        chosen = matrix * scored[order]  # a candidate without a reward is never chosen
        if not scored.any():
            continue
        for name, values in _values(one, place, opponents).items():
            gains[name][place] = _weighted(chosen, values[order])
    drawing = drawn.drawing
    found = []
    for n in range(1, total + 1):
        mode = drawing.policy if n == 1 else BON
        found.append(
            Measured(
                setting_of(mode, drawing, n, {}),
                {name: values[:, n - 1].copy() for name, values in gains.items()},
                tokens * n,
                failed=prompts - len(drawn.known),
                unscored=drawn.unscored,
            )
        )
    return found


def replay_rule(
    rule: Rule, drawn: Drawn, counts: Sequence[int], opponents: Opponents | None = None
) -> list[Measured]:
    """A rule at each of these n, which must be at most the number of candidates drawn."""
    similarities, runs = _similarities(rule, drawn), _runs(rule, drawn)
    return [_replayed(rule, drawn, n, similarities, runs, opponents) for n in counts]


def _replayed(
    rule: Rule,
    drawn: Drawn,
    n: int,
    similarities: dict[int, Float],
    runs: dict[int, list[Run]],
    opponents: Opponents | None,
) -> Measured:
    prompts = len(drawn.prompts)
    names: list[Metric] = ["reward", "gold", *(["win-rate"] if opponents else [])]  # type: ignore[list-item]
    gains = {name: np.full(prompts, np.nan) for name in names}
    tokens = np.full(prompts, np.nan)
    rounds: list[int] = []
    for place, one in drawn.known:
        values = _values(one, place, opponents)
        sums = {name: [0.0, 0.0] for name in values}
        spent = []
        for subset, round_count in _subsets(rule, one, n, drawn.drawing.key, runs.get(place)):
            spent.append(one.lengths[subset].sum())
            rounds.append(round_count)
            weights = choice_weights(rule, one, subset, similarities.get(place))
            if weights is None:
                continue
            for name, value in values.items():
                own = value[subset]
                known = ~np.isnan(own)
                sums[name][0] += float(weights[known] @ own[known])
                sums[name][1] += float(weights[known].sum())
        tokens[place] = float(np.mean(spent))
        for name, (total, weight) in sums.items():
            if weight > 0:
                gains[name][place] = total / weight
    return Measured(
        setting_of(rule.mode, drawn.drawing, n, rule.settings),
        gains,
        tokens,
        rounds=(float(np.mean(rounds)), float(np.quantile(rounds, 0.95))) if rounds else (1.0, 1.0),
        failed=prompts - len(drawn.known),
        unscored=drawn.unscored,
    )


def choice_weights(
    rule: Rule, one: PromptCandidates, subset: np.ndarray[Any, Any], similarity: Float | None = None
) -> Float | None:
    """The probability that the rule returns each candidate of a subset; ``None`` if none has a reward."""
    scored = ~np.isnan(one.rewards[subset])
    if not scored.any():
        return None
    kept = subset[scored]
    strategy = Bon() if isinstance(rule.strategy, AdaptiveBon) else rule.strategy
    pool = CandidatePool(
        rewards=one.rewards[kept],
        logprobs=one.logprobs[kept],
        lengths=one.lengths[kept],
        similarity=None if similarity is None else similarity[np.ix_(kept, kept)],
        texts=tuple(one.texts[place] for place in kept),
    )
    weights = np.zeros(len(subset))
    weights[scored] = strategy.distribution(pool)
    return weights


def replayed_answer(rule: Rule, one: PromptCandidates, n: int) -> tuple[int, float]:
    """The index of the candidate that a request for n with the same seed returns, and the tokens it decodes.

    Raises:
        ValueError: no candidate of it has a reward.
    """
    if isinstance(rule.strategy, AdaptiveBon):
        n = sum(rule.strategy.replay(one.rewards, n))
    first = one.first(n)
    subset = np.arange(n)
    similarity = _similarity(rule, first)
    weights = choice_weights(rule, first, subset, similarity)
    if weights is None:
        raise ValueError("no candidate has a reward")
    scored = subset[~np.isnan(first.rewards)]
    return int(scored[draw(weights[scored], one.seed)]), float(first.lengths.sum())


def _subsets(
    rule: Rule, one: PromptCandidates, n: int, key: str, runs: list[Run] | None
) -> Iterator[tuple[np.ndarray[Any, Any], int]]:
    """The subsets to apply a rule to, and the number of rounds in which each would be drawn."""
    if isinstance(rule.strategy, AdaptiveBon):
        most = rule.strategy.most_candidates(n)
        for run in runs or []:
            yield run.up_to(most)
        return
    rng = np.random.default_rng(seed_of(f"{key}/{one.seed}/{n}"))
    for _ in range(_ORDERS):
        order = rng.permutation(one.count)
        for start in range(0, one.count - n + 1, n):
            yield order[start : start + n], 1
        if n == one.count:  # every order has the same subset
            return


def _values(one: PromptCandidates, place: int, opponents: Opponents | None) -> dict[Metric, Float]:
    """The gain of returning each candidate, by metric; NaN where it is not known."""
    found: dict[Metric, Float] = {"reward": one.rewards, "gold": one.gold}
    if opponents is not None:
        rivals = opponents.rewards[place]
        if rivals is not None:
            below = np.searchsorted(rivals, one.rewards, side="left")
            up_to = np.searchsorted(rivals, one.rewards, side="right")
            shares = (below + up_to) / (2 * len(rivals))
            found["win-rate"] = np.where(np.isnan(one.rewards), np.nan, shares)
    return found


def _runs(rule: Rule, drawn: Drawn) -> dict[int, list[Run]]:
    """Random orders of each prompt's candidates, with the rounds of a rule that stops drawing."""
    if not isinstance(rule.strategy, AdaptiveBon):
        return {}
    found: dict[int, list[Run]] = {}
    for place, one in drawn.known:
        rng = np.random.default_rng(seed_of(f"{drawn.drawing.key}/{one.seed}"))
        orders = [rng.permutation(one.count) for _ in range(_STOPPING_ORDERS)]
        found[place] = [
            Run(order, tuple(rule.strategy.replay(one.rewards[order], one.count)))
            for order in orders
        ]
    return found


def opponents_of(drawn: Drawn) -> Opponents:
    """The samples of a drawing as opponents; prompts without a scored sample have none."""
    rewards: list[Float | None] = [None] * len(drawn.prompts)
    for place, one in drawn.known:
        scored = np.sort(one.rewards[~np.isnan(one.rewards)])
        rewards[place] = scored if len(scored) else None
    return Opponents(tuple(rewards))


def _ascending(one: PromptCandidates) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The order of rising rewards, and which candidates have one; of equals the lower index comes last."""
    scored = ~np.isnan(one.rewards)
    rewards = np.where(scored, one.rewards, -np.inf)
    return np.lexsort((-np.arange(one.count), rewards)), scored


def _weighted(weights: Float, values: Float) -> Float:
    """The mean of the known values by each row of weights, shape ``(rows,)``; NaN where none has weight."""
    known = ~np.isnan(values)
    total = weights[:, known].sum(axis=1)
    sums = weights[:, known] @ values[known]
    found = np.full(len(weights), np.nan)
    return np.divide(sums, total, out=found, where=total > 0)


def _similarities(rule: Rule, drawn: Drawn) -> dict[int, Float]:
    found = {}
    for place, one in drawn.known:
        similarity = _similarity(rule, one)
        if similarity is not None:
            found[place] = similarity
    return found


def _similarity(rule: Rule, one: PromptCandidates) -> Float | None:
    if isinstance(rule.strategy, AdaptiveBon) or not rule.strategy.compares_texts:
        return None
    return NgramEmbedder().compare(list(one.texts))


def with_prior(rule: Rule, drawn: Drawn) -> Rule:
    """A rule that stops drawing, with the prior of the rewards that these candidates have."""
    from vbon.maths.reward_prior import estimate_reward_prior

    rewards = [one.rewards[~np.isnan(one.rewards)] for _, one in drawn.known]
    prior = estimate_reward_prior(rewards)
    sent = {**rule.settings, **{k: float(f"{v:.4g}") for k, v in prior.settings().items()}}
    return replace(rule, strategy=type(rule.strategy).model_validate(sent))
