"""Encoding of prompts with a real tokenizer, and with chat templates that fail, hang or ask for too much."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

pytest.importorskip("transformers")

from vbon.engine import encoder as encoding
from vbon.engine.encoder import QUICK_CHARACTERS, PromptEncoder
from vbon.errors import InvalidInputError, PromptTooLongError
from vbon.prompts import Message, Prompt, encode_prompt

TEMPLATE = (
    "{{ bos_token }}{{ mood }}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = Prompt(messages=(Message(role="user", content="a caf\u00e9"),))
CONTEXT = 4000


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A byte-level BPE tokenizer that adds a token at the start, as Llama's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(["the film was a film that the film was"], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    found = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    found.chat_template = TEMPLATE
    return found


@asynccontextmanager
async def encoder(
    tokenizer: Any, template: str | None = TEMPLATE, limit_s: float = 20.0
) -> AsyncGenerator[PromptEncoder, None]:
    tokenizer.chat_template = template
    found = PromptEncoder(tokenizer, most_tokens=CONTEXT, limit_s=limit_s)
    try:
        await found.start()
        yield found
    finally:
        await found.close()
        tokenizer.chat_template = TEMPLATE


FAULTY = {
    "zero": "{{ 1 / 0 }}",
    "types": "{{ messages + 1 }}",
    "recursion": "{{ m() }}",
    "memory": "{{ 'a' * 10**11 }}",
    "no such": "{{ messages[0].nothing.more }}",
    "own words": "{{ raise_exception('two systems') }}",
    "slow": "{% for i in range(3000) %}{% for j in range(100) %}{% endfor %}{% endfor %}",
}
SOURCE = (
    "{% macro m() %}{{ m() }}{% endmacro %}"
    + "".join(
        f"{{% if messages[0].content == '{name}' %}}{fault}{{% endif %}}"
        for name, fault in FAULTY.items()
    )
    + TEMPLATE
)


@pytest.fixture(scope="module")
async def shared(tokenizer: Any) -> AsyncGenerator[PromptEncoder, None]:
    """An encoder with the template ``SOURCE``, for tests that leave its process in order."""
    async with encoder(tokenizer, SOURCE) as found:
        yield found


def prompts() -> Iterator[Prompt]:
    for text in ("the film", " a\n\n\t", "caf\u00e9 \u6f22\u5b57 \U0001f600", "<s></s> x </s>"):
        yield Prompt(text=text)
        yield Prompt(text=text * (QUICK_CHARACTERS // len(text) + 1))
        yield Prompt(text=text * (QUICK_CHARACTERS // len(text) + 1), special_tokens=False)
        yield Prompt(messages=(Message(role="system", content=text), *CHAT.messages))
        yield Prompt(messages=CHAT.messages, special_tokens=True, tools=({"name": text},))
        yield Prompt(messages=CHAT.messages, template_kwargs={"mood": text})


async def test_the_process_encodes_exactly_as_the_tokenizer(
    tokenizer: Any, shared: PromptEncoder
) -> None:
    tokenizer.chat_template = SOURCE
    quick = {shared.is_quick(prompt) for prompt in prompts()}
    for prompt in prompts():
        expected = encode_prompt(tokenizer, prompt)
        if len(expected) <= CONTEXT:
            assert await shared.encode(prompt) == expected
        else:
            with pytest.raises(PromptTooLongError, match=f"has {len(expected)} tokens"):
                await shared.encode(prompt)
    assert quick == {True, False}


async def test_what_cannot_fit_is_refused_before_it_is_read(
    tokenizer: Any, shared: PromptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = max(tokenizer.get_vocab(), key=len)
    # The bound may be up to twice too high, since the vocabulary writes some bytes as two.
    assert CONTEXT * len(longest) <= shared.most_bytes <= 2 * CONTEXT * len(longest)
    # A text of the longest token alone fits, however it is written: the bound refuses nothing that fits.
    text = longest.replace("\u0120", " ") * (CONTEXT - 1)
    assert len(await shared.encode(Prompt(text=text))) <= CONTEXT
    monkeypatch.setattr(shared, "_ask", None)
    for over in ("x" * (shared.most_bytes + 1), "\u00e9" * (shared.most_bytes // 2 + 1)):
        with pytest.raises(PromptTooLongError, match="bytes"):
            await shared.encode(Prompt(text=over))
        with pytest.raises(PromptTooLongError, match="bytes"):
            await shared.encode(Prompt(messages=(Message(role="user", content=over),)))


async def test_any_failure_of_a_template_is_a_refusal(shared: PromptEncoder) -> None:
    for name in FAULTY.keys() - {"slow"}:
        with pytest.raises(InvalidInputError, match="chat template") as refused:
            await shared.encode(Prompt(messages=(Message(role="user", content=name),)))
        assert refused.value.field == "messages"
        assert name != "own words" or str(refused.value).endswith("messages: two systems")
    assert len(await shared.encode(CHAT)) > 4


async def test_a_template_that_cannot_be_read_is_named(tokenizer: Any) -> None:
    async with encoder(tokenizer, "{% for %}") as found:
        with pytest.raises(InvalidInputError, match="TemplateSyntaxError"):
            await found.encode(CHAT)
        assert await found.encode(Prompt(text="the")) == tokenizer("the")["input_ids"]


LOOPS = "{% for i in range(9999) %}{% for j in range(9999) %}{% set x = i * j %}{% endfor %}{% endfor %}"


async def test_a_template_that_hangs_is_ended_and_delays_nobody(tokenizer: Any) -> None:
    hanging = "{% if messages[0].content == 'hang' %}" + LOOPS + "{% endif %}" + TEMPLATE
    async with encoder(tokenizer, hanging, limit_s=0.3) as found:
        hang = Prompt(messages=(Message(role="user", content="hang"),))
        asking = asyncio.create_task(found.encode(hang))
        turns = 0
        while not asking.done():
            await asyncio.sleep(0.001)
            turns += 1
        with pytest.raises(InvalidInputError, match=r"more than 0.3 s .*engine.encode_timeout_s"):
            await asking
        assert turns > 5
        assert await found.encode(CHAT) == encode_prompt(tokenizer, CHAT)


async def test_a_request_that_is_cancelled_leaves_the_process_in_order(
    tokenizer: Any, shared: PromptEncoder
) -> None:
    first = asyncio.create_task(
        shared.encode(Prompt(messages=(Message(role="user", content="slow"),)))
    )
    await asyncio.sleep(0.02)
    first.cancel()
    other = Prompt(messages=(Message(role="user", content="another"),))
    tokenizer.chat_template = SOURCE
    assert await shared.encode(other) == encode_prompt(tokenizer, other)


async def test_nothing_is_left_of_it(tokenizer: Any) -> None:
    async with encoder(tokenizer) as found:
        assert found._process is not None
        pid = found._process.pid
        os.kill(pid, 9)  # its end is noticed only by the next job
        assert await found.encode(CHAT) == encode_prompt(tokenizer, CHAT)  # by another process
        again = found._process.pid
    for one in (pid, again):
        with pytest.raises(ProcessLookupError):
            os.kill(one, 0)


async def test_a_tokenizer_that_does_more_than_its_backend_is_used_itself(tokenizer: Any) -> None:
    class Shouting(type(tokenizer)):  # type: ignore[misc]
        def __call__(self, text: str, **options: Any) -> Any:
            return super().__call__(text.upper(), **options)

    loud = Shouting(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>")
    found = PromptEncoder(loud, most_tokens=CONTEXT, limit_s=5)
    long = Prompt(text="the film " * 300)
    assert await found.encode(long) == encode_prompt(loud, long)
    assert found._process is None
    await found.close()


async def test_a_prompt_that_ends_the_process_is_refused(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with encoder(tokenizer, None) as found:
        begun: list[int] = []

        async def dying(process: asyncio.subprocess.Process, _: bytes) -> bytes:
            begun.append(process.pid)
            process.kill()
            raise EOFError

        monkeypatch.setattr(encoding, "_exchange", dying)
        with pytest.raises(InvalidInputError):
            await found.encode(Prompt(text="the film " * 300))
        monkeypatch.undo()
        assert len(set(begun)) == 2
        long = Prompt(text="the film " * 300)
        assert await found.encode(long) == encode_prompt(tokenizer, long)
