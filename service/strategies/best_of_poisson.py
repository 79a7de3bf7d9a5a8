r"""Best-of-Poisson (arXiv 2506.19248): best-of-n with a random n, one more than a Poisson number.

With ``n = 1 + K``, K Poisson with mean mu, and U the quantile ``F(r)`` of the answer's reward, uniform under
the policy if no two rewards are equal, the answer's density with respect to the policy is

    sum_k e^-mu mu^k / k!  (k + 1) U^k  =  (1 + mu U) e^(mu (U - 1)),

since best-of-n has density ``n U^(n-1)``. Its win rate is ``E[U] = 1 - (mu - 1 + e^-mu) / mu^2``. The optimum
of quantile reward against KL, ``~ e^(t U)``, has nearly the same shape: at equal win rate the KL is above the
least possible one by at most 0.001 nats (.4946 of .4939 at mu = 3; 1.1583 of 1.1581 at mu = 7.5), and that of
best-of-n by more (.516; 1.166). (Derived here; the tests compare with numeric integrals and an enumeration.
That the paper's n is one more than a Poisson number was not checked against its code.)

Its merit is not more reward for the tokens: a fixed n draws as many. It is a guard whose strength, mu, is any
number, where best-of-n has whole ones; and it is all but optimal in KL. The request's ``n`` limits the draw,
so the distribution is exactly that of best-of-min(1 + K, n).
"""

from __future__ import annotations

from dataclasses import replace
from math import lgamma
from typing import ClassVar

import numpy as np
from pydantic import Field

from service.strategies.bon import Bon
from service.strategies.bounds import MOST_COUNT, MOST_SCALE
from service.strategies.protocol import Float, Outcome, Resources, Task
from vbon.maths.seeds import seed_of


class BestOfPoisson(Bon):
    """Draws a random number of candidates, and returns the one with the highest reward.

    Candidate i is the same one that ``bon`` would draw as its i-th. The number depends on the seed and the
    prompt, so that prompts that are sent with one seed do not all get the same.
    """

    description: ClassVar[str] = "best of a Poisson number of samples, at most N"
    source: ClassVar[str] = "arXiv 2506.19248"

    mean_n: float | None = Field(
        None,
        ge=1,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="mean number of candidates, before n limits it: 1 + mu; default: (n + 1) / 2",
    )
    min_n: int = Field(1, ge=1, le=MOST_COUNT, description="fewest candidates; at most n")

    def with_answers(self, answers: int) -> BestOfPoisson:
        """This strategy with at least so many candidates."""
        return self.model_copy(update={"min_n": max(self.min_n, answers)})

    def independent(self, num_samples: int) -> int:
        """The fewest candidates; all are independent, but their number is known only once it is drawn."""
        return min(self.min_n, num_samples)

    def mean(self, num_samples: int) -> float:
        """``1 + mu``: the mean number of candidates if nothing limited it."""
        return (num_samples + 1) / 2 if self.mean_n is None else self.mean_n

    def draw_probabilities(self, num_samples: int) -> Float:
        """The probability of drawing 1, 2, ..., n candidates, shape ``(n,)``."""
        return poisson_numbers(self.mean(num_samples), min(self.min_n, num_samples), num_samples)

    def number(self, num_samples: int, seed: int | None, prompt_token_ids: list[int]) -> int:
        """The number of candidates to draw; the same seed and prompt give the same number."""
        of_prompt = None if seed is None else seed_of(f"{seed}:poisson:{prompt_token_ids}")
        drawn = 1 + int(np.random.default_rng(of_prompt).poisson(self.mean(num_samples) - 1))
        return min(max(drawn, self.min_n), num_samples)

    async def run(self, task: Task, resources: Resources) -> Outcome:
        """Draw the number, then so many candidates, and choose the best."""
        number = self.number(task.num_samples, task.sampling.seed, task.prompt_token_ids)
        outcome = await super().run(replace(task, num_samples=number), resources)
        expected = self.draw_probabilities(task.num_samples) @ np.arange(1, task.num_samples + 1)
        facts = {"candidates": number, "mean_candidates": round(float(expected), 6)}
        return replace(outcome, details={**outcome.details, **facts})


def poisson_numbers(mean: float, least: int, most: int) -> Float:
    """The distribution of ``min(max(1 + K, least), most)``, where K is Poisson with mean ``mean - 1``.

    Entry i, of shape ``(most,)``, is the probability of the number i + 1.
    """
    mu, counts = mean - 1, np.arange(most)
    if mu == 0:
        found = (counts == 0).astype(np.float64)
    else:
        found = np.exp(counts * np.log(mu) - mu - np.array([lgamma(k + 1) for k in counts]))
    found[-1] = max(0.0, 1 - float(found[:-1].sum()))
    found[least - 1] += found[: least - 1].sum()
    found[: least - 1] = 0
    return found
