"""Facts recorded about a request while it is served, for its log record and its trace.

They are numbers and names only, never prompts or responses.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter

# Machines request these every few seconds, so they are neither traced nor logged above level debug.
PROBES = frozenset({"/healthz", "/readyz", "/health", "/metrics"})

CLIENT_CLOSED_REQUEST = 499


@dataclass(slots=True)
class PromptProgress:
    """One prompt's progress through the runtime; a request may have several prompts.

    Attributes:
        answer_id: the request's id and the index of its answer; the engines' request ids begin with it.
        scored: whether rewards were requested.
        arrived_s, encoded_s, admitted_s: ``perf_counter`` at each stage; ``None`` if not reached.
        decode_ms, rerank_ms: as in the answer's timings; ``None`` without an answer.
    """

    answer_id: str
    mode: str
    policy: str
    num_samples: int
    max_tokens: int
    temperature: float
    scored: bool
    arrived_s: float
    encoded_s: float | None = None
    admitted_s: float | None = None
    decode_ms: float | None = None
    rerank_ms: float | None = None
    candidates: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    returned_tokens: int = 0
    finish_reason: str = ""


@dataclass(slots=True)
class RequestContext:
    """Facts about one request.

    Attributes:
        status: the response's status; 499 until a response starts, for clients that disconnect first.
        key: name of the request's API key; empty if it needs none.
        error: type of the error sent to the client; empty if there is none.
        prompts: in the order in which the runtime received them.
    """

    request_id: str
    begun_s: float = field(default_factory=perf_counter)
    status: int = CLIENT_CLOSED_REQUEST
    key: str = ""
    error: str = ""
    prompts: list[PromptProgress] = field(default_factory=list)

    @property
    def modes(self) -> list[str]:
        """The modes used, each once, in order of first use."""
        return list(dict.fromkeys(prompt.mode for prompt in self.prompts))


# Tasks inherit context variables from the task that starts them.
current_request: ContextVar[RequestContext | None] = ContextVar("current_request", default=None)


def record_error(kind: str) -> None:
    """Record the type of the error sent to the client of the current request, if there is a request."""
    if (context := current_request.get()) is not None:
        context.error = kind


def record_key(name: str) -> None:
    """Record the name of the API key of the current request, if there is a request."""
    if (context := current_request.get()) is not None:
        context.key = name


def record_prompt(prompt: PromptProgress) -> PromptProgress:
    """Add a prompt to the current request and return it; a bench or a warm-up has no request."""
    if (context := current_request.get()) is not None:
        context.prompts.append(prompt)
    return prompt
