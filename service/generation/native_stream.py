"""``POST /generate`` with ``stream``: named events, then the answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict

from service.generation.events import CandidateProgress, Quiet, events_of
from service.generation.plan import Plan, candidate_out
from service.http.sse import comment, event
from service.runtime.prompt import PromptResult
from service.strategies import ScoredCandidate
from vbon.engine import Partial


async def native_messages(plan: Plan) -> AsyncGenerator[str, None]:
    """``token`` events (single-sample modes) or ``candidate`` and ``progress``, then one ``answer``.

    Raises:
        VbonError: as a request that is not streamed.
    """
    progress = CandidateProgress(plan.mode.strategy.most_candidates(plan.num_samples))
    sent = ""
    async with aclosing(events_of(plan)) as events:
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
                yield event("answer", plan.to_wire(happened))
            if progress.update(happened):
                yield event("progress", asdict(progress))
