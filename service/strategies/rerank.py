"""The base class of strategies that draw N candidates and choose one by a rule."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import ClassVar

import numpy as np

from service.strategies.collect import collect
from service.strategies.protocol import (
    Float,
    Outcome,
    Resources,
    ScoredCandidate,
    Scorer,
    Strategy,
    Task,
    tokens_of,
)
from vbon.engine import Engine, Sampling
from vbon.errors import InvalidInputError, RewardError
from vbon.maths.certainty import mean_certainty
from vbon.maths.seeds import seed_of

POLICY_WORDS = "the policy's own, at temperature 1 and before top_p and top_k"
SAMPLED_WORDS = "of the distribution sampled, at the request's temperature, top_p and top_k"


@dataclass(frozen=True, slots=True)
class CandidatePool:
    """The N scored candidates of a prompt, as arrays for a rule.

    Attributes:
        rewards: raw rewards, shape ``(N,)``.
        logprobs: log-probability of each whole completion under its policy, nats, shape ``(N,)``; NaN
            unless the strategy ``uses_logprobs``.
        lengths: numbers of tokens, shape ``(N,)``.
        similarity: cosine similarities in [-1, 1], shape ``(N, N)``; ``None`` unless the rule compares
            texts.
        texts: the candidates' texts, of which some rules read the answer.
        certainties: the policy's certainty about each candidate (:mod:`vbon.maths.certainty`), shape
            ``(N,)``; ``None`` unless the strategy asks for ``top_logprobs``.
        certainty_tokens: the number of likeliest tokens that certainties are computed from.
        log_ratios: log-probability of each completion under a target policy, less that under the
            distribution it was drawn from, nats, shape ``(N,)``; ``None`` if all are alike.
    """

    rewards: Float
    logprobs: Float
    lengths: Float
    similarity: Float | None = None
    texts: tuple[str, ...] | None = None
    certainties: Float | None = None
    certainty_tokens: int = 0
    log_ratios: Float | None = None


class Reranker(Strategy):
    """Draws N candidates, scores each while the others are decoded, and applies a rule.

    A rule is a probability distribution over the candidates; a rule that always takes the best puts all
    probability on it. The request's seed determines the draw from the distribution.
    """

    compares_texts: ClassVar[bool] = False
    # The optional fields of the pool that the rule reads, beside `similarity`; a replay must fill them.
    needs: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def distribution(self, pool: CandidatePool) -> Float:
        """The probability of returning each candidate, shape ``(N,)``; sums to 1."""

    def facts(self, pool: CandidatePool, weights: Float) -> dict[str, object]:
        """Further facts about the choice for ``details`` of the answer; JSON values."""
        return {}

    def independent(self, num_samples: int) -> int | None:
        """All N candidates; unknown for a subclass that draws them in its own way or scores few of them."""
        return num_samples if type(self).run is Reranker.run and self.needs_reward else None

    def check(self, sampling: Sampling, engine: Engine) -> None:
        """Check that the rule can be applied to candidates of this sampling and engine.

        Raises:
            InvalidInputError: it cannot; names the remedy.
        """

    async def log_likelihoods(
        self, scored: Sequence[ScoredCandidate], task: Task, engine: Engine
    ) -> Float:
        """The log-probability of each completion that the rule weighs, nats, shape ``(N,)``."""
        return candidate_pool(scored).logprobs

    def log_p_words(self, engine: Engine) -> str:
        """A description of the distribution of these log-probabilities, for the answer."""
        return SAMPLED_WORDS if engine.info.sampled_logprobs else POLICY_WORDS

    async def run(self, task: Task, resources: Resources) -> Outcome:
        """Draw and score N candidates, and choose one."""
        needed = required_scorer(resources.scorer, self.description) if self.needs_reward else None
        self.check(task.sampling, resources.engine)
        collected = await collect(task, resources.engine, needed, task.num_samples)
        if self.needs_reward:
            scored = eligible(collected.candidates, task.sampling)
        else:
            scored = whole(collected.candidates, task.sampling)
        similarity = None
        if self.compares_texts:
            texts = [scored_candidate.candidate.text for scored_candidate in scored]
            similarity = await resources.embedder.similarity(texts)
        pool = candidate_pool(scored, similarity)
        if self.uses_logprobs:
            pool = replace(
                pool, logprobs=await self.log_likelihoods(scored, task, resources.engine)
            )
        weights = self.distribution(pool)
        selected = scored[draw(weights, task.sampling.seed)]
        details = self.facts(pool, weights)
        if np.count_nonzero(weights) > 1:
            details["probability"] = {
                str(c.candidate.index): round(float(w), 6)
                for c, w in zip(scored, weights, strict=True)
            }
        if self.uses_logprobs and reshaped(task.sampling):
            details["log_p"] = self.log_p_words(resources.engine)
        if similarity is not None:
            details["embedder"] = resources.embedder.name
        outcome = Outcome(
            selected,
            collected.candidates,
            collected.decode_ms,
            collected.rerank_ms,
            tokens_of(collected.candidates),
            details,
        )
        if self.needs_reward:
            return outcome
        scorer = resources.scorer if task.score else None
        for one in collected.candidates:
            if scorer is None or one is not selected:
                task.observer.scored(one)  # without a score, which this rule does not need
        return outcome if scorer is None else await with_reward(outcome, task, scorer)


def reshaped(sampling: Sampling) -> bool:
    """Tell whether candidates come from another distribution than the one whose log p engines tell.

    That one is the policy's own, limited to the tokens that ``response_format`` allows.
    """
    return bool(set(sampling.steering) - {"response_format"})


def required_scorer(scorer: Scorer | None, what: str) -> Scorer:
    """The scorer.

    Args:
        what: description of the strategy that needs it, for the error message.

    Raises:
        InvalidInputError: no reward model is configured.
    """
    if scorer is None:
        raise InvalidInputError(
            f"no reward model is configured, and this mode needs one ({what})", field="mode"
        )
    return scorer


def scored_only(candidates: Sequence[ScoredCandidate]) -> list[ScoredCandidate]:
    """The candidates that have a reward.

    Raises:
        RewardError: no candidate has one.
    """
    scored = [c for c in candidates if c.reward is not None]
    if not scored:
        raise RewardError(
            f"none of the {len(candidates)} candidates could be scored: each was too long for the reward "
            "model, rejected by its chat template, made it fail (see the log), or had a reward that is not "
            "finite"
        )
    return scored


async def with_reward(outcome: Outcome, task: Task, scorer: Scorer) -> Outcome:
    """The outcome with the reward of its selected candidate, which was chosen without one."""
    begun = perf_counter()
    chosen = outcome.selected.candidate
    scored = ScoredCandidate(chosen, await scorer.score(task.prompt, chosen.text))
    task.observer.scored(scored)
    return replace(
        outcome,
        selected=scored,
        candidates=tuple(
            scored if one.candidate.index == chosen.index else one for one in outcome.candidates
        ),
        rerank_ms=outcome.rerank_ms + (perf_counter() - begun) * 1e3,
        returned=(scored,),
        judged=(scored,),
    )


def eligible(candidates: Sequence[ScoredCandidate], sampling: Sampling) -> list[ScoredCandidate]:
    """The candidates that may be chosen: those with a reward, and of JSON texts those that are whole.

    A text that ``max_tokens`` cuts does not fit its schema. If all are cut, all may be chosen.

    Raises:
        RewardError: no candidate has a reward.
    """
    return whole(scored_only(candidates), sampling)


def whole(candidates: Sequence[ScoredCandidate], sampling: Sampling) -> list[ScoredCandidate]:
    """The candidates, and of JSON texts those that are whole; if all are cut, all of them."""
    if sampling.json_schema is None:
        return list(candidates)
    finished = [one for one in candidates if one.candidate.finish_reason == "stop"]
    return finished or list(candidates)


def highest(scored: Sequence[ScoredCandidate]) -> ScoredCandidate:
    """The candidate with the highest reward, the first among equals; all must have a reward."""
    return scored[int(np.argmax(np.array([c.reward for c in scored], dtype=np.float64)))]


def candidate_pool(
    scored: Sequence[ScoredCandidate], similarity: Float | None = None
) -> CandidatePool:
    """The arrays of candidates; rewards that a candidate does not have are NaN."""
    tops = [c.candidate.top_logprobs for c in scored]
    # Servers may tell fewer than asked for; candidates are compared by equally many.
    count = min((len(top) for told in tops for top in told or ()), default=0)
    certainties = None
    if count and None not in tops:
        certainties = np.array([mean_certainty(told or (), count) for told in tops])
    return CandidatePool(
        rewards=np.array([c.reward for c in scored], dtype=np.float64),
        logprobs=np.array([c.candidate.cumulative_logprob for c in scored], dtype=np.float64),
        lengths=np.array([float(len(c.candidate.token_ids)) for c in scored]),
        similarity=similarity,
        texts=tuple(c.candidate.text for c in scored),
        certainties=certainties,
        certainty_tokens=count,
    )


def best(values: Float) -> Float:
    """All probability on the largest value, on the first among equals."""
    weights = np.zeros(len(values))
    weights[int(np.argmax(values))] = 1.0
    return weights


def softmax(values: Float) -> Float:
    """``exp(values)``, normalised; ``-inf`` becomes probability 0."""
    shifted = np.exp(values - values.max())
    total: Float = shifted / shifted.sum()
    return total


def standardised(rewards: Float) -> Float:
    """The rewards shifted and scaled to mean 0 and standard deviation 1; zeros if all are equal."""
    spread = float(rewards.std())
    centred: Float = rewards - rewards.mean()
    return centred / spread if spread > 0 else np.zeros(len(rewards))


def draw(weights: Float, seed: int | None) -> int:
    """Draw an index with probability proportional to its weight; the same seed gives the same index."""
    if np.count_nonzero(weights) == 1:
        return int(np.argmax(weights))
    rng = np.random.default_rng(None if seed is None else seed_of(f"{seed}:select"))
    # Inversion of the cdf; the bound keeps rounding from picking a candidate of weight 0 at the end.
    cumulative = np.cumsum(weights)
    position = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
    return min(position, int(np.flatnonzero(weights)[-1]))
