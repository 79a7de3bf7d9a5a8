"""The engine protocol: prompts go in, and candidates come out one by one as each finishes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

from prometheus_client import Metric

from vbon.errors import InvalidInputError, PromptTooLongError
from vbon.maths.seeds import seed_of
from vbon.prompts import Prompt
from vbon.storage.checkpoints import Checkpoint
from vbon.storage.weights_alone import NewWeights

FinishReason = Literal["stop", "length", "rejected"]

# The id of tokens whose ids a server does not send; no vocabulary contains it.
UNKNOWN_TOKEN = -1

# Bounds of vLLM's own validator (tests/integration/test_service_vllm.py compares them). vLLM decodes
# positive temperatures below the least one at the least one, and rejects those above the highest.
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.01, 2.0
# Most of the likeliest tokens whose log-probabilities can be asked for: vLLM's default limit.
MOST_TOP_LOGPROBS = 20
HOTTER = (
    "for candidates that differ more, raise n; to sample above it, serve a copy of the policy whose logits "
    "are divided by k: temperature t there is k times t here"
)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters; methods that are compared must get equal ones.

    They are those that an engine uses, which may differ from those that were asked for: a positive
    temperature below :data:`LEAST_TEMPERATURE` is raised to it, and greedy decoding ignores ``top_p`` and
    ``top_k``.

    Attributes:
        max_tokens: maximum number of new tokens per candidate.
        temperature: 0 decodes greedily; 1 samples the policy itself; at most :data:`MOST_TEMPERATURE`.
        top_p: probability mass of the nucleus, in (0, 1].
        top_k: 0 keeps every token.
        seed: ``None`` samples without a seed; otherwise candidate ``i`` uses ``candidate_seed(seed, i)``.
        stop: strings that end a candidate; they are left out of its text.
        logprobs: whether candidates carry log-probabilities; they cost the engine a few percent.
        top_logprobs: number of the likeliest tokens whose log-probabilities candidates carry at each
            position, at most :data:`MOST_TOP_LOGPROBS`; streamed samples carry none.
        ignore_eos: whether to decode up to ``max_tokens`` in any case, for load tests.
        priority: order in which waiting sequences are decoded; lower values come first. It does not
            change any candidate, and must be 0 if the engine does not schedule by priority.
        min_p: least probability of a token, relative to that of the most likely one.
        min_tokens: number of tokens before which neither EOS nor ``stop_token_ids`` end a candidate.
        stop_token_ids: tokens that end a candidate; like EOS, the last one is left out of its text.
        frequency_penalty: subtracted from a token's logit for each time the candidate has it already.
        presence_penalty: the same once, however often it has the token.
        repetition_penalty: divides the positive logits of tokens that the prompt or the candidate has, and
            multiplies the negative ones.
        logit_bias: added to the logits of tokens, by their ids.
        response_format: OpenAI's form of a JSON object (``{"type": "json_object"}``) or of JSON of a
            schema (``{"type": "json_schema", "json_schema": {"schema": ...}}``), to which each candidate is
            constrained; one that ``max_tokens`` cuts is the beginning of such a text.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = True
    ignore_eos: bool = False
    priority: int = 0
    min_p: float = 0.0
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    response_format: Mapping[str, Any] | None = None
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        """Replace what vLLM would replace, so that answers echo what was used."""
        if 0 < self.temperature < LEAST_TEMPERATURE:
            object.__setattr__(self, "temperature", LEAST_TEMPERATURE)
        if self.temperature == 0:
            object.__setattr__(self, "top_p", 1.0)
            object.__setattr__(self, "top_k", 0)
            object.__setattr__(self, "min_p", 0.0)

    @property
    def json_schema(self) -> Mapping[str, Any] | None:
        """The JSON schema that every finished candidate fits; ``None`` without ``response_format``."""
        if self.response_format is None:
            return None
        if self.response_format["type"] == "json_object":
            return {"type": "object"}
        schema: Mapping[str, Any] = self.response_format["json_schema"]["schema"]
        return schema

    @property
    def steering(self) -> tuple[str, ...]:
        """The names of the parameters for which candidates are not samples of the policy itself."""
        return tuple(name for name, neutral in _NEUTRAL.items() if getattr(self, name) != neutral)


# Values with which candidates are samples of the policy itself.
_NEUTRAL = {
    "temperature": 1,
    "top_p": 1,
    "top_k": 0,
    "min_p": 0,
    "min_tokens": 0,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "repetition_penalty": 1,
    "logit_bias": None,
    "response_format": None,
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One finished sample.

    Attributes:
        index: 0..n-1 within its request.
        token_ids: generated token ids, including EOS if the policy emitted it.
        finish_reason: ``rejected`` marks a candidate that a strategy aborted; engines never return it.
        token_logprobs: log-probability of each token in nats, under the policy at temperature 1 and
            before top-k and top-p, or under the distribution it was drawn from if
            ``ModelInfo.sampled_logprobs``; ``None`` unless ``Sampling.logprobs`` was set.
        top_logprobs: log-probabilities of the likeliest tokens at each position, nats, highest first, under
            the same distribution; fewer than asked for if the vocabulary or the server has no more, and
            ``None`` unless ``Sampling.top_logprobs`` asks for them.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    token_logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[tuple[float, ...], ...] | None = None

    @property
    def cumulative_logprob(self) -> float | None:
        """The log-probability of the whole completion in nats; ``None`` unless it was requested."""
        return None if self.token_logprobs is None else sum(self.token_logprobs)


@dataclass(frozen=True, slots=True)
class Partial:
    """The beginning of a sample that is still growing; each one extends the one before.

    Attributes:
        text: the text so far; a last character whose bytes are incomplete is left out.
        finish_reason: ``None`` until the sample has ended.
        continued: how often it went on at another replica, after the one that drew it had died.
        extra_tokens: number of tokens that engines decoded for it beside these, because it went on.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    token_logprobs: tuple[float, ...] | None = None
    continued: int = 0
    extra_tokens: int = 0


@dataclass(frozen=True, slots=True)
class FoundCall:
    """One call of a tool in a candidate's text, with its arguments as JSON."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class FoundCalls:
    """The calls of tools in a candidate, and the rest of its text."""

    calls: tuple[FoundCall, ...]
    text: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The weights that an engine serves, and its limits.

    Attributes:
        max_model_len: length of the context in tokens.
        by_priority: whether the engine schedules by priority.
        sampled_logprobs: whether the log-probabilities of candidates are those of the distribution that they
            were drawn from, after temperature, top-k and top-p, instead of the policy's own.
        adapter: whether the weights are an unmerged LoRA adapter, which decodes more slowly than merged ones.
        replaced: revisions that this engine served before its weights were changed in place, in order.
    """

    path: str
    revision: str
    max_model_len: int
    by_priority: bool = False
    adapter: bool = False
    sampled_logprobs: bool = False
    replaced: tuple[str, ...] = ()

    def changed_to(self, checkpoint: Checkpoint) -> ModelInfo:
        """The information once the weights of another checkpoint are in the place of these."""
        return replace(
            self,
            path=checkpoint.path,
            revision=checkpoint.revision,
            replaced=(*self.replaced, self.revision),
        )


def candidate_seed(seed: int, index: int) -> int:
    """The seed of one candidate: a hash, so that requests with adjacent seeds share no candidates.

    vLLM itself uses ``seed + index``, which makes 15 of 16 candidates of seeds 7 and 8 the same.
    """
    return seed_of(f"{seed}:{index}")


def check_fits(info: ModelInfo, prompt_token_ids: list[int], sampling: Sampling) -> None:
    """Check that an engine can serve a request.

    Raises:
        PromptTooLongError: prompt and ``max_tokens`` exceed the model's context.
        InvalidInputError: the temperature is too high, ``min_tokens`` is over ``max_tokens``, or the request
            has a priority and the engine does not schedule by priority.
    """
    if sampling.min_tokens > sampling.max_tokens:
        raise InvalidInputError(
            f"min_tokens is {sampling.min_tokens}, over max_tokens, which is {sampling.max_tokens}; lower "
            "one or raise the other",
            field="min_tokens",
        )
    if sampling.temperature > MOST_TEMPERATURE:
        raise InvalidInputError(
            f"temperature is {sampling.temperature:g}; engines sample at up to {MOST_TEMPERATURE:g}; "
            f"{HOTTER}",
            field="temperature",
        )
    if sampling.priority and not info.by_priority:
        raise InvalidInputError(
            f"priority is {sampling.priority}, but the engine of {info.path} serves first come, first "
            "served; leave it out, or start the server with --engine.scheduling-policy priority",
            field="priority",
        )
    if len(prompt_token_ids) + sampling.max_tokens > info.max_model_len:
        raise PromptTooLongError(
            prompt_tokens=len(prompt_token_ids),
            max_tokens=sampling.max_tokens,
            limit=info.max_model_len,
        )


def clipped(info: ModelInfo, prompt_tokens: int, sampling: Sampling) -> Sampling:
    """The sampling with ``max_tokens`` lowered to the room that a prompt leaves in the context.

    Raises:
        PromptTooLongError: the prompt leaves no room.
    """
    room = info.max_model_len - prompt_tokens
    if room < 1:
        raise PromptTooLongError(
            prompt_tokens=prompt_tokens, max_tokens=1, limit=info.max_model_len
        )
    return sampling if sampling.max_tokens <= room else replace(sampling, max_tokens=room)


class Engine(Protocol):
    """An engine that generates from one policy; all methods must be called in the same event loop.

    Attributes:
        recovers: whether the engine recovers from a failure by itself; otherwise call :meth:`start` again.
    """

    info: ModelInfo
    recovers: ClassVar[bool]

    async def start(self) -> None:
        """Load the weights and decode once, so that everything is compiled; also restarts a dead engine.

        Raises:
            CheckpointError: the weights cannot be loaded.
        """

    async def stop(self) -> None:
        """End the engine's processes and free its memory; safe to call twice."""

    async def check(self) -> None:
        """End the engine if it hangs, so that it can be started again."""

    async def check_weights(self, path: str) -> NewWeights:
        """Check that a directory can take the place of the one in use by :meth:`change_weights`.

        Raises:
            CheckpointError: it does not hold a usable model, or not what its checksums state.
            ReloadRefusedError: it differs in more than its weights, or the engine cannot change its weights.
        """

    async def change_weights(self, new: NewWeights, *, keep_requests: bool = False) -> None:
        """Serve other weights from the same engine, without a second copy of it.

        Requests in flight finish first, and new ones wait; with ``keep_requests`` they go on with the new
        weights, from the token they had reached. No token is decoded from a KV cache of other weights.
        :attr:`info` changes exactly when the weights do. If they cannot be loaded, the old ones are put back.

        Raises:
            NotReadyError: requests in flight did not finish in time; the old weights are in use.
            CheckpointError: the weights cannot be loaded; the old ones are in use.
            EngineDeadError: the old weights could not be put back, so the engine was ended.
        """

    @property
    def alive(self) -> bool:
        """True while the engine can take requests."""

    @property
    def trouble(self) -> str:
        """The current problem of the engine, or of a server it can do without; empty if there is none."""

    @property
    def unfinished(self) -> int:
        """The number of sequences that are neither finished nor aborted."""

    async def metrics(self) -> list[Metric]:
        """The engine's own Prometheus metrics, with names starting with ``vllm:``; empty if it has none.

        This method never raises, and returns within the time that a scrape may take.
        """

    def is_quick(self, prompt: Prompt) -> bool:
        """True if :meth:`encode` takes no time worth speaking of, so that any number may run at once."""

    async def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; messages go through the policy's chat template.

        Raises:
            InvalidInputError: the prompt is empty, or is a chat and the policy has no chat template, or the
                template or tokenizer rejects it, fails or takes too long.
            PromptTooLongError: the prompt alone exceeds the context.
        """

    async def find_calls(
        self, candidate: Candidate, tools: Sequence[Mapping[str, Any]]
    ) -> FoundCalls | None:
        """The calls of tools that a candidate contains; ``None`` if no parser of calls is configured.

        Args:
            tools: the tools that it could call, in OpenAI's form.
        """

    @property
    def finds_calls(self) -> bool:
        """True if a parser of the policy's calls is configured."""

    async def decode(self, prompt_token_ids: list[int], token_ids: list[int]) -> str:
        """The text of generated token ids that continue a prompt, without special tokens."""

    def generate(
        self,
        prompt_token_ids: list[int],
        sampling: Sampling,
        num_samples: int,
        request_id: str,
        first_index: int = 0,
    ) -> AsyncGenerator[Candidate, None]:
        """Yield exactly ``num_samples`` candidates in order of completion.

        Their indices start at ``first_index``. A candidate depends on its index, not on the others.
        Closing the generator, or cancelling its task, aborts the unfinished candidates.

        Raises:
            PromptTooLongError: prompt and ``max_tokens`` exceed the context.
            InvalidInputError: the engine cannot sample in this way, or the request has a priority and the
                engine does not schedule by priority.
            EngineDeadError: the engine process has ended.
            EngineError: this request failed.
        """

    def stream(
        self, prompt_token_ids: list[int], sampling: Sampling, index: int, request_id: str
    ) -> AsyncGenerator[Partial, None]:
        """Yield the candidate that :meth:`generate` yields under ``index`` while it grows.

        A slow reader gets fewer and longer steps, never outdated ones. Closing the generator aborts the
        candidate. It raises the same errors as :meth:`generate`.
        """

    async def logprobs(
        self,
        prompt_token_ids: list[int],
        completion_token_ids: list[int],
        request_id: str,
        priority: int = 0,
    ) -> list[float]:
        """``log q`` in nats of each completion token given the tokens before it, at temperature 1.

        It raises the same errors as :meth:`generate`.
        """
