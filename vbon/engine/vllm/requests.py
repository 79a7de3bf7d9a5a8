"""Parts of vLLM that requests need: sampling parameters, errors, and the parsers of tool calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from vbon.engine.protocol import Candidate, FoundCall, FoundCalls, Sampling, candidate_seed
from vbon.errors import CheckpointError, InvalidInputError

if TYPE_CHECKING:
    from vllm import SamplingParams


@cache
def vllm_api() -> SimpleNamespace:
    """The parts of vLLM that every request needs; cached, because ``vllm`` imports anew at each access."""
    from vllm import SamplingParams, TokensPrompt
    from vllm.exceptions import GracefulHTTPError, VLLMClientError
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    return SimpleNamespace(
        SamplingParams=SamplingParams,
        TokensPrompt=TokensPrompt,
        RequestOutputKind=RequestOutputKind,
        StructuredOutputsParams=StructuredOutputsParams,
        EngineDeadError=EngineDeadError,
        EngineGenerateError=EngineGenerateError,
        GracefulHTTPError=GracefulHTTPError,
        VLLMClientError=VLLMClientError,
    )


def refused(error: Any) -> InvalidInputError:
    """Our error for a request that vLLM rejects; validation errors name the parameter."""
    return InvalidInputError(str(error), field=getattr(error, "parameter", None) or "sampling")


def sampling_params(
    sampling: Sampling, index: int = 0, *, streamed: bool = False
) -> SamplingParams:
    """vLLM's form of the parameters of one candidate.

    Raises:
        InvalidInputError: vLLM rejects a parameter that our own bounds allow.
    """
    kinds = vllm_api().RequestOutputKind
    try:
        return vllm_api().SamplingParams(
            n=1,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=None if sampling.seed is None else candidate_seed(sampling.seed, index),
            stop=list(sampling.stop) or None,
            ignore_eos=sampling.ignore_eos,
            min_p=sampling.min_p,
            min_tokens=sampling.min_tokens,
            stop_token_ids=list(sampling.stop_token_ids) or None,
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
            repetition_penalty=sampling.repetition_penalty,
            logit_bias=None if sampling.logit_bias is None else dict(sampling.logit_bias),
            structured_outputs=_structured(sampling),
            logprobs=sampling.top_logprobs if sampling.logprobs or sampling.top_logprobs else None,
            # vLLM detokenizes each token at once only to find stop strings or to stream. Otherwise
            # detokenizing the whole candidate at the end gives the same text at lower cost.
            detokenize=streamed or bool(sampling.stop),
            output_kind=kinds.DELTA if streamed else kinds.FINAL_ONLY,
        )
    except vllm_api().VLLMClientError as error:
        raise refused(error) from error


def _structured(sampling: Sampling) -> Any:
    """vLLM's constraint for the JSON schema of the candidates, if they have one."""
    if sampling.json_schema is None:
        return None
    # As text, because vLLM takes an empty schema for none.
    return vllm_api().StructuredOutputsParams(json=json.dumps(dict(sampling.json_schema)))


def tool_parser_type(name: str) -> Any:
    """vLLM's parser of tool calls of that name.

    Raises:
        CheckpointError: vLLM has no such parser.
    """
    from vllm.tool_parsers import ToolParserManager

    try:
        return ToolParserManager.get_tool_parser(name)
    except KeyError as error:
        known = ", ".join(ToolParserManager.list_registered())
        raise CheckpointError(
            f"engine.tool_parser {name!r} is none of vLLM's parsers of tool calls: {known}"
        ) from error


def found_calls(
    name: str, tokenizer: Any, candidate: Candidate, tools: Sequence[Mapping[str, Any]]
) -> FoundCalls:
    """The calls that the parser of that name finds in a candidate, and the rest of its text."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    asked = ChatCompletionRequest(messages=[], model="", tools=list(tools), tool_choice="auto")
    parser = tool_parser_type(name)(tokenizer, asked.tools)
    # Some policies mark calls with special tokens, which a candidate's text does not have.
    ended = candidate.finish_reason == "stop"
    whole = tokenizer.decode(
        list(candidate.token_ids[: -1 if ended else None]), skip_special_tokens=False
    )
    found = parser.extract_tool_calls(whole, asked)
    if not found.tools_called:
        return FoundCalls((), candidate.text)
    calls = (FoundCall(one.function.name, one.function.arguments) for one in found.tool_calls)
    return FoundCalls(tuple(calls), found.content or "")
