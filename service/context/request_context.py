"""What is taken down of a request while it is served, for its log records and its trace.

Numbers and names only: nothing that people write or are answered.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter

# Asked every few seconds by machines; nobody looks for them in a log or a trace.
PROBES = frozenset({"/healthz", "/readyz", "/health", "/metrics"})

CLIENT_CLOSED_REQUEST = 499


@dataclass(slots=True)
class Passage:
    """One prompt's way through the runtime.

    Attributes:
        answer_id: the request's id and which of its answers this is; engines' ids begin with it.
        scored: whether rewards were asked for.
        arrived_s, encoded_s, admitted_s: ``perf_counter`` of each moment; ``None`` before it.
        decode_ms, rerank_ms: as in the answer's timings; ``None`` where there is no answer.
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
class RequestNotes:
    """A request at hand.

    Attributes:
        status: of its answer; 499 until one begins, for a client that does not wait for it.
        key: the name of its API key; empty where none was needed.
        error: the type of the error that it was told, as on the wire.
        passages: in the order in which they began.
    """

    request_id: str
    begun_s: float = field(default_factory=perf_counter)
    status: int = CLIENT_CLOSED_REQUEST
    key: str = ""
    error: str = ""
    passages: list[Passage] = field(default_factory=list)

    @property
    def modes(self) -> list[str]:
        """Each mode that answered, or tried to, once."""
        return list(dict.fromkeys(passage.mode for passage in self.passages))


# Tasks that a request starts inherit it.
current_request: ContextVar[RequestNotes | None] = ContextVar("current_request", default=None)


def note_error(kind: str) -> None:
    """The request at hand, if there is one, is told this error."""
    if (notes := current_request.get()) is not None:
        notes.error = kind


def note_key(name: str) -> None:
    """The request at hand, if there is one, comes with this API key."""
    if (notes := current_request.get()) is not None:
        notes.key = name


def begin_passage(passage: Passage) -> Passage:
    """Keep it with the request at hand; without one (a bench, a warm-up) nobody will look at it."""
    if (notes := current_request.get()) is not None:
        notes.passages.append(passage)
    return passage
