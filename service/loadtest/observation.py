"""Measurements of one request, of one block of requests, and of one scored answer."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Observation(BaseModel):
    """One request as the client saw it; moments are seconds since the start of its block.

    The fields are filled in while the answer arrives, and the whole is written to the journal. A moment or
    measure that the answer does not have is ``None``.
    """

    model_config = ConfigDict(extra="forbid")

    prompt: int = Field(description="index of the prompt")
    due_s: float = Field(description="when it should be sent; in a closed loop, when it was sent")
    sent_s: float
    measured: bool = Field(
        True,
        description="false: sent in the lead-in, so it counts only where it overlaps the window",
    )
    done_s: float = 0.0
    first_s: float | None = Field(
        None, description="arrival of the first text of a streamed answer"
    )
    last_s: float | None = Field(None, description="arrival of the last text of a streamed answer")
    gaps_ms: list[float] = Field(
        default=[], description="gaps between the texts of a streamed answer"
    )
    error: str | None = Field(
        None, description="kind of failure; failed requests are left out of all latencies"
    )
    generated_tokens: int | None = None
    returned_tokens: int | None = None
    truncated: bool | None = Field(
        None,
        description="whether the token limit cut the answer off; null: the server does not tell",
    )
    queue_ms: float | None = None
    decode_ms: float | None = None
    rerank_ms: float | None = None
    scoring_ms: float | None = None

    @property
    def e2e_ms(self) -> float:
        """Time from due to the last byte."""
        return (self.done_s - self.due_s) * 1e3

    @property
    def ttft_ms(self) -> float:
        """Time from due to the first text, which comes last if the answer arrives in one piece."""
        return ((self.done_s if self.first_s is None else self.first_s) - self.due_s) * 1e3

    @property
    def tpot_ms(self) -> float | None:
        """Mean time per token after the first; ``None`` for answers in one piece or of one token."""
        if self.first_s is None or self.last_s is None or (self.returned_tokens or 0) < 2:
            return None
        return (self.last_s - self.first_s) * 1e3 / ((self.returned_tokens or 0) - 1)

    def meets(self, slos: dict[str, float]) -> bool:
        """True if it was answered within all limits, in ms by kind; answers in one piece always meet TPOT."""
        if self.error is not None:
            return False
        found = {"e2e": self.e2e_ms, "ttft": self.ttft_ms, "tpot": self.tpot_ms or 0.0}
        return all(found[kind] <= limit for kind, limit in slos.items())


class BlockRecord(BaseModel):
    """The measurements of one block.

    Attributes:
        window_s: start and end of the measured window, in seconds since the start of the block.
    """

    model_config = ConfigDict(extra="forbid")

    key: str
    cell: str
    round: int
    started: str = Field(description="start of the block, ISO 8601")
    window_s: tuple[float, float]
    client_cpu: float = Field(description="share of one core that the client used")
    observations: list[Observation]

    @property
    def measured(self) -> list[Observation]:
        """The observations without those of the lead-in."""
        return [seen for seen in self.observations if seen.measured]

    @property
    def seconds(self) -> float:
        """Length of the measured window."""
        return self.window_s[1] - self.window_s[0]

    def share(self, seen: Observation) -> float:
        """The fraction of a request's service time that lies within the window, 0 to 1.

        Throughput counts each request by this fraction, so a request that straddles an edge of the window
        is neither lost nor counted in full. Service starts when the wait in the server's queue ends: a queue
        that fills up, as at the start of a block, must not count as work done. If the server does not report
        the wait, service starts at the first text of a streamed answer, and for other answers when they are
        sent.
        """
        start, end = self.window_s
        if seen.queue_ms is not None:
            begun = min(seen.sent_s + seen.queue_ms / 1e3, seen.done_s)
        else:
            begun = seen.sent_s if seen.first_s is None else seen.first_s
        took = seen.done_s - begun
        if took <= 0:
            return float(start <= seen.done_s <= end)
        return max(0.0, min(seen.done_s, end) - max(begun, start)) / took


class ScoredAnswer(BaseModel):
    """One scored answer.

    Attributes:
        candidates: the rewards of all candidates that could be scored.
        truncated: whether the token limit cut the answer off; ``None`` if the server does not say.
        candidates_truncated: the same of each of ``candidates``.
        gold: the gold reward; ``None`` without a gold reward model, or if it could not score the answer.
        gold_candidates: the gold rewards of ``candidates``, in the same order.
    """

    model_config = ConfigDict(extra="forbid")

    prompt: int
    sample: int
    text: str = ""
    reward: float | None = None
    candidates: list[float] | None = None
    truncated: bool | None = None
    candidates_truncated: list[bool] | None = None
    gold: float | None = None
    gold_candidates: list[float | None] | None = None
    unscored: int = 0
    error: str | None = None
