"""The engine on vLLM: sends requests to an ``AsyncLLM``, which ``host.py`` starts and stops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from prometheus_client import Metric

from vbon.engine.encoder import PromptEncoder
from vbon.engine.fan_out import as_they_finish
from vbon.engine.metrics import vllm_families
from vbon.engine.protocol import (
    Candidate,
    FinishReason,
    FoundCalls,
    ModelInfo,
    Partial,
    Sampling,
    check_fits,
)
from vbon.engine.vllm.host import Adapter, VllmHost
from vbon.engine.vllm.requests import (
    found_calls,
    refused,
    sampling_params,
    tool_parser_type,
    vllm_api,
)
from vbon.errors import (
    EngineDeadError,
    EngineError,
    NotReadyError,
    ReloadRefusedError,
)
from vbon.prompts import Prompt, completion_decoder, decode_completion
from vbon.storage.checkpoints import has_changed
from vbon.storage.weights_alone import WITHOUT_IN_PLACE, NewWeights
from vbon.threads import in_own_thread

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams


logger = logging.getLogger(__name__)

# Decoding four tokens takes seconds, or minutes if kernels have to be compiled first.
WARM_UP_S = 600.0
# vLLM's reasons for the end of a sequence that has finished; with any other reason it has not.
_FINISHED: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class VllmEngine:
    """An :class:`~vbon.engine.protocol.Engine` for one policy: a host's base model or a LoRA adapter on it.

    A request for N candidates becomes N vLLM requests of one sample each. vLLM splits a request with
    ``n`` the same way, but returns its candidates together; separate requests return each candidate when
    it finishes, so scoring overlaps decoding.
    """

    recovers: ClassVar[bool] = False

    def __init__(self, host: VllmHost, adapter: Adapter | None = None) -> None:
        self.host = host
        self._adapter = adapter
        checkpoint = adapter.checkpoint if adapter else host.checkpoint
        by_priority = host.options.scheduling_policy == "priority"
        self.info = ModelInfo(
            checkpoint.path,
            checkpoint.revision,
            0,
            by_priority,
            adapter=adapter is not None,
            sampled_logprobs=host.options.sampled_logprobs,
        )
        self._warm_start = 0

    @property
    def alive(self) -> bool:
        """True while the engine process runs and this policy has been warmed up on it."""
        return self.host.alive and self._warm_start == self.host.starts

    @property
    def trouble(self) -> str:
        """A text if the engine process does not run; it cannot have other problems."""
        return "" if self.alive else "the engine process is not running"

    @property
    def arguments(self) -> dict[str, Any]:
        """vLLM's arguments of the engine, with which the bench starts another one like it."""
        return self.host.arguments

    async def metrics(self) -> list[Metric]:
        """vLLM's own metrics; empty for an adapter, whose requests the base policy's metrics include."""
        # The last values of a dead engine would look like those of an idle one.
        if self._adapter is not None or not self.alive:
            return []
        return vllm_families(self.host.registry)

    async def start(self) -> None:
        """Start the host unless it runs, then decode a few tokens so that everything is compiled.

        This also restarts an engine that has died.

        Raises:
            CheckpointError: the checkpoint cannot be served.
            EngineError: the engine started but did not decode in time, so it was ended.
        """
        if self.host.options.tool_parser is not None:
            tool_parser_type(self.host.options.tool_parser)
        await self.host.start()
        start = self.host.starts
        try:
            async with asyncio.timeout(WARM_UP_S):
                await self._warm_up(start)
        except TimeoutError as error:
            # The supervisor does not watch an engine that is starting, so it would hang forever.
            self.host.kill()
            raise EngineError(
                f"the engine of {self.info.path} did not decode within {WARM_UP_S:g} s of its start and was "
                "ended"
            ) from error
        self._warm_start = start
        if self._adapter is not None:
            self.host.use(self._adapter)

    async def _warm_up(self, start: int) -> None:
        if self._adapter is not None:
            # At a restart, or after a change since the check, serve what the path holds now.
            if self._warm_start or has_changed(self._adapter.checkpoint):
                self._adapter = self.host.new_adapter(self._adapter.path)
            await self.host.load_adapter(self._adapter)
        checkpoint = self._adapter.checkpoint if self._adapter else self.host.checkpoint
        self.info = replace(
            self.info, max_model_len=self.host.max_model_len, revision=checkpoint.revision
        )
        warm_up = Sampling(max_tokens=4, seed=0)
        first_id = self.host.tokenizer.encode("a", add_special_tokens=True)
        async for _ in self.generate(first_id, warm_up, 2, f"warm-up-{id(self)}-{start}"):
            pass

    async def check(self) -> None:
        """End the engine's processes if it hangs: it has work and has been silent for too long."""
        await self.host.keep_guarded()
        limit_s = self.host.options.stall_timeout_s
        if limit_s is not None and self.host.silent_s > limit_s:
            logger.error(
                "the engine of %s has not decoded anything for %g s although it has work; ending it",
                self.info.path,
                limit_s,
            )
            self.host.kill()

    async def check_weights(self, path: str) -> NewWeights:
        """Check a directory; refused for an adapter, which a reload replaces within the engine."""
        if self._adapter is not None:
            raise ReloadRefusedError(
                f"{self.info.path} is a LoRA adapter, which a reload replaces without another engine; "
                f"{WITHOUT_IN_PLACE}"
            )
        return await in_own_thread("check-model", self.host.check_weights, path)

    async def change_weights(self, new: NewWeights, *, keep_requests: bool = False) -> None:
        """Change them between two steps of the engine process."""

        def changed() -> None:
            self.info = self.info.changed_to(new.checkpoint)

        await self.host.change_weights(new, keep_requests=keep_requests, changed=changed)

    async def stop(self) -> None:
        """Stop the host with every policy on it; an adapter is unloaded before the next one is loaded."""
        if self._adapter is None:
            await self.host.stop()
        else:
            self.host.drop(self._adapter)

    def is_quick(self, prompt: Prompt) -> bool:
        """True for short texts."""
        return self._encoder.is_quick(prompt)

    async def encode(self, prompt: Prompt) -> list[int]:
        """Token ids from the policy's own tokenizer and chat template."""
        return await self._encoder.encode(prompt)

    @property
    def _encoder(self) -> PromptEncoder:
        if self.host.encoder is None:
            raise NotReadyError(f"the engine of {self.info.path} has not started")
        return self.host.encoder

    @property
    def finds_calls(self) -> bool:
        """True if ``VllmOptions.tool_parser`` names a parser."""
        return self.host.options.tool_parser is not None

    async def find_calls(
        self, candidate: Candidate, tools: Sequence[Mapping[str, Any]]
    ) -> FoundCalls | None:
        """The calls that vLLM's parser finds."""
        name = self.host.options.tool_parser
        if name is None:
            return None
        return await asyncio.to_thread(found_calls, name, self.host.tokenizer, candidate, tools)

    @property
    def unfinished(self) -> int:
        """The number of unfinished sequences on the host, including those of its other policies."""
        return self.host.unfinished

    async def decode(self, prompt_token_ids: list[int], token_ids: list[int]) -> str:
        """The text of token ids after the prompt's last tokens, the same as vLLM's own detokenization."""
        return decode_completion(self.host.tokenizer, prompt_token_ids, token_ids)

    async def generate(
        self,
        prompt_token_ids: list[int],
        sampling: Sampling,
        num_samples: int,
        request_id: str,
        first_index: int = 0,
    ) -> AsyncGenerator[Candidate, None]:
        """Yield candidates as they finish; closing the generator aborts the rest in the engine."""
        check_fits(self.info, prompt_token_ids, sampling)
        if sampling.top_logprobs:
            # vLLM's process would end if it were asked for more than the vocabulary has.
            known = min(sampling.top_logprobs, len(self.host.tokenizer))
            sampling = replace(sampling, top_logprobs=known)
        shared = sampling_params(sampling) if sampling.seed is None else None
        decode = completion_decoder(self.host.tokenizer, prompt_token_ids)
        draws = (
            self._one(
                prompt_token_ids,
                shared or sampling_params(sampling, index),
                index,
                f"{request_id}-{index}",
                sampling.priority,
                decode,
            )
            for index in range(first_index, first_index + num_samples)
        )
        async with aclosing(as_they_finish(draws)) as candidates:
            async for candidate in candidates:
                yield candidate

    async def _one(
        self,
        prompt_token_ids: list[int],
        params: SamplingParams,
        index: int,
        request_id: str,
        priority: int,
        decode: Callable[[Sequence[int]], str],
    ) -> Candidate:
        final = await self._last_message(prompt_token_ids, params, request_id, priority)
        output = final.outputs[0] if final is not None and final.outputs else None
        reason = _FINISHED.get(output.finish_reason or "") if output is not None else None
        if output is None or reason is None:
            raise _unfinished(index, output.finish_reason if output else None)
        ids = tuple(output.token_ids)
        return Candidate(
            index=index,
            # A token that ended the candidate has no text, even if it is not a special token.
            text=output.text
            if params.detokenize
            else decode(ids[: -1 if reason == "stop" else None]),
            token_ids=ids,
            finish_reason=reason,
            token_logprobs=None
            if params.logprobs is None
            else _token_logprobs(output.logprobs, ids),
            top_logprobs=_top_logprobs(output.logprobs, params.logprobs)
            if params.logprobs
            else None,
        )

    async def stream(
        self, prompt_token_ids: list[int], sampling: Sampling, index: int, request_id: str
    ) -> AsyncGenerator[Partial, None]:
        """Yield each step that vLLM decodes; steps that a slow reader missed are merged into one."""
        check_fits(self.info, prompt_token_ids, sampling)
        params = sampling_params(sampling, index, streamed=True)
        text, ids = "", ()  # type: tuple[str, tuple[int, ...]]
        logprobs: tuple[float, ...] | None = () if sampling.logprobs else None
        finished: str | None = None
        async with aclosing(
            self.messages(prompt_token_ids, params, request_id, sampling.priority)
        ) as messages:
            async for message in messages:
                step = message.outputs[0]
                text += step.text
                ids += tuple(step.token_ids)
                if logprobs is not None:
                    logprobs += _token_logprobs(step.logprobs, step.token_ids)
                finished = step.finish_reason
                if finished is not None and finished not in _FINISHED:
                    break
                yield Partial(index, text, ids, _FINISHED.get(finished or ""), logprobs)
        if finished not in _FINISHED:
            raise _unfinished(index, finished)

    async def logprobs(
        self,
        prompt_token_ids: list[int],
        completion_token_ids: list[int],
        request_id: str,
        priority: int = 0,
    ) -> list[float]:
        """Log-probabilities of a completion from one forward pass, which also decodes an unused token."""
        if not completion_token_ids:
            return []
        ids = [*prompt_token_ids, *completion_token_ids]
        check_fits(self.info, ids, Sampling(max_tokens=1, priority=priority))
        params = vllm_api().SamplingParams(
            max_tokens=1,
            prompt_logprobs=0,
            detokenize=False,
            output_kind=vllm_api().RequestOutputKind.FINAL_ONLY,
        )
        final = await self._last_message(ids, params, request_id, priority)
        if final is None or final.prompt_logprobs is None:
            raise EngineError(f"the engine of {self.info.path} returned no log-probabilities")
        # The first prompt token has no log-probability, so a completion needs a prompt before it.
        return list(
            _token_logprobs(final.prompt_logprobs[len(prompt_token_ids) :], completion_token_ids)
        )

    async def _last_message(
        self,
        prompt_token_ids: list[int],
        params: SamplingParams,
        request_id: str,
        priority: int = 0,
    ) -> RequestOutput | None:
        final = None
        async with aclosing(
            self.messages(prompt_token_ids, params, request_id, priority)
        ) as messages:
            async for message in messages:
                final = message
        return final

    async def messages(
        self,
        prompt_token_ids: list[int],
        params: SamplingParams,
        request_id: str,
        priority: int = 0,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yield vLLM's outputs for one request; closing the generator aborts the request.

        Raises:
            EngineDeadError: the engine process has ended.
            InvalidInputError: vLLM rejects the request.
            EngineError: vLLM failed on this request.
        """
        vllm = vllm_api()
        stream = self.host.llm.generate(
            vllm.TokensPrompt(prompt_token_ids=prompt_token_ids),
            params,
            request_id,
            lora_request=self.host.lora_request(self._adapter),
            priority=priority,
        )
        try:
            async with aclosing(stream):
                async for message in stream:
                    yield message
        except vllm.EngineDeadError as error:
            raise EngineDeadError(f"the engine of {self.info.path} has died") from error
        except vllm.VLLMClientError as error:
            raise refused(error) from error
        except (vllm.EngineGenerateError, vllm.GracefulHTTPError) as error:
            cause = error.__cause__ or error
            raise EngineError(f"the engine of {self.info.path} failed: {cause}") from error


async def generate_bare(
    engine: VllmEngine, prompt_token_ids: list[int], sampling: Sampling, n: int, request_id: str
) -> int:
    """Generate ``n`` samples with one vLLM request, as a plain user of vLLM would; returns the token count.

    Only the bench uses this, to measure the service against it.
    """
    params = vllm_api().SamplingParams(
        n=n,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        output_kind=vllm_api().RequestOutputKind.FINAL_ONLY,
    )
    tokens = 0
    async with aclosing(engine.messages(prompt_token_ids, params, request_id)) as messages:
        async for message in messages:
            tokens += sum(len(output.token_ids) for output in message.outputs)
    return tokens


def _unfinished(index: int, reason: str | None) -> EngineError:
    return EngineError(f"the engine ended candidate {index} without finishing it ({reason})")


def _token_logprobs(positions: Any, token_ids: Sequence[int]) -> tuple[float, ...]:
    """Log-probabilities of tokens from vLLM's dictionary per position, which always contains the token."""
    return tuple(
        position[token].logprob for position, token in zip(positions, token_ids, strict=True)
    )


def _top_logprobs(positions: Any, count: int) -> tuple[tuple[float, ...], ...]:
    """The highest log-probabilities of each position, which also has the sampled token's, highest first."""
    return tuple(
        tuple(sorted((one.logprob for one in position.values()), reverse=True)[:count])
        for position in positions
    )
