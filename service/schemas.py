"""What goes over the wire. Unknown fields are refused everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic.config import JsonDict

from bestofn.engine import FinishReason
from bestofn.prompts import Message, Prompt
from bestofn.training_record import TrainingRecord
from service.strategy_fields import with_strategy_settings

EXAMPLE: JsonDict = {"prompt": "the film was", "n": 16, "max_tokens": 48, "seed": 7}


Text = Annotated[str, Field(min_length=1)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]


class Wire(BaseModel):
    """Base of requests: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ChatMessage(Wire):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: Text


class SamplingFields(Wire):
    """How to draw; shared by every request that generates."""

    max_tokens: int | None = Field(None, ge=1, description="most new tokens of a candidate")
    temperature: float = Field(1.0, ge=0, le=10, allow_inf_nan=False, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int = Field(0, ge=0, le=1_000_000, description="0 keeps every token")
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="same seed, settings and batch: same answer"
    )
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = Field(
        None, description="strings that end a candidate"
    )
    ignore_eos: bool = Field(False, description="decode on to max_tokens, for load tests")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple whichever form was sent."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


Count = Annotated[int, Field(ge=1)]
# Told apart before they are checked, so that a wrong value gets one message and not one of each form.
Counts = Annotated[
    Annotated[Count, Tag("one")] | Annotated[list[Count], Field(min_length=1), Tag("several")],
    Discriminator(lambda value: "several" if isinstance(value, list) else "one"),
]


class GenerateFields(SamplingFields):
    """One prompt, several prompts, or a chat; settings of the mode's strategy beside them."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    n: Counts | None = Field(
        None,
        description="candidates a prompt; single-sample modes draw 1. Mode bon also takes a list: the "
        "answer is that of the largest, and reward_curve estimates every one from the same candidates",
    )
    prompt: Text | None = Field(None, description="text to continue")
    prompts: Annotated[list[Text], Field(min_length=1)] | None = Field(
        None, description="several texts; the answer is then a list in the same order"
    )
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = Field(
        None, description="a chat, for policies with a chat template"
    )
    return_candidates: bool = Field(False, description="also return every candidate")
    score: bool = Field(
        True, description="single-sample modes: report the answer's reward (costs one scoring)"
    )
    logprobs: bool = Field(
        False,
        description="also return token ids and their log-probabilities, nats at temperature 1",
    )
    stream: bool = Field(
        False, description="server-sent events: token, candidate, progress, then answer or error"
    )
    timeout_s: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="time limit; at most the server's, its default"
    )

    @model_validator(mode="after")
    def _exactly_one_input(self) -> Self:
        given = [
            name for name in ("prompt", "prompts", "messages") if getattr(self, name) is not None
        ]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of prompt, prompts and messages; got "
                + (", ".join(given) if given else "none")
            )
        return self

    @property
    def num_samples(self) -> int | None:
        """N: the largest of a list."""
        return max(self.n) if isinstance(self.n, list) else self.n

    def to_prompts(self) -> list[Prompt]:
        """The prompts asked about, one or many."""
        if self.prompts is not None:
            return [Prompt(text=text) for text in self.prompts]
        if self.messages is not None:
            turns = (Message(role=turn.role, content=turn.content) for turn in self.messages)
            return [Prompt(messages=tuple(turns))]
        return [Prompt(text=self.prompt)]


if TYPE_CHECKING:

    class GenerateRequest(GenerateFields):
        """With the fields of every strategy, which the registry adds."""

else:
    GenerateRequest = with_strategy_settings("GenerateRequest", GenerateFields)


class ModelRef(BaseModel):
    """Which weights: path and content revision."""

    name: str
    path: str
    revision: str


class SamplingUsed(BaseModel):
    """The sampling actually used, defaults filled in, so that results can be compared."""

    n: int
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: list[str]
    ignore_eos: bool


class Usage(BaseModel):
    """Tokens: everything decoded apart from what was returned."""

    prompt_tokens: int
    generated_tokens: int = Field(description="of all candidates, discarded ones included")
    returned_tokens: int = Field(description="of the answer")


class Timings(BaseModel):
    """Milliseconds; queue + decode + rerank make up total to within scheduling."""

    queue: float
    decode: float
    rerank: float = Field(description="scoring that decoding did not hide")
    scoring: float = Field(description="while any candidate was being scored, hidden or not")
    total: float


class CandidateOut(BaseModel):
    """One candidate."""

    index: int
    text: str
    reward: float | None
    cumulative_logprob: float | None = Field(description="nats under the policy at temperature 1")
    num_tokens: int
    finish_reason: FinishReason
    token_ids: list[int] | None = None
    token_logprobs: list[float] | None = Field(None, description="nats, one a token")


class CurvePoint(BaseModel):
    """What best-of-n is worth on this prompt, estimated without bias from the candidates drawn."""

    n: int
    expected_reward: float | None = Field(
        description="null where fewer than n candidates could be scored"
    )


class GenerateAnswer(BaseModel):
    """One prompt's answer."""

    request_id: str
    mode: str
    text: str
    reward: float | None = Field(description="raw reward; null if not asked for or not scorable")
    finish_reason: FinishReason
    selected_index: int
    unscored_candidates: int | None = Field(
        description="candidates the reward model could not score; null where none was scored"
    )
    candidates: list[CandidateOut] | None = None
    token_ids: list[int] | None = Field(None, description="on request (logprobs)")
    token_logprobs: list[float] | None = Field(None, description="on request; nats, one a token")
    reward_curve: list[CurvePoint] | None = Field(None, description="where n was a list")
    strategy: dict[str, Any] = Field(description="its settings, defaults filled in")
    details: dict[str, Any] = Field(description="what the strategy reports of its choice")
    sampling: SamplingUsed
    usage: Usage
    timings_ms: Timings
    policy: ModelRef
    reward_model: ModelRef | None


class BatchAnswer(BaseModel):
    """Answers to ``prompts``, in order, with totals."""

    request_id: str
    mode: str
    answers: list[GenerateAnswer]
    usage: Usage


class CompareRequest(SamplingFields):
    """The same prompts through several modes."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompts": ["the film was", "i watched this comedy"], "n": 16, "repeats": 3}
            ]
        }
    )

    n: int | None = Field(None, ge=1, description="candidates a prompt; single-sample modes draw 1")
    prompts: Annotated[list[Text], Field(min_length=1)]
    modes: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="default: `bon` and one sample of every policy"
    )
    settings: dict[str, dict[str, Any]] = Field(
        default={},
        description='strategy settings by mode, {"soft-bon": {"reward_temperature": 0.5}}',
    )
    baseline: str | None = Field(
        None, description="mode the ratios are against; default `ref` if compared, else the first"
    )
    repeats: int = Field(1, ge=1, le=100, description="rounds; modes are interleaved in each")
    concurrency: int = Field(
        1, ge=1, le=1024, description="prompts in flight; 1 measures idle latency, many throughput"
    )


class Interval(BaseModel):
    """A mean over prompts with its 95% bootstrap interval."""

    mean: float
    ci95_low: float
    ci95_high: float
    count: int


class Range(BaseModel):
    """Median of the repeats with the smallest and largest."""

    median: float
    min: float
    max: float
    count: int


class LatencySummary(BaseModel):
    """E2E latency in milliseconds."""

    mean: float
    p50: float
    p95: float


class ModeReport(BaseModel):
    """One mode's side of a comparison."""

    mode: str
    policy: ModelRef
    n: int
    strategy: dict[str, Any] = Field(description="its settings, defaults filled in")
    reward: Interval | None
    gold_reward: Interval | None
    unscored_answers: int
    win_rate: Interval | None = Field(description="against the baseline's answers, ties 1/2")
    gold_win_rate: Interval | None
    e2e_ms: LatencySummary
    requests_per_s: Range
    generated_tokens_per_s: Range
    returned_tokens_per_s: Range
    generated_tokens: int
    returned_tokens: int
    ratio_requests_per_s: Range = Field(description="this mode's over the baseline's, per repeat")
    ratio_e2e: Range
    ratio_generated_tokens: float


class HeadToHead(BaseModel):
    """Wins and losses of one mode against another by the reward model, over all answer pairs."""

    mode: str
    against: str
    wins: int
    losses: int
    ties: int


class ComparedAnswer(BaseModel):
    """One mode's first answer to a prompt."""

    text: str
    reward: float | None
    gold_reward: float | None


class PromptRow(BaseModel):
    """One prompt and what each mode answered first."""

    prompt: str
    answers: dict[str, ComparedAnswer]


class CompareResponse(BaseModel):
    """A comparison with everything needed to run it again."""

    request_id: str
    baseline: str
    sampling: SamplingUsed
    repeats: int
    concurrency: int
    reward_model: ModelRef | None
    gold_model: ModelRef | None
    modes: list[ModeReport]
    head_to_head: list[HeadToHead]
    prompts: list[PromptRow]


class ModeInfo(BaseModel):
    """A mode that requests may name."""

    name: str
    description: str
    source: str = Field(description="the paper it follows; empty where there is none")
    settings: dict[str, Any] = Field(description="settings a request may send, with their defaults")
    policy: ModelRef
    reward_model: ModelRef | None
    default_n: int
    training: TrainingRecord | None = Field(
        None, description="how the policy was trained, cost and held-out figures, where it says so"
    )


class ModesResponse(BaseModel):
    """Every mode, with the defaults and limits of the server."""

    default_mode: str
    modes: list[ModeInfo]
    gold_model: ModelRef | None
    limits: dict[str, Any]


class ErrorBody(BaseModel):
    """What went wrong, in OpenAI's shape."""

    message: str
    type: str
    param: str | None = None
    code: int | str
    request_id: str


class ErrorResponse(BaseModel):
    """Every error of this service."""

    error: ErrorBody
