"""Streamed samples whose engine dies: whatever the moment, what comes in the end is what would have come."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vbon.engine.continuation import BrokenOffError, continued
from vbon.engine.protocol import UNKNOWN_TOKEN, Partial, Sampling
from vbon.errors import EngineDeadError
from vbon.prompts import decode_completion

# Tokens of bytes: some are half a character, and some letters of a stop string come in several ways.
PIECES = (b"a", b"b", b"ab", b"c", b"\xc3", b"\xa9", b"\xe2\x82", b"\xac", b"", b"ca")
EOS = len(PIECES)
PROMPT = [0, 1, 4, 5]


class Bytes:
    """A tokenizer of bytes, as far as decoding needs one."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        return b"".join(PIECES[i] for i in token_ids if i < EOS).decode("utf-8", "replace")


class Model:
    """An autoregressive model, whose next token depends on all tokens before it (and on a seed)."""

    def __init__(self, *, merges: int = 1) -> None:
        self.merges = merges

    def next(self, ids: Sequence[int], sampling: Sampling, salt: int = 0) -> tuple[int, float]:
        key = f"{list(ids)}{sampling.seed if sampling.temperature else ''}{salt}"
        source = random.Random(key)
        return source.choices(range(EOS + 1), [9] * EOS + [2])[0], -source.random()

    def whole(self, prompt: Sequence[int], sampling: Sampling, salt: int = 0) -> list[Partial]:
        """Every step of a sample, as vLLM's detokenizer and its stop check would have them."""
        ids: list[int] = []
        logprobs: list[float] = []
        held = max((len(stop) for stop in sampling.stop), default=1) - 1
        text, steps = "", []
        while True:
            token, logprob = self.next([*prompt, *ids], sampling, salt)
            if token == EOS and len(ids) < sampling.min_tokens:
                token = 0
            ids.append(token)
            logprobs.append(logprob)
            before, text = text, decode_completion(Bytes(), prompt, ids)
            finish: Any = None
            if token == EOS:
                finish = "stop"
            elif len(ids) == sampling.max_tokens:
                finish = "length"
            shown = text
            if len(ids) > sampling.min_tokens:
                for stop in sampling.stop:
                    at = text.find(stop, max(0, len(before) - len(stop) + 1))
                    if at >= 0:
                        shown, finish = text[:at], "stop"
                        break
            if finish is None:
                shown = text[: max(0, len(text) - held)]
            steps.append(Partial(0, shown, tuple(ids), finish, tuple(logprobs)))
            if finish is not None:
                return steps

    async def stream(
        self, prompt: list[int], sampling: Sampling, dies_after: int | None, salt: int = 0
    ) -> AsyncGenerator[Partial, None]:
        steps = self.whole(prompt, sampling, salt)
        if dies_after is not None:
            steps = steps[:dies_after]
        for at, step in enumerate(steps):
            if (at + 1) % self.merges and at + 1 < len(steps):
                continue  # a slow reader gets several steps at once
            yield step
        if dies_after is not None and (not steps or steps[-1].finish_reason is None):
            raise BrokenOffError(EngineDeadError("the replica has died"))


async def text_of(prompt: list[int], ids: list[int]) -> str:
    return decode_completion(Bytes(), prompt, ids)


async def joined(
    sampling: Sampling, deaths: Sequence[int], *, merges: int = 1, salts: Sequence[int] = ()
) -> list[Partial]:
    """The steps of a sample whose engines die after so many steps each."""
    model = Model(merges=merges)
    plan = list(deaths)
    salted = list(salts)

    def draw(ids: list[int], part: Sampling) -> AsyncGenerator[Partial, None]:
        after = plan.pop(0) if plan else None
        return model.stream(ids, part, after, salted.pop(0) if salted else 0)

    async with aclosing(continued(draw, text_of, PROMPT, sampling, 0)) as partials:
        return [one async for one in partials]


def check_growth(steps: Sequence[Partial]) -> None:
    for before, after in pairwise(steps):
        assert after.text.startswith(before.text)
        assert after.token_ids[: len(before.token_ids)] == before.token_ids
        assert before.finish_reason is None


samplings = st.builds(
    Sampling,
    max_tokens=st.integers(1, 24),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 60),
    stop=st.lists(st.sampled_from(["abc", "ca", "é", "bb", "€a", "aa"]), max_size=2).map(tuple),
    min_tokens=st.just(0),
).flatmap(
    lambda one: st.integers(0, one.max_tokens).map(lambda least: replace(one, min_tokens=least))
)


@given(samplings, st.lists(st.integers(1, 9), max_size=3), st.integers(1, 3))
def test_wherever_engines_die_the_sample_is_the_undisturbed_one(
    sampling: Sampling, deaths: list[int], merges: int
) -> None:
    """At temperature 0 the rest is drawn after what has come; with a seed all is drawn again."""
    [*_, expected] = Model().whole(PROMPT, sampling)
    steps = asyncio.run(joined(sampling, deaths, merges=merges))
    check_growth(steps)
    last = steps[-1]
    assert (last.text, last.token_ids, last.finish_reason, last.token_logprobs) == (
        expected.text,
        expected.token_ids,
        expected.finish_reason,
        expected.token_logprobs,
    )


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 8))
def test_without_a_seed_the_rest_follows_from_what_has_come(salt: int, death: int) -> None:
    """The second engine draws with another random state, as if it were the model's next choice."""
    sampling = Sampling(max_tokens=12)
    first = Model().whole(PROMPT, sampling, salt)[:death]
    [*_, last] = asyncio.run(joined(sampling, [death], salts=[salt, salt + 1]))
    if first[-1].finish_reason is not None:
        assert last == first[-1]
        return
    begun = first[-1].token_ids
    left = replace(sampling, max_tokens=12 - len(begun))
    [*_, rest] = Model().whole([*PROMPT, *begun], left, salt + 1)
    assert last.token_ids == begun + rest.token_ids
    assert last.token_logprobs == (first[-1].token_logprobs or ()) + (rest.token_logprobs or ())
    assert last.text == decode_completion(Bytes(), PROMPT, last.token_ids)
    assert (last.continued, last.extra_tokens) == (1, 0)


LONG = Sampling(max_tokens=12, seed=0, min_tokens=12)


async def test_tokens_that_are_decoded_again_are_counted() -> None:
    [*_, last] = await joined(LONG, [5, 3])
    assert (last.continued, last.extra_tokens, len(last.token_ids)) == (2, 5 + 3, 12)
    [*_, last] = await joined(replace(LONG, temperature=0), [5, 3])
    assert (last.continued, last.extra_tokens, len(last.token_ids)) == (2, 0, 12)


async def test_a_seeded_sample_that_comes_out_differently_ends_with_an_error() -> None:
    with pytest.raises(EngineDeadError, match=r"has died; .* it became another one"):
        await joined(LONG, [5], salts=[1, 2])


@pytest.mark.parametrize(
    "field", [{"frequency_penalty": 1}, {"presence_penalty": 1}, {"response_format": {"type": "json_object"}}]
)  # fmt: skip
async def test_parameters_that_look_back_are_drawn_again_or_refused(field: dict[str, Any]) -> None:
    looking_back: Any = replace(LONG, **field)
    [*_, last] = await joined(looking_back, [5])
    assert last.extra_tokens == 5
    [*_, last] = await joined(replace(looking_back, seed=None, temperature=0), [5])
    assert last.extra_tokens == 5
    with pytest.raises(EngineDeadError, match=f"{next(iter(field))} without a seed"):
        await joined(replace(looking_back, seed=None), [5])


@pytest.mark.parametrize("least", [0, 12])
async def test_a_sample_whose_stop_string_has_come_does_not_go_on_after_it(least: int) -> None:
    """It is the end, of which the server has not told yet, unless ``min_tokens`` forbids that."""
    prompt, sampling = [0, 2, 5, 0], Sampling(max_tokens=12, temperature=0, stop=("bc",))
    [*_, expected] = whole = Model().whole(prompt, replace(sampling, min_tokens=12))
    assert (whole[9].text[-2:], whole[10].text[-3:]) == ("ca", "cab")  # one character is held back

    async def draw(ids: list[int], part: Sampling) -> AsyncGenerator[Partial, None]:
        if len(ids) > len(prompt):
            yield Model().whole(ids, part)[-1]
            return
        # Its text is held back, as is all that may be the beginning of a stop string.
        yield replace(whole[10], text=whole[9].text)
        raise BrokenOffError(EngineDeadError("died"))

    asked = replace(sampling, min_tokens=least)
    partials = continued(draw, text_of, prompt, asked, 0)
    if least:
        [*_, last] = [one async for one in partials]
        assert last.text == expected.text
        return
    with pytest.raises(EngineDeadError, match="completes a stop string"):
        async for _ in partials:
            pass


@pytest.mark.parametrize("death", range(1, 11))
async def test_a_server_that_sends_no_token_for_the_end_loses_no_text(death: int) -> None:
    """Its last token has a text, and the end comes in a message of its own."""
    prompt, sampling = [0, 2, 5, 0], Sampling(max_tokens=24, temperature=0)

    async def draw(ids: list[int], part: Sampling) -> AsyncGenerator[Partial, None]:
        steps = Model().whole(ids, part)
        first = len(ids) == len(prompt)
        for step in steps[:death] if first else steps[:-1]:
            yield step
        if first:
            raise BrokenOffError(EngineDeadError("died"))
        *_, before, last = steps
        yield replace(before, text=last.text, finish_reason="stop")

    [*_, expected] = whole = Model().whole(prompt, sampling)
    assert (len(whole), expected.finish_reason) == (12, "stop")
    [*_, last] = [one async for one in continued(draw, text_of, prompt, sampling, 0)]
    assert last.token_ids == expected.token_ids[:-1]
    assert last.text == expected.text


async def test_what_several_replicas_have_died_of_is_not_begun_again_when_it_cannot_go_on() -> None:
    died = EngineDeadError("died")
    died.again = False

    async def draw(ids: list[int], part: Sampling) -> AsyncGenerator[Partial, None]:
        yield Partial(0, "a", (0,), None, (0.0,))
        raise BrokenOffError(died)

    sampling = replace(LONG, seed=None, presence_penalty=1)
    with pytest.raises(EngineDeadError, match="looks back") as failed:
        async for _ in continued(lambda *args: draw(*args), text_of, PROMPT, sampling, 0):
            pass
    assert not failed.value.again


async def test_a_sample_whose_end_was_not_told_yet_does_not_go_on_after_it() -> None:
    """Some servers tell the end in a message after the last token."""
    sampling = replace(LONG, temperature=0, seed=None, min_tokens=4)
    [*_, whole] = Model().whole(PROMPT, replace(sampling, min_tokens=12))
    for place in range(12):
        asked = replace(sampling, min_tokens=12, stop_token_ids=(whole.token_ids[place],))
        [*_, last] = await joined(asked, [place + 1])
        assert last.token_ids == whole.token_ids  # nothing ends it as early as that
    asked = replace(sampling, min_tokens=4, stop_token_ids=(whole.token_ids[4],))
    with pytest.raises(EngineDeadError, match="ends with one of stop_token_ids"):
        await joined(asked, [5])


async def test_without_token_ids_a_sample_cannot_go_on() -> None:
    async def draw(ids: list[int], part: Sampling) -> AsyncGenerator[Partial, None]:
        yield Partial(0, "a", (UNKNOWN_TOKEN,), None, (0.0,))
        raise BrokenOffError(EngineDeadError("died"))

    with pytest.raises(EngineDeadError, match="no token ids"):
        async for _ in continued(lambda *args: draw(*args), text_of, PROMPT, LONG, 0):
            pass


async def test_the_answer_and_the_metrics_tell_that_a_sample_went_on() -> None:
    from tests.unit.fakes import make_runtime, serving
    from vbon.engine.fake import FakeEngine

    class GoneOn(FakeEngine):
        async def stream(
            self, ids: list[int], sampling: Sampling, index: int, name: str
        ) -> AsyncGenerator[Partial, None]:
            yield Partial(index, " good", (0,), None, (-1.0,))
            yield Partial(index, " good bad", (0, 1), "stop", (-1.0, -1.0), 2, 5)

    engine = GoneOn()
    async with serving(make_runtime(engines={"ref": engine, "vbon": engine})) as (_, client):
        body = {"prompt": "x", "max_tokens": 8, "stream": True}
        text = (await client.post("/generate?mode=vbon", json=body)).text
        answer = json.loads(text.split("event: answer\ndata: ")[1].split("\n")[0])
        assert answer["usage"] == {"prompt_tokens": 1, "generated_tokens": 7, "returned_tokens": 2}
        assert answer["details"]["continued"].startswith("2 times a replica died")
        assert "their rests were drawn after" in answer["details"]["continued"]
        page = (await client.get("/metrics")).text
        assert 'vbon:samples_continued_total{mode="vbon"} 2.0' in page
        assert 'vbon:generation_tokens_total{mode="vbon"} 7.0' in page
