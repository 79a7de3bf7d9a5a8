"""Gold rewards of an answer, for measuring: scored after the answer, outside its timings."""

from __future__ import annotations

from service.generation.plan import Plan
from service.runtime.served_scorer import ServedScorer
from service.schemas import CandidateOut, GenerateAnswer
from vbon.concurrency import all_or_first_error
from vbon.errors import InvalidInputError, OverloadedError
from vbon.prompts import Prompt

_RETRY_AFTER_S = 5.0


def check_gold(plan: Plan) -> None:
    """Check that gold rewards can be reported if the request asks for them.

    Raises:
        InvalidInputError: the server has no gold reward model, or the answer is streamed.
        OverloadedError: so many texts wait for their gold rewards that the answer would be made in vain.
    """
    if not plan.request.gold:
        return
    if plan.runtime.gold is None:
        raise InvalidInputError(
            "gold is true, but this server has no gold reward model; leave it out, or start the server with "
            "--gold",
            field="gold",
        )
    if plan.request.stream:
        raise InvalidInputError(
            "gold takes no stream, because gold rewards are scored after the answer; leave one of them out",
            field="gold",
        )
    waiting, most = plan.runtime.gold.waiting, plan.runtime.settings.limits.waiting_sequences
    if waiting >= most:
        raise OverloadedError(
            f"{waiting} texts wait for their gold rewards, and at most {most} may "
            "(limits.waiting_sequences); ask again later, or without gold",
            retry_after_s=_RETRY_AFTER_S,
        )


async def with_gold(plan: Plan, answer: GenerateAnswer, prompt: Prompt) -> GenerateAnswer:
    """The answer with the gold rewards of its text and of the candidates that it returns.

    The request's time limit holds for the answer and its gold rewards together.

    Raises:
        RewardError, RequestTimeoutError: as :meth:`Runtime.answer`.
    """
    scorer, limits = plan.runtime.gold, plan.runtime.settings.limits
    if not plan.request.gold or scorer is None:
        return answer
    limit_s, limit_name = limits.time_limit(plan.request.timeout_s)
    spent_s = answer.timings_ms.total / 1000
    async with plan.runtime.in_flight.track(limit_s, limit_name, (scorer,), spent_s):
        if answer.candidates is None:
            reward = await scorer.score(prompt, answer.text)
            return answer.model_copy(update={"gold_reward": reward})
        candidates = await all_or_first_error(
            _scored(scorer, one, prompt) for one in answer.candidates
        )
    own = {one.index: one.gold_reward for one in candidates}[answer.selected_index]
    return answer.model_copy(update={"gold_reward": own, "candidates": candidates})


async def _scored(scorer: ServedScorer, one: CandidateOut, prompt: Prompt) -> CandidateOut:
    return one.model_copy(update={"gold_reward": await scorer.score(prompt, one.text)})
