"""``POST /generate`` with ``stream``: named events, and then the answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict

from service.generation.events import CandidateProgress, Quiet, answer_events
from service.generation.native_response import candidate_out, generate_answer
from service.generation.plan import Plan
from service.http.sse import comment, event
from service.runtime.prompt import PromptResult
from service.strategies import ScoredCandidate
from vbon.engine import Partial


async def native_messages(plan: Plan) -> AsyncGenerator[str, None]:
    """Yield ``token`` events (single-sample modes) or ``candidate`` and ``progress``, then one ``answer``.

    Raises:
        VbonError: as a request without ``stream``.
    """
    progress = CandidateProgress(plan.most_candidates)
    sent = ""
    async with aclosing(answer_events(plan)) as events:
        async for happened in events:
            if isinstance(happened, Partial):
                delta, sent = happened.text[len(sent) :], happened.text
                yield event("token", {"text": delta, "num_tokens": len(happened.token_ids)})
            elif isinstance(happened, ScoredCandidate):
                found = candidate_out(happened, with_logprobs=plan.request.logprobs)
                yield event("candidate", found)
            elif isinstance(happened, Quiet):
                yield comment("still at work")
            elif isinstance(happened, PromptResult):
                yield event("answer", generate_answer(plan, happened))
            if progress.update(happened):
                yield event("progress", asdict(progress))
