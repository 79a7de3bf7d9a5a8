"""What an engine is to its users: prompts in, candidates out one by one as each finishes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from prometheus_client import Metric

from vbon.errors import InvalidInputError, PromptTooLongError
from vbon.maths.seeds import seed_of
from vbon.prompts import Prompt

FinishReason = Literal["stop", "length", "rejected"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw; equal values mean equal treatment of the methods compared.

    Attributes:
        max_tokens: most new tokens of one candidate.
        temperature: 0 is greedy; 1 samples the policy itself.
        top_p: nucleus mass in (0, 1].
        top_k: 0 keeps every token.
        seed: ``None`` draws freely; else candidate ``i`` uses :func:`candidate_seed` of it.
        stop: strings that end a candidate; not part of its text.
        logprobs: whether candidates carry log-probabilities, which cost the engine a few percent.
        ignore_eos: decode on to ``max_tokens``, for load tests.
        priority: whose turn it is when not all can be decoded at once: the lower, the earlier; it
            changes no candidate. Only 0 where the engine does not schedule by it.
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


@dataclass(frozen=True, slots=True)
class Candidate:
    """One finished sample.

    Attributes:
        index: 0..n-1 within its request.
        token_ids: generated ids, EOS included when the policy emitted it.
        finish_reason: ``rejected`` marks one that a strategy gave up; engines never say so.
        token_logprobs: nats of each token under the policy at temperature 1, before top-k and top-p;
            ``None`` unless the sampling asked for them.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    token_logprobs: tuple[float, ...] | None = None

    @property
    def cumulative_logprob(self) -> float | None:
        """Of the whole completion, nats; ``None`` unless asked for."""
        return None if self.token_logprobs is None else sum(self.token_logprobs)


@dataclass(frozen=True, slots=True)
class Partial:
    """A sample so far; each is a longer one of the same than the one before.

    Attributes:
        text: detokenised so far; a character may still be missing bytes and is then left out.
        finish_reason: ``None`` until it has ended.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    token_logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Which weights an engine serves, and what it can take.

    Attributes:
        max_model_len: context limit, tokens.
        by_priority: whether requests may say how early they are served.
    """

    path: str
    revision: str
    max_model_len: int
    by_priority: bool = False


def candidate_seed(seed: int, index: int) -> int:
    """Seed of candidate ``index``: a hash, so that requests with adjacent seeds share no candidate.

    (vLLM's own ``seed + index`` makes 15 of 16 candidates common to seeds 7 and 8.)
    """
    return seed_of(f"{seed}:{index}")


def check_fits(info: ModelInfo, prompt_token_ids: list[int], sampling: Sampling) -> None:
    """Refuse what the engine cannot serve as asked.

    Raises:
        PromptTooLongError: over the model's context; tells the limit.
        InvalidInputError: a priority where there is none.
    """
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


class Engine(Protocol):
    """Generates from one policy. All methods belong to one event loop.

    Attributes:
        recovers: whether it comes back by itself once it has died; else it is to be started again.
    """

    info: ModelInfo
    recovers: ClassVar[bool]

    async def start(self) -> None:
        """Load and warm up, the first-logprob compile included; the same once it has died.

        Raises:
            CheckpointError: if the weights cannot be loaded.
        """

    async def stop(self) -> None:
        """Free processes and memory; safe to call twice."""

    async def check(self) -> None:
        """Look whether it still works; what hangs is ended, so that it is dead and can be started again."""

    @property
    def alive(self) -> bool:
        """Whether the engine can still take requests."""

    @property
    def trouble(self) -> str:
        """What is wrong with it, or with a part that it can do without; empty if nothing is."""

    @property
    def unfinished(self) -> int:
        """Sequences in it that are neither finished nor aborted; 0 when nothing is asked of it."""

    async def metrics(self) -> list[Metric]:
        """Its own Prometheus metrics, names starting with ``vllm:``; none where it keeps none.

        Never raises, and takes no longer than a scrape may wait.
        """

    async def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, through the chat template for messages.

        Raises:
            InvalidInputError: for an empty prompt or messages without a chat template.
        """

    async def decode(self, prompt_token_ids: list[int], token_ids: list[int]) -> str:
        """The text of generated token ids as they continue the prompt, special tokens left out."""

    def generate(
        self,
        prompt_token_ids: list[int],
        sampling: Sampling,
        num_samples: int,
        request_id: str,
        first_index: int = 0,
    ) -> AsyncGenerator[Candidate, None]:
        """Yield exactly ``num_samples`` candidates in order of completion.

        Their indices start at ``first_index``; a candidate depends on its index, not on the others.
        Closing the generator (or cancelling its task) aborts what still decodes.

        Raises:
            PromptTooLongError: if prompt and max_tokens exceed the context.
            InvalidInputError: for a priority where the engine does not schedule by it.
            EngineDeadError: if the engine process is gone.
            EngineError: if this request failed.
        """

    def stream(
        self, prompt_token_ids: list[int], sampling: Sampling, index: int, request_id: str
    ) -> AsyncGenerator[Partial, None]:
        """Yield the sample that :meth:`generate` gives under ``index``, as it grows, to its end.

        A slow reader gets fewer and longer steps, never stale ones. Closing aborts it.

        Raises:
            As :meth:`generate`.
        """

    async def logprobs(
        self,
        prompt_token_ids: list[int],
        completion_token_ids: list[int],
        request_id: str,
        priority: int = 0,
    ) -> list[float]:
        """``log q`` of each completion token given what precedes it, nats, at temperature 1.

        Raises:
            As :meth:`generate`.
        """
