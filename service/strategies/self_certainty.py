r"""Self-certainty (arXiv 2502.18581): the answer of which the policy was surest; needs no reward model.

The paper's self-certainty of an answer of T tokens is the mean KL of the uniform distribution over the
vocabulary, of V tokens, to the policy's token distributions p_t:

    (1/T) sum_t KL(U_V || p_t)  =  -(1/(T V)) sum_t sum_j log(V p_t(j)).

It is not the likelihood of the answer: it says how far each distribution was from uniform, whichever token
was drawn. Engines do not tell whole distributions, but the log-probabilities of the k likeliest tokens, k at
most 20. So this is the same KL from the uniform distribution over these k,

    (1/T) sum_t KL(U_k || p_t)  =  (1/T) sum_t [ -(1/k) sum_{j <= k} log p_t(j) - log k ],

which is the paper's if k is the whole vocabulary, at least 0, and, but for the constant log k, the mean token
confidence of DeepConf (arXiv 2508.15260). With a small k it is another measure than the paper's, whose sum is
dominated by many unlikely tokens: on the toy policy of the sandbox, with 1,106 tokens and k = 20, the two
correlate by .39 within a prompt, and choose the same one of 16 candidates 12% of the time.

The paper's Borda voting over extracted answers is not implemented.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from service.strategies.protocol import Float
from service.strategies.rerank import CandidatePool, Reranker, best
from vbon.engine import Engine, Sampling
from vbon.engine.protocol import MOST_TOP_LOGPROBS
from vbon.errors import EngineError, InvalidInputError


class SelfCertainty(Reranker):
    """Returns the candidate with the highest self-certainty; among equals, the one with the lower index.

    Only the chosen answer is scored, and only to report its reward. Answers are never collected for training.
    """

    description: ClassVar[str] = "N samples, the one whose tokens the policy was surest of"
    source: ClassVar[str] = "arXiv 2502.18581"
    needs_reward: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"certainties"})

    certainty_tokens: int = Field(
        MOST_TOP_LOGPROBS,
        ge=2,
        le=MOST_TOP_LOGPROBS,
        description="k: the likeliest tokens of each position from which certainty is computed",
    )

    @property
    def top_logprobs(self) -> int:
        """The number of likeliest tokens whose log-probabilities the engine tells."""
        return self.certainty_tokens

    def check(self, sampling: Sampling, engine: Engine) -> None:
        """Refuse engines that tell log-probabilities of another distribution than the policy's own."""
        if engine.info.sampled_logprobs and sampling.steering:
            raise InvalidInputError(
                "self-certainty is that of the policy itself, and this server tells log-probabilities of the "
                f"distribution sampled, with another {', '.join(sampling.steering)}; leave these out, or "
                "start the server with --engine.logprobs policy",
                field=sampling.steering[0],
            )

    def distribution(self, pool: CandidatePool) -> Float:
        """All probability on the highest self-certainty."""
        if pool.certainties is None:
            raise EngineError(
                "the engine told no log-probabilities of the likeliest tokens, from which self-certainty is "
                "computed"
            )
        return best(pool.certainties)

    def facts(self, pool: CandidatePool, weights: Float) -> dict[str, object]:
        """The certainty of the answer, the mean over candidates, and k, which a server may have lowered."""
        assert pool.certainties is not None  # distribution has read it
        return {
            "certainty": round(float(pool.certainties[int(np.argmax(weights))]), 6),
            "mean_certainty": round(float(pool.certainties.mean()), 6),
            "certainty_tokens": pool.certainty_tokens,
        }
