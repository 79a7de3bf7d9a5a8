"""One request as the client saw it, and one block of them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Observation(BaseModel):
    """Moments are seconds from the block's start; ``None`` where there is none.

    The same class is filled in while the answer arrives and written to the journal.
    """

    model_config = ConfigDict(extra="forbid")

    prompt: int = Field(description="index of its prompt")
    due_s: float = Field(description="when it should be sent; in a closed loop, when it was")
    sent_s: float
    measured: bool = Field(True, description="false: of the lead-in, which only counts for overlap")
    done_s: float = 0.0
    first_s: float | None = Field(None, description="first text of a streamed answer")
    last_s: float | None = Field(None, description="last text of a streamed answer")
    gaps_ms: list[float] = Field(default=[], description="between pieces of a streamed answer")
    error: str | None = Field(None, description="kind; the request is in no latency then")
    generated_tokens: int | None = None
    returned_tokens: int | None = None
    queue_ms: float | None = None
    decode_ms: float | None = None
    rerank_ms: float | None = None
    scoring_ms: float | None = None

    @property
    def e2e_ms(self) -> float:
        """From when it was due to its last byte."""
        return (self.done_s - self.due_s) * 1e3

    @property
    def ttft_ms(self) -> float:
        """From when it was due to its first text; an answer in one piece has it at the end."""
        return ((self.done_s if self.first_s is None else self.first_s) - self.due_s) * 1e3

    @property
    def tpot_ms(self) -> float | None:
        """Mean time of a token after the first; ``None`` for answers in one piece or of one token."""
        if self.first_s is None or self.last_s is None or (self.returned_tokens or 0) < 2:
            return None
        return (self.last_s - self.first_s) * 1e3 / ((self.returned_tokens or 0) - 1)

    def meets(self, slos: dict[str, float]) -> bool:
        """Whether it was answered within all limits, ms by kind; what is in one piece has no TPOT."""
        if self.error is not None:
            return False
        found = {"e2e": self.e2e_ms, "ttft": self.ttft_ms, "tpot": self.tpot_ms or 0.0}
        return all(found[kind] <= limit for kind, limit in slos.items())


class BlockRecord(BaseModel):
    """What one block measured.

    Attributes:
        window_s: start and end of what counts, seconds from the block's start.
    """

    model_config = ConfigDict(extra="forbid")

    key: str
    cell: str
    round: int
    started: str = Field(description="ISO time")
    window_s: tuple[float, float]
    client_cpu: float = Field(description="share of one core that the client used")
    observations: list[Observation]

    @property
    def measured(self) -> list[Observation]:
        """Without the lead-in."""
        return [seen for seen in self.observations if seen.measured]

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return self.window_s[1] - self.window_s[0]

    def share(self, seen: Observation) -> float:
        """Part of a request's time in service that lies within the window, 0 to 1.

        Throughput counts requests by it, so those that straddle an edge are neither lost nor whole. What
        the server says it waited in the queue is no service: while a queue fills, as at the start of a
        block, waiting is no sign that it is being worked off. Of a server that does not say, a streamed
        answer is in service from its first text on, any other from when it was sent.
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
    """One scored answer; ``candidates`` holds all of best-of-N's rewards that there are."""

    model_config = ConfigDict(extra="forbid")

    prompt: int
    sample: int
    text: str = ""
    reward: float | None = None
    candidates: list[float] | None = None
    unscored: int = 0
    error: str | None = None
