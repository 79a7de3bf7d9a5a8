"""The engine over HTTP, for one or several OpenAI-compatible servers such as ``vllm serve``.

Servers may lack some features:

- Without token ids (vLLM's ``return_token_ids``, or its ``token_id:N`` logprobs), candidates carry
  ``UNKNOWN_TOKEN`` for each token. Counts and log-probabilities are right, but TreeBoN and
  :meth:`RemoteEngine.logprobs`, which need the ids, raise an error.
- Without ``prompt_logprobs``, :meth:`RemoteEngine.logprobs` raises an error, so given text cannot be scored.
- Without ``/tokenize`` and ``/detokenize``, ``RemoteOptions.tokenizer`` must name the tokenizer's directory.
- Without a count of ``completion_tokens``, answers are checked less.
- Without ``ignore_eos``, ``stop``, ``min_tokens``, ``stop_token_ids`` or ``response_format``, requests that
  use them are refused as soon as an answer shows it. ``min_p`` and ``repetition_penalty``, which no answer
  shows, are refused unless the server's models are owned by ``vllm`` or ``sglang``.
- Without ``max_model_len`` in ``/models``, ``RemoteOptions.max_model_len`` must be set.

A server must send ``logprobs`` of the sampled tokens. They must be those of the model itself (temperature
1, before top-k and top-p), as with vLLM's default ``--logprobs-mode raw_logprobs``; with the option
``sampled_logprobs`` those of ``processed_logprobs``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from prometheus_client import Metric

from vbon.engine.affinity import PromptGroup
from vbon.engine.continuation import BrokenOffError, continued
from vbon.engine.encoder import PromptEncoder
from vbon.engine.fan_out import as_they_finish
from vbon.engine.protocol import (
    UNKNOWN_TOKEN,
    Candidate,
    FoundCalls,
    ModelInfo,
    Partial,
    Sampling,
    check_fits,
)
from vbon.engine.remote.metrics import RemoteMetrics
from vbon.engine.remote.replicas import Replicas
from vbon.engine.remote.server import RemoteOptions, Replica, ReplicaError, parse_address
from vbon.engine.remote.wire import (
    GrowingCandidate,
    ServerSaidError,
    check_extensions,
    completion_body,
    read_prompt_logprobs,
    read_text,
    read_tokens,
    scoring_body,
)
from vbon.errors import CheckpointError, EngineError, InvalidInputError, ReloadRefusedError
from vbon.http.body import WireError
from vbon.prompts import (
    CONTEXT_TOKENS,
    REPLACEMENT,
    Prompt,
    decode_completion,
)
from vbon.storage.weights_alone import NewWeights
from vbon.threads import in_own_thread

logger = logging.getLogger(__name__)

T = TypeVar("T")


class RemoteEngine:
    """An :class:`~vbon.engine.protocol.Engine` for a policy on remote servers.

    Each candidate is one HTTP request with its own seed. The candidates of a request stay together at a
    server that has their prefix (see :mod:`vbon.engine.affinity`). Remote weights cannot be hashed, so the
    revision is the model's name at the server.
    """

    recovers: ClassVar[bool] = True

    def __init__(self, policy: str, options: RemoteOptions | None = None) -> None:
        urls, model = parse_address(policy)
        self._options = options or RemoteOptions()
        self._replicas = Replicas(urls, model, self._options)
        self._metrics = RemoteMetrics(self._options.metrics_timeout_s)
        self._tokenizer: Any = None
        self._encoder: PromptEncoder | None = None
        self._endings: set[int] = set()
        self.info = ModelInfo(
            ",".join(urls),
            "remote:" + (model or "unknown"),
            0,
            self._options.by_priority,
            sampled_logprobs=self._options.sampled_logprobs,
        )

    async def check_weights(self, path: str) -> NewWeights:
        """Refuse: the weights are the servers'."""
        raise ReloadRefusedError(
            f"the weights of {self.info.path} are on other servers; change them there"
        )

    async def change_weights(self, new: NewWeights, *, keep_requests: bool = False) -> None:
        """Refuse, as :meth:`check_weights`."""
        await self.check_weights(new.checkpoint.path)

    @property
    def alive(self) -> bool:
        """True if at least one server takes requests."""
        return self._replicas.alive

    @property
    def trouble(self) -> str:
        """The servers that are left out, with the reasons; empty if all take requests."""
        return self._replicas.trouble

    @property
    def unfinished(self) -> int:
        """The number of requests sent to the servers or waiting to be sent."""
        return self._replicas.in_flight

    async def metrics(self) -> list[Metric]:
        """vLLM's metrics from the servers' own ``/metrics``."""
        if not self._options.metrics:
            return []
        return await self._metrics.collect(self._replicas.all, self._replicas.model)

    async def start(self) -> None:
        """Wait for the first server, then decode a few tokens to find out which features it lacks.

        Raises:
            CheckpointError: no server answered in time, or the policy cannot be served by them.
        """
        try:
            if self._options.tokenizer is not None:
                self._tokenizer = await in_own_thread(
                    "load-tokenizer", _load_tokenizer, self._options
                )
            await self._replicas.start()
            model, limit = self._replicas.model, self._replicas.max_model_len
            self.info = replace(
                self.info,
                revision=f"remote:{model}",
                max_model_len=limit,
                adapter=self._replicas.adapter,
            )
            if self._tokenizer is not None:
                self._encoder = await PromptEncoder.started(
                    self._tokenizer, most_tokens=limit, limit_s=self._options.encode_timeout_s
                )
            ids = await self.encode(Prompt(text="a"))
            await self._warn_of_endings()
            warm_up = Sampling(max_tokens=min(4, limit - len(ids)), seed=0)
            async for candidate in self.generate(ids, warm_up, 2, "warm-up"):
                if UNKNOWN_TOKEN in candidate.token_ids:
                    logger.warning(
                        "%s sends no token ids, so TreeBoN cannot use it", self.info.path
                    )
        except (EngineError, InvalidInputError) as error:
            await self._replicas.stop()
            raise CheckpointError(f"the remote policy cannot be served: {error}") from error
        except BaseException:
            await self._replicas.stop()
            raise

    async def check(self) -> None:
        """Do nothing: servers that fail are left out and probed until they are healthy again."""

    async def stop(self) -> None:
        """Close all connections, which makes the servers abort; safe to call twice."""
        await self._replicas.stop()
        if self._encoder is not None:
            await self._encoder.close()

    async def _warn_of_endings(self) -> None:
        """Warn if the server's tokenizer appends tokens to texts, which may be EOS."""
        if self._encoder is not None:
            return  # `encode_prompt` leaves EOS out
        whole, body = [
            await self.encode(Prompt(text="a", special_tokens=special)) for special in (True, False)
        ]
        if whole[-1:] != body[-1:]:
            logger.warning(
                "%s appends token %d to every text; if it ends texts, answers begin new ones. Set "
                "engine.remote_tokenizer to a directory with the policy's tokenizer to leave it out",
                self.info.path,
                whole[-1],
            )

    def is_quick(self, prompt: Prompt) -> bool:
        """True for short texts, and for all prompts if a server encodes them."""
        return self._encoder is None or self._encoder.is_quick(prompt)

    async def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt from the configured tokenizer, or else from the server's ``/tokenize``."""
        if self._encoder is not None:
            return await self._encoder.encode(prompt)
        field = "messages" if prompt.messages else "prompt"
        body: dict[str, Any] = {"prompt": prompt.text}
        if prompt.messages:
            body = {"messages": list(prompt.messages), "add_generation_prompt": True}
        if prompt.template_kwargs:
            body["chat_template_kwargs"] = dict(prompt.template_kwargs)
        if prompt.tools:
            body["tools"] = list(prompt.tools)
        body["add_special_tokens"] = prompt.adds_special_tokens
        try:
            ids = await self._tokenizing("/tokenize", body, read_tokens)
        except InvalidInputError as error:
            raise InvalidInputError(str(error), field=field) from error
        if not ids:
            raise InvalidInputError("the prompt contains no tokens", field="prompt")
        return ids

    @property
    def finds_calls(self) -> bool:
        """False: servers parse calls only in chats, and are asked for completions."""
        return False

    async def find_calls(
        self, candidate: Candidate, tools: Sequence[Mapping[str, Any]]
    ) -> FoundCalls | None:
        """``None``: servers parse calls only in chats, and are asked for completions."""
        return None

    async def decode(self, prompt_token_ids: list[int], token_ids: list[int]) -> str:
        """The text of token ids that follow the prompt's last tokens.

        The server's ``/detokenize`` also returns the text of special tokens. Tokens that have ended a
        candidate before are left out here; other special tokens are left out only with a configured
        tokenizer.
        """
        self._check_known(token_ids)
        if self._tokenizer is not None:
            return decode_completion(self._tokenizer, prompt_token_ids, token_ids)
        context = prompt_token_ids[-CONTEXT_TOKENS:]
        kept = [token for token in token_ids if token not in self._endings]
        before, whole = [await self._text_of(ids) for ids in (context, context + kept)]
        # Half a character at the end is left out, as by `complete_text`; it has at most three tokens.
        for _ in range(min(3, len(kept))):
            if whole.endswith(REPLACEMENT):
                kept.pop()
                whole = await self._text_of(context + kept)
        whole = whole.rstrip(REPLACEMENT) if kept else before
        if whole.startswith(before):
            return whole[len(before) :]
        return whole[len(before.rstrip(REPLACEMENT)) :]

    async def _text_of(self, token_ids: list[int]) -> str:
        return await self._tokenizing("/detokenize", {"tokens": token_ids}, read_text)

    async def generate(
        self,
        prompt_token_ids: list[int],
        sampling: Sampling,
        num_samples: int,
        request_id: str,
        first_index: int = 0,
    ) -> AsyncGenerator[Candidate, None]:
        """Yield candidates as they finish; closing the generator closes the connections of the rest."""
        self._check(prompt_token_ids, sampling)
        group = self._replicas.group(prompt_token_ids)
        draws = (
            self._one(prompt_token_ids, sampling, index, group)
            for index in range(first_index, first_index + num_samples)
        )
        async with aclosing(as_they_finish(draws)) as candidates:
            async for candidate in candidates:
                yield candidate

    async def _one(
        self,
        prompt_token_ids: list[int],
        sampling: Sampling,
        index: int,
        group: PromptGroup | None,
    ) -> Candidate:
        async def work(replica: Replica) -> GrowingCandidate:
            check_extensions(replica.url, replica.owner, sampling)
            body = completion_body(self._model, prompt_token_ids, sampling, index, stream=False)
            answer = await replica.ask("/completions", body)
            growing = GrowingCandidate(sampling, index)
            try:
                growing.check_whole(growing.add(answer))
            except WireError as error:
                raise _unusable(replica, error) from error
            growing.check_obeyed(replica.url)
            return growing

        return self._finished(await self._replicas.call(work, group)).candidate()

    async def stream(
        self, prompt_token_ids: list[int], sampling: Sampling, index: int, request_id: str
    ) -> AsyncGenerator[Partial, None]:
        """Yield each step that the server sends; steps that a slow reader missed are merged into one.

        If the server dies, the sample goes on at another one (:mod:`vbon.engine.continuation`).
        """
        self._check(prompt_token_ids, sampling)
        breaks = 0

        async def draw(token_ids: list[int], part: Sampling) -> AsyncGenerator[Partial, None]:
            nonlocal breaks
            try:
                async with aclosing(self._drawn(token_ids, part, index)) as partials:
                    async for partial in partials:
                        yield partial
            except BrokenOffError as broken:
                breaks += 1
                if breaks > self._options.continuations or not self.alive:
                    raise broken.error from broken
                raise

        async with aclosing(
            continued(draw, self.decode, prompt_token_ids, sampling, index)
        ) as partials:
            async for partial in partials:
                yield partial

    async def _drawn(
        self, prompt_token_ids: list[int], sampling: Sampling, index: int
    ) -> AsyncGenerator[Partial, None]:
        """The growing sample of one server.

        Raises:
            BrokenOffError: the server has died after it had sent tokens.
        """
        changed = asyncio.Event()
        current = [GrowingCandidate(sampling, index)]

        async def work(replica: Replica) -> GrowingCandidate:
            check_extensions(replica.url, replica.owner, sampling)
            growing = current[0] = GrowingCandidate(sampling, index)
            body = completion_body(self._model, prompt_token_ids, sampling, index, stream=True)
            await _read_events(replica, body, growing, changed)
            return growing

        # A task reads ahead, so that a slow reader does not get outdated steps from the socket's buffer.
        group = self._replicas.group(prompt_token_ids)
        reader = asyncio.create_task(self._replicas.call(work, group))
        reader.add_done_callback(lambda _: changed.set())
        seen = 0
        try:
            while True:
                await changed.wait()
                changed.clear()
                if reader.done():
                    break
                # The last step is yielded after the loop, once the server's token count has confirmed it.
                if len(current[0].token_ids) > seen and current[0].finish_reason is None:
                    seen = len(current[0].token_ids)
                    yield current[0].partial()
            try:
                last = reader.result()
            except EngineError as error:
                if len(current[0].token_ids) > seen and current[0].finish_reason is None:
                    yield current[0].partial()
                if self._broke_off(current[0], error):
                    raise BrokenOffError(error) from error
                raise
            yield self._finished(last).partial()
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    def _broke_off(self, growing: GrowingCandidate, error: EngineError) -> bool:
        """True if a server has failed in the middle of a sample that another one can go on with."""
        cause = error.__cause__
        died = isinstance(cause, ReplicaError) and (
            cause.kind == "down" or isinstance(cause.__cause__, ServerSaidError)
        )
        ids = growing.token_ids
        # Some servers tell the end in a message of its own.
        return died and bool(ids) and growing.finish_reason is None and ids[-1] not in self._endings

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
        self._check(ids, Sampling(max_tokens=1, priority=priority))

        async def work(replica: Replica) -> list[float]:
            answer = await replica.ask("/completions", scoring_body(self._model, ids, priority))
            try:
                return read_prompt_logprobs(answer, ids, len(prompt_token_ids))
            except WireError as error:
                raise _unusable(replica, error) from error

        return await self._replicas.call(work)

    @property
    def _model(self) -> str:
        assert self._replicas.model is not None
        return self._replicas.model

    def _finished(self, growing: GrowingCandidate) -> GrowingCandidate:
        if growing.ending is not None:
            self._endings.add(growing.ending)
        return growing

    def _check(self, token_ids: list[int], sampling: Sampling) -> None:
        self._replicas.check_started()
        self._check_known(token_ids)
        check_fits(self.info, token_ids, sampling)

    def _check_known(self, token_ids: list[int]) -> None:
        if UNKNOWN_TOKEN in token_ids:
            raise EngineError(
                f"{self.info.path} sends no token ids (`return_token_ids`), which are needed to continue or "
                "score a candidate"
            )

    async def _tokenizing(self, path: str, body: dict[str, Any], read: Callable[[Any], T]) -> T:
        """Ask a server's tokenizer; an error 404 names the setting that replaces it."""
        self._replicas.check_started()

        async def work(replica: Replica) -> T:
            answer = await replica.ask(path, {**body, "model": self._model}, root=True)
            try:
                return read(answer)
            except WireError as error:
                raise _unusable(replica, error) from error

        try:
            return await self._replicas.call(work)
        except EngineError as error:
            if "HTTP 404" in str(error):
                raise EngineError(
                    f"{error}; set engine.remote_tokenizer to a directory with the policy's tokenizer"
                ) from error
            raise


async def _read_events(
    replica: Replica, body: dict[str, Any], growing: GrowingCandidate, changed: asyncio.Event
) -> None:
    counted = None
    try:
        async with aclosing(replica.follow("/completions", body)) as events:
            async for event in events:
                count = growing.add(event)
                counted = counted if count is None else count
                changed.set()
        growing.check_whole(counted)
        growing.check_obeyed(replica.url)
    except WireError as error:
        raise _unusable(replica, error) from error
    except ReplicaError as error:
        error.again = not growing.token_ids
        raise


def _unusable(replica: Replica, error: WireError) -> ReplicaError:
    own_words = f"{replica.url} failed" if isinstance(error, ServerSaidError) else None
    return ReplicaError(f"{replica.url} {error}", "wrong", again=False, log_text=own_words)


def _load_tokenizer(options: RemoteOptions) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            options.tokenizer, trust_remote_code=options.trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"engine.remote_tokenizer {options.tokenizer} cannot be loaded: {error}"
        ) from error
