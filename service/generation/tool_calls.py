"""Calls of tools in the answers to chats."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from service.generation.plan import Plan
from service.schemas.openai_responses import AssistantMessage, MadeCall, MadeFunction
from service.schemas.tools import ToolUse
from service.settings import REFERENCE
from vbon.engine import Candidate, FoundCall, FoundCalls
from vbon.errors import InvalidInputError


def check_tools(plan: Plan, use: ToolUse | None) -> None:
    """Check that the calls of a request's answers can be found.

    Raises:
        InvalidInputError: the policy chooses its calls, and no parser of its calls is configured.
    """
    if use is None or use.schema is not None:
        return
    if not plan.runtime.policies[plan.mode.policy].finds_calls:
        raise InvalidInputError(
            f"tool_choice 'auto' needs a parser of the calls of policy {plan.mode.policy!r}, and this server "
            "has none; name a function in tool_choice, send 'required' or 'none', or start the server with "
            "--engine.tool-parser NAME for policies that it runs itself",
            field="tools",
        )


@dataclass(frozen=True, slots=True)
class ToldAnswer:
    """An answer to a chat, with its calls taken out of its text."""

    message: AssistantMessage
    finish_reason: str


async def told_answer(
    plan: Plan, use: ToolUse | None, candidate: Candidate, index: int
) -> ToldAnswer:
    """The message that a candidate makes.

    Args:
        index: the answer's own, which is part of its calls' ids.
    """
    reason: str = candidate.finish_reason
    if use is None:
        return ToldAnswer(AssistantMessage(content=candidate.text), reason)
    found = await _found(plan, use, candidate)
    calls = found.calls if use.parallel else found.calls[:1]
    if not calls:
        return ToldAnswer(AssistantMessage(content=found.text), reason)
    made = [
        MadeCall(
            id=f"call_{plan.request_id}_{index}_{number}",
            function=MadeFunction(name=call.name, arguments=call.arguments),
        )
        for number, call in enumerate(calls)
    ]
    # As OpenAI: a call that the request itself chose ends an answer as a text does.
    if reason == "stop" and use.named is None:
        reason = "tool_calls"
    return ToldAnswer(AssistantMessage(content=found.text or None, tool_calls=made), reason)


async def _found(plan: Plan, use: ToolUse, candidate: Candidate) -> FoundCalls:
    if use.named is not None:
        return FoundCalls((FoundCall(use.named, candidate.text),), "")
    if use.required:
        return _listed(candidate.text)
    # A checkpoint may have left since it answered; all policies share the parser and the tokenizer.
    policies = plan.runtime.policies
    engine = policies.get(plan.mode.policy, policies[REFERENCE])
    tools = [tool.model_dump(exclude_none=True) for tool in use.tools]
    return await engine.find_calls(candidate, tools) or FoundCalls((), candidate.text)


def _listed(text: str) -> FoundCalls:
    """The calls of a constrained list; a list that is cut stays a text."""
    try:
        calls: list[dict[str, Any]] = json.loads(text)
        found = [
            FoundCall(one["name"], json.dumps(one["parameters"], ensure_ascii=False))
            for one in calls
        ]
    except (ValueError, KeyError, TypeError):  # a stop string may have cut it anywhere
        return FoundCalls((), text)
    return FoundCalls(tuple(found), "")
