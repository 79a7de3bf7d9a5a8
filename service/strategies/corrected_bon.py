r"""Corrected best-of-n: best-of-n of a tuned policy, reweighted to another policy (arXiv 2506.04118).

N candidates come from a cheap proposal s, here the policy that the request names, such as a vBoN checkpoint.
The rule is soft best-of-n, but of another policy p, the ``target``: with t = ``reward_temperature``,

    w_i  ~  exp(r_i / t) p(y_i) / s(y_i).

These are the self-normalised importance weights of samples of s for the target's tilted policy
``p exp(r / t) / Z``, so the answers' distribution tends to that policy as N grows, whatever s is, if s can
draw all that p can. Without the ratio it would tend to ``s exp(r / t) / Z``, which is tilted twice if s is
tuned. The variance is what s is good for: best-of-N has nearly the shape ``p exp(r / t)``, so with a vBoN
checkpoint as s the weights differ little, and few candidates are enough.

If they differ much, the estimate hangs on one or two candidates. The paper (guided speculative inference)
falls back on the target when the chosen ``r + t log(p/s)`` is below a threshold, in the unit of the reward.
Here the measure is the effective number of candidates, ``1 / sum_i w_i^2``, as a share of N, which needs no
calibration: 1 if all weights are equal, 1/N if one has everything. It includes the reward, so a t that is too
low for N candidates to represent triggers it as well. (The paper corrects each step of a chain of thought;
here a whole answer is one step.)

``log s`` must be that of the distribution the candidates were drawn from. ``log p`` is the target's own, at
temperature 1, and costs it one forward pass over each candidate. Both policies must have the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from service.strategies.bounds import LEAST_SCALE, MOST_SCALE
from service.strategies.collect import Collected, collect
from service.strategies.protocol import (
    Float,
    Outcome,
    Resources,
    ScoredCandidate,
    Task,
    tokens_of,
)
from service.strategies.rerank import (
    CandidatePool,
    Reranker,
    best,
    candidate_pool,
    draw,
    eligible,
    required_scorer,
    reshaped,
    softmax,
)
from vbon.concurrency import all_or_first_error
from vbon.engine import Engine, Sampling
from vbon.errors import InvalidInputError


class CorrectedBon(Reranker):
    """Returns candidate i of a tuned policy with probability ``~ exp(r_i / t) p(y_i) / s(y_i)``.

    Over the target itself it is ``soft-bon``.
    """

    description: ClassVar[str] = (
        "N samples of a tuned policy, one drawn as another policy would weigh them"
    )
    source: ClassVar[str] = "arXiv 2506.04118"
    uses_logprobs: ClassVar[bool] = True
    uses_policies: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"log_ratios"})

    target: str = Field("ref", description="p: the policy whose tilted distribution is estimated")
    reward_temperature: float = Field(
        1.0,
        ge=LEAST_SCALE,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="temperature of the target's tilt, in units of reward; the lower, the more it is tilted",
    )
    min_effective_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="least effective number of candidates, as a share of n, with which the weights are "
        "trusted; 0 always trusts them",
    )
    fallback: Literal["redraw", "best"] = Field(
        "redraw",
        description="what to do otherwise: redraw n candidates from the target, and choose by soft "
        "best-of-n; or return the best of those drawn",
    )

    def most_candidates(self, num_samples: int) -> int:
        """Twice n if the target may have to draw as well."""
        return num_samples * (2 if self.fallback == "redraw" else 1)

    def independent(self, num_samples: int) -> int | None:
        """The n of the proposal, if a fallback can add no candidates of another policy."""
        return num_samples if self.target == "ref" or self.fallback == "best" else None

    def check(self, sampling: Sampling, engine: Engine) -> None:
        """Refuse sampling whose log-probabilities the engine does not tell."""
        if "response_format" in sampling.steering:
            raise InvalidInputError(
                "corrected-bon takes no response_format, because no policy tells the log-probability of an "
                "answer that is constrained in this way; leave it out, or use another mode",
                field="response_format",
            )
        known = engine.info.sampled_logprobs or sampling.temperature == 0
        if reshaped(sampling) and not known:
            raise InvalidInputError(
                f"the candidates are sampled with another {', '.join(sampling.steering)} than the policy "
                "itself, whose log-probabilities the engine tells; leave these out, or start the server "
                "with --engine.logprobs sampled",
                field=sampling.steering[0],
            )

    def distribution(self, pool: CandidatePool) -> Float:
        """The softmax of ``r / t + log p - log s``."""
        ratios = 0.0 if pool.log_ratios is None else pool.log_ratios
        return softmax(pool.rewards / self.reward_temperature + ratios)

    async def run(self, task: Task, resources: Resources) -> Outcome:
        """Draw from the proposal and weigh by the target; fall back if the weights are too uneven."""
        scorer = required_scorer(resources.scorer, self.description)
        self.check(task.sampling, resources.engine)
        target = self._target(resources)
        self._check_room(task, resources.engine, target)
        first = await collect(task, resources.engine, scorer, task.num_samples)
        begun = perf_counter()
        scored = eligible(first.candidates, task.sampling)
        ratios = await log_ratios(scored, task, resources.engine, target)
        read = 0 if ratios is None else tokens_of(scored)
        waited_ms = (perf_counter() - begun) * 1e3
        weights = self.distribution(replace(candidate_pool(scored), log_ratios=ratios))
        effective = effective_number(weights)
        drawn: tuple[Collected, ...] = (first,)
        trusted = target is resources.engine or effective >= self.min_effective_share * len(scored)
        if not trusted and self.fallback == "best":
            weights = best(candidate_pool(scored).rewards)
        elif not trusted:
            count = task.num_samples
            drawn = (first, await collect(task, target, scorer, count, first_index=count))
            scored = eligible(drawn[1].candidates, task.sampling)
            weights = self.distribution(candidate_pool(scored))
        candidates = tuple(one for part in drawn for one in part.candidates)
        return Outcome(
            scored[draw(weights, task.sampling.seed)],
            candidates,
            sum(part.decode_ms for part in drawn),
            sum(part.rerank_ms for part in drawn) + waited_ms,
            tokens_of(candidates),
            {
                "target": self.target,
                "target_tokens": read,
                "effective_candidates": round(effective, 6),
                "fallback": None if trusted else self.fallback,
                "probability": {
                    str(one.candidate.index): round(float(weight), 6)
                    for one, weight in zip(scored, weights, strict=True)
                },
            },
        )

    def _target(self, resources: Resources) -> Engine:
        found = resources.policies.get(self.target)
        if found is None:
            raise InvalidInputError(
                f"target {self.target!r} must be a policy of this server; available: "
                f"{', '.join(resources.policies)}",
                field="target",
            )
        return found

    def _check_room(self, task: Task, proposal: Engine, target: Engine) -> None:
        """Refuse candidates that could be too long for the target to read: it decodes one token more."""
        room = target.info.max_model_len - 1 - len(task.prompt_token_ids)
        if _alike(task, proposal, target) or task.sampling.max_tokens <= room:
            return
        remedy = "shorten the prompt" if room < 1 else f"with this prompt it may be at most {room}"
        raise InvalidInputError(
            f"max_tokens is {task.sampling.max_tokens}, and target {self.target!r} has to read prompt and "
            f"answer with a token to spare in its context of {target.info.max_model_len}; {remedy}",
            field="max_tokens",
        )


def _alike(task: Task, proposal: Engine, target: Engine) -> bool:
    """True if log-ratios are all alike: the target draws itself, or greedy decoding gives one answer."""
    return target is proposal or task.sampling.temperature == 0


async def log_ratios(
    scored: Sequence[ScoredCandidate], task: Task, proposal: Engine, target: Engine
) -> Float | None:
    """``log p(y) - log s(y)`` of each candidate, nats, shape ``(N,)``; ``None`` if all are alike.

    They are alike if the target drew the candidates itself, or if greedy decoding made them all the same.
    """
    if _alike(task, proposal, target):
        return None
    found = await all_or_first_error(
        target.logprobs(
            task.prompt_token_ids,
            list(one.candidate.token_ids),
            f"{task.request_id}-target-{one.candidate.index}",
            task.sampling.priority,
        )
        for one in scored
    )
    return np.array([sum(values) for values in found]) - candidate_pool(scored).logprobs


def effective_number(weights: Float) -> float:
    """The effective number of candidates of weights that sum to 1: between 1 and their number."""
    return float(1 / np.square(weights).sum())
