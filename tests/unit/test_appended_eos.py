"""Tokenizers that append EOS to every text: prompts are encoded without it, everywhere."""

from __future__ import annotations

import logging
from typing import Any

import pytest

pytest.importorskip("transformers")

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.unit.openai_imitation import Server, imitation
from vbon.engine.encoder import PromptEncoder
from vbon.engine.remote.engine import RemoteEngine
from vbon.prompt_files import encode_prompts
from vbon.prompts import Prompt, appended_ending, encode_prompt

WORDS = ["<unk>", "<s>", "</s>", "<sep>", "Example", "the", "film", "was"]
BODY = [5, 6, 7]
TEXT = "the film was"
# The template of each tokenizer, and what a prompt must become.
TEMPLATES: dict[str, tuple[str, list[int]]] = {
    "nothing": ("$A", BODY),
    "begin": ("<s> $A", [1, *BODY]),
    "end": ("$A </s>", BODY),
    "both": ("<s> $A </s>", [1, *BODY]),
    "separator and end": ("<s> $A <sep> </s>", [1, *BODY]),
    "two ends": ("$A </s> </s>", BODY),
    "another token": ("$A <sep>", [*BODY, 3]),
}


def tokenizer_of(template: str, eos: str | None = "</s>") -> Any:
    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(word, WORDS.index(word)) for word in WORDS[1:4]]
    )
    plain.add_special_tokens(WORDS[:4])
    return PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token=eos)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_has_no_appended_eos(name: str, caplog: pytest.LogCaptureFixture) -> None:
    template, expected = TEMPLATES[name]
    tokenizer = tokenizer_of(template)
    prompt = Prompt(text=TEXT)
    with caplog.at_level(logging.WARNING):
        assert encode_prompt(tokenizer, prompt) == expected
        assert encode_prompts(tokenizer, [prompt, prompt]) == [(prompt, expected)] * 2
    assert caplog.text.count("appends EOS") == ("</s>" in template)  # said once


async def test_long_prompts_have_none_either() -> None:
    encoder = PromptEncoder(tokenizer_of("<s> $A </s>"), most_tokens=2000, limit_s=20)
    assert await encoder.encode(Prompt(text=TEXT)) == [1, *BODY]
    long = Prompt(text=" ".join([TEXT] * 200))
    assert not encoder.is_quick(long)  # it goes to the process
    assert await encoder.encode(long) == [1, *BODY * 200]
    await encoder.close()


def test_an_eos_that_the_text_itself_has_stays() -> None:
    assert encode_prompt(tokenizer_of("<s> $A </s>"), Prompt(text=f"{TEXT} </s>")) == [1, *BODY, 2]
    assert encode_prompt(tokenizer_of("<s> $A"), Prompt(text=f"{TEXT} </s>")) == [1, *BODY, 2]


def test_special_tokens_that_are_not_wanted_are_not_looked_for() -> None:
    bare = Prompt(text=f"{TEXT} </s>", special_tokens=False)
    assert encode_prompt(tokenizer_of("<s> $A </s>"), bare) == [*BODY, 2]


def test_a_chat_with_special_tokens_has_no_appended_eos_either() -> None:
    tokenizer = tokenizer_of("<s> $A </s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    messages: Any = ({"role": "user", "content": TEXT},)
    assert encode_prompt(tokenizer, Prompt(messages=messages)) == BODY
    assert encode_prompt(tokenizer, Prompt(messages=messages, special_tokens=True)) == [1, *BODY]


def test_a_tokenizer_without_eos_appends_none() -> None:
    assert appended_ending(tokenizer_of("$A </s>", eos=None)) == 0


@pytest.mark.parametrize("appends", [False, True])
async def test_a_server_that_appends_a_token_is_warned_of(
    appends: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if appends:
        from starlette.requests import Request
        from starlette.responses import JSONResponse

        async def tokenize(self: Server, request: Request) -> JSONResponse:
            body = await request.json()
            ids = [7, 8] + [1] * body["add_special_tokens"]
            return JSONResponse({"tokens": ids, "count": len(ids)})

        monkeypatch.setattr(Server, "tokenize", tokenize)
    async with imitation() as server:
        engine = RemoteEngine(server.url)
        await engine.start()
        await engine.stop()
    assert ("appends token 1 to every text" in caplog.text) == appends
