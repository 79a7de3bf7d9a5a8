"""The texts of single tokens add up to the whole, also where bytes are no characters."""

from __future__ import annotations

import random
from typing import Any

import pytest

from service.generation.token_texts import Tokens
from vbon.prompts import Prompt, completion_decoder

# Bytes of é, €, 😀 and a; two that no UTF-8 has, and beginnings that nothing continues.
BYTES = [*"é€😀".encode(), *b"abc ", 0xFF, 0xC3]
END = 256  # a special token without a text


class ByteTokenizer:
    """One token per byte."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return bytes(i for i in ids if i != END).decode("utf-8", "replace")


class ByteEngine:
    """Decodes as vLLM's engine does, with a tokenizer of bytes."""

    async def encode(self, prompt: Prompt) -> list[int]:
        return list((prompt.text or "").encode())

    async def decode(self, before: list[int], ids: list[int]) -> str:
        return completion_decoder(ByteTokenizer(), before)(ids)


@pytest.mark.parametrize("seed", range(40))
async def test_single_texts_add_up_to_the_whole(seed: int) -> None:
    source = random.Random(seed)
    ids = [source.choice([*BYTES, END]) for _ in range(source.randint(1, 60))]
    prompt = Prompt(text="so ")
    tokens = Tokens(ByteEngine(), prompt)  # type: ignore[arg-type]
    for count in sorted(source.sample(range(len(ids)), min(3, len(ids)))):
        await tokens.find(ids[:count])  # a stream finds them in parts
    await tokens.find(ids)
    listed = tokens.as_completion([0.0] * len(ids))
    whole = completion_decoder(ByteTokenizer(), list(b"so "))(ids)
    assert "".join(listed["tokens"]) == whole
    for offset, text in zip(listed["text_offset"], listed["tokens"], strict=True):
        assert whole[offset:].startswith(text)
