"""Streamed samples that go on at another engine of the same model when the one that draws them dies.

What another engine can still know decides how:

- **With a seed**, the sample is drawn anew from its beginning. The tokens that have been seen must come
  again, and the stream goes on after them, so that the answer is the one that its seed gives. If others
  come, it ends with an error. At temperature 0 this is also done for parameters that look back at a
  sample's beginning (:data:`LOOKING_BACK`).
- **Otherwise** the tokens so far become part of the prompt, and the rest is drawn after them. Its
  distribution is that of a sample drawn in one go, and the log-probabilities join, since each one is given
  all tokens before it. With parameters that look back the sample ends with an error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from vbon.engine.protocol import UNKNOWN_TOKEN, Partial, Sampling
from vbon.errors import EngineDeadError, EngineError

# Parameters whose effect depends on where a sample begins: what an engine continues is a prompt to it.
LOOKING_BACK = ("response_format", "frequency_penalty", "presence_penalty")

# Tokens after which the bytes before them do not matter to a text: a character has at most four.
_SETTLING_TOKENS = 4

# Streams a sample of these parameters that continues these token ids.
Draw = Callable[[list[int], Sampling], AsyncGenerator[Partial, None]]
# The text of token ids (the second list) that continue a prompt (the first).
Decode = Callable[[list[int], list[int]], Awaitable[str]]


class BrokenOffError(Exception):
    """The engine that draws a sample has died after tokens of it had come, and another one may go on.

    Attributes:
        error: the failure, for a caller whose sample cannot go on.
    """

    def __init__(self, error: EngineError) -> None:
        super().__init__(str(error))
        self.error = error


def draws_again(sampling: Sampling) -> bool:
    """True if a sample that goes on elsewhere is drawn again from its beginning."""
    if sampling.temperature == 0:
        return bool(_looking_back(sampling))
    return sampling.seed is not None


def _looking_back(sampling: Sampling) -> list[str]:
    return [name for name in LOOKING_BACK if name in sampling.steering]


async def continued(
    draw: Draw, decode: Decode, prompt_token_ids: list[int], sampling: Sampling, index: int
) -> AsyncGenerator[Partial, None]:
    """Yield a sample while it grows, wherever it is drawn.

    Args:
        draw: streams from an engine that lives; raises :class:`BrokenOffError` if it dies after the first
            token and the sample may go on. Before the first token it begins again elsewhere by itself.

    Raises:
        EngineError: the sample cannot go on.
    """
    seen = Partial(index, "", (), None, () if sampling.logprobs else None)
    part: _Part = _Whole(prompt_token_ids, sampling)
    breaks = decoded = 0
    while True:
        try:
            async with aclosing(draw(part.token_ids, part.sampling)) as partials:
                async for partial in partials:
                    joined = await part.joined(partial)
                    if joined is None:
                        continue
                    if breaks:
                        extra = decoded + part.decoded - len(joined.token_ids)
                        joined = replace(joined, continued=breaks, extra_tokens=extra)
                    seen = joined
                    yield joined
                    if joined.finish_reason is not None:
                        return
            return
        except BrokenOffError as broken:
            breaks += 1
            decoded += part.decoded
            if UNKNOWN_TOKEN in seen.token_ids:
                raise _cannot_go_on(broken.error, "its server sends no token ids") from broken
            part = await _next_part(prompt_token_ids, sampling, seen, broken.error, decode)


async def _next_part(
    prompt_token_ids: list[int],
    sampling: Sampling,
    seen: Partial,
    error: EngineError,
    decode: Decode,
) -> _Part:
    looks_back = _looking_back(sampling)
    if draws_again(sampling):
        return _Again(prompt_token_ids, sampling, seen, error)
    if looks_back:
        why = f"{looks_back[0]} without a seed looks back at its beginning"
        raise _cannot_go_on(error, why) from error
    count = len(seen.token_ids)
    if count > sampling.min_tokens and seen.token_ids[-1] in sampling.stop_token_ids:
        raise _cannot_go_on(
            error, "it ends with one of stop_token_ids, but has no known end"
        ) from error
    if count >= sampling.max_tokens:
        raise _cannot_go_on(error, "it has max_tokens tokens, but no known end") from error
    # An engine that looks for stop strings holds back what may be the beginning of one.
    text = await decode(prompt_token_ids, list(seen.token_ids))
    if not text.startswith(seen.text):
        raise _cannot_go_on(error, "its tokens have another text there") from error
    if count > sampling.min_tokens and any(stop in text for stop in sampling.stop):
        before = await decode(prompt_token_ids, list(seen.token_ids[:-1]))
        if _completed(sampling.stop, before, text) is not None:
            why = "its last token completes a stop string, but it has no known end"
            raise _cannot_go_on(error, why) from error
    return _Rest(prompt_token_ids, sampling, seen, text, decode)


def _cannot_go_on(error: EngineError, why: str) -> EngineError:
    """The failure, with the reason for which the sample did not go on at another engine."""
    told = f"; the sample cannot go on at another replica: {why}"
    found = type(error)(f"{error}{told}")
    found.log_text = None if error.log_text is None else f"{error.log_text}{told}"
    if isinstance(found, EngineDeadError) and isinstance(error, EngineDeadError):
        found.again = error.again
    return found


class _Part(ABC):
    """The part of a sample that one engine draws.

    Attributes:
        token_ids: what it continues.
        sampling: its parameters.
        decoded: the number of tokens that have come from this engine.
    """

    def __init__(self, token_ids: list[int], sampling: Sampling) -> None:
        self.token_ids, self.sampling = token_ids, sampling
        self.decoded = 0

    @abstractmethod
    async def joined(self, partial: Partial) -> Partial | None:
        """The whole sample, now that this part is so long; ``None`` if that has nothing new."""


class _Whole(_Part):
    """A sample from its beginning."""

    async def joined(self, partial: Partial) -> Partial:
        """The part itself."""
        self.decoded = len(partial.token_ids)
        return partial


class _Again(_Part):
    """A sample that is drawn again, of which a beginning has been seen."""

    def __init__(
        self, token_ids: list[int], sampling: Sampling, seen: Partial, error: EngineError
    ) -> None:
        super().__init__(token_ids, sampling)
        self._seen, self._error = seen, error

    async def joined(self, partial: Partial) -> Partial | None:
        """The part itself, once it is longer than what has been seen.

        Raises:
            EngineError: it is not the same sample.
        """
        self.decoded = len(partial.token_ids)
        seen = self._seen
        count = min(len(seen.token_ids), len(partial.token_ids))
        ended = partial.finish_reason is not None
        if (
            partial.token_ids[:count] != seen.token_ids[:count]
            or (ended and count < len(seen.token_ids))
            or (count == len(seen.token_ids) and not partial.text.startswith(seen.text))
        ):
            raise _cannot_go_on(
                self._error, "drawn again from its beginning, it became another one"
            )
        if len(partial.token_ids) <= len(seen.token_ids) and not ended:
            return None
        if partial.token_logprobs is None or seen.token_logprobs is None:
            return partial
        # Those that have been told stay, though another engine may differ in their last digits.
        logprobs = seen.token_logprobs + partial.token_logprobs[count:]
        return replace(partial, token_logprobs=logprobs)


class _Rest(_Part):
    """The rest of a sample, drawn after the tokens that have been seen.

    Stop strings are looked for here, as vLLM does, because one may have begun in what has been seen.

    Args:
        text: of the tokens that have been seen.
    """

    def __init__(
        self,
        prompt_token_ids: list[int],
        sampling: Sampling,
        seen: Partial,
        text: str,
        decode: Decode,
    ) -> None:
        count = len(seen.token_ids)
        super().__init__(
            [*prompt_token_ids, *seen.token_ids],
            replace(
                sampling,
                max_tokens=sampling.max_tokens - count,
                min_tokens=max(0, sampling.min_tokens - count),
                stop=(),
            ),
        )
        self._prompt_token_ids, self._seen, self._decode = prompt_token_ids, seen, decode
        self._stop = sampling.stop
        self._held = max((len(stop) for stop in sampling.stop), default=1) - 1
        self._tokens, self._text = 0, text
        # The whole text, and that of this part, once they are known to grow alike.
        self._settled: tuple[str, int] | None = None

    async def joined(self, partial: Partial) -> Partial:
        """The tokens that had been seen, with this part after them."""
        seen, count = self._seen, len(partial.token_ids)
        self.decoded = count
        text, finish_reason = await self._whole_text(partial), partial.finish_reason
        if _completed(self._stop, self._text, text) is not None:
            end = await self._first_end(partial, text)
            if end is not None:
                (count, text), finish_reason = end, "stop"
        self._tokens, self._text = count, text
        if finish_reason is None:
            text = text[: max(len(seen.text), len(text) - self._held)]
        logprobs = None
        if seen.token_logprobs is not None and partial.token_logprobs is not None:
            logprobs = seen.token_logprobs + partial.token_logprobs[:count]
        token_ids = seen.token_ids + partial.token_ids[:count]
        return Partial(seen.index, text, token_ids, finish_reason, logprobs)

    async def _whole_text(self, partial: Partial) -> str:
        """The text of the whole sample so far.

        The engine does not know how the text before this part ends: perhaps with some bytes of a character.
        A few tokens later that no longer matters.
        """
        if self._settled is not None:
            text, length = self._settled
            return text + partial.text[length:]
        text = await self._text_of(partial.token_ids)
        if partial.finish_reason == "stop" and not self._last_has_text(partial, text):
            text = await self._text_of(partial.token_ids[:-1])
        if len(partial.token_ids) >= _SETTLING_TOKENS:
            self._settled = text, len(partial.text)
        return text

    def _last_has_text(self, partial: Partial, whole: str) -> bool:
        """True if the last token of a part that has ended has a text, as where no token tells the end."""
        ids = partial.token_ids
        if not ids or ids[-1] in self.sampling.stop_token_ids:
            return False
        return bool(partial.text) and whole.endswith(partial.text)

    async def _text_of(self, token_ids: tuple[int, ...]) -> str:
        return await self._decode(self._prompt_token_ids, [*self._seen.token_ids, *token_ids])

    async def _first_end(self, partial: Partial, whole: str) -> tuple[int, str] | None:
        """The tokens of this part up to the one that completes a stop string, and the text before that."""
        text = self._text
        for count in range(self._tokens + 1, len(partial.token_ids) + 1):
            longer = whole
            if count < len(partial.token_ids):
                longer = await self._text_of(partial.token_ids[:count])
            begin = _completed(self._stop, text, longer)
            if begin is not None and count > self.sampling.min_tokens:
                return count, longer[:begin]
            text = longer
        return None


def _completed(stops: Sequence[str], before: str, now: str) -> int | None:
    """The place where a stop string begins that what is new in a text completes, if one does."""
    for stop in stops:
        begin = now.find(stop, max(0, len(before) - len(stop) + 1))
        if begin >= 0:
            return begin
    return None
