"""The base classes of regularised best-of-N: a strength, normalised rewards, and a choice of log p."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from service.strategies.bounds import MOST_SCALE
from service.strategies.protocol import Float, ScoredCandidate, Task
from service.strategies.rerank import (
    POLICY_WORDS,
    SAMPLED_WORDS,
    CandidatePool,
    Reranker,
    reshaped,
    standardised,
)
from vbon.concurrency import all_or_first_error
from vbon.engine import Engine, Sampling
from vbon.errors import InvalidInputError


class RegularisedReranker(Reranker):
    """Trades the reward against a regulariser with weight ``reg_strength``."""

    reg_strength: float = Field(
        0.1,
        ge=0,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="weight of the regulariser; 0 turns it off",
    )
    normalise_rewards: bool = Field(
        True,
        description="normalise the candidates' rewards to mean 0 and standard deviation 1, so that one "
        "strength suits every reward model and prompt; false uses raw rewards, as the papers do",
    )

    def rewards(self, pool: CandidatePool) -> Float:
        """The rewards that the rule uses, shape ``(N,)``."""
        return standardised(pool.rewards) if self.normalise_rewards else pool.rewards


class LikelihoodReranker(RegularisedReranker):
    """A rule that weighs the log-likelihood of each candidate.

    The papers' regulariser is the KL from the policy that the candidates come from. At another temperature,
    top_p or top_k than 1, 1 and 0 that is the distribution sampled, not the policy itself, so its
    log-probabilities are the default. An engine tells one of the two. The policy's own can also be had by one
    more forward pass over each candidate; those of the distribution sampled cannot.
    """

    uses_logprobs: ClassVar[bool] = True

    log_p: Literal["sampled", "policy"] = Field(
        "sampled",
        description="log-likelihood that is weighed: sampled, under the distribution that candidates were "
        "drawn from; policy, under the policy itself at temperature 1, before top_p and top_k. They differ "
        "only with other sampling, where sampled needs a server with engine.logprobs=sampled",
    )

    def check(self, sampling: Sampling, engine: Engine) -> None:
        """Refuse log-probabilities that the engine does not tell."""
        known = engine.info.sampled_logprobs or sampling.temperature == 0
        if self.log_p == "sampled" and reshaped(sampling) and not known:
            raise InvalidInputError(
                f"the candidates are sampled with another {', '.join(sampling.steering)} than the policy "
                "itself, whose log-probabilities the engine tells; send log_p: policy to weigh those, or "
                "start the server with --engine.logprobs sampled",
                field="log_p",
            )

    async def log_likelihoods(
        self, scored: Sequence[ScoredCandidate], task: Task, engine: Engine
    ) -> Float:
        """The candidates' log-probabilities as the setting says."""
        if self.log_p == "sampled" and task.sampling.temperature == 0:
            return np.zeros(len(scored))  # greedy: all probability on the one completion
        needs_a_pass = self.log_p == "policy" and engine.info.sampled_logprobs
        if not (needs_a_pass and reshaped(task.sampling)):
            return await super().log_likelihoods(scored, task, engine)
        found = await all_or_first_error(
            engine.logprobs(
                task.prompt_token_ids,
                list(one.candidate.token_ids),
                f"{task.request_id}-log-p-{one.candidate.index}",
                task.sampling.priority,
            )
            for one in scored
        )
        return np.array([sum(values) for values in found])

    def log_p_words(self, engine: Engine) -> str:
        """A description of the distribution that the setting names."""
        return SAMPLED_WORDS if self.log_p == "sampled" else POLICY_WORDS
