"""Texts that the token limit cuts in the middle of a character end before it, wherever they come from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from vbon.engine.protocol import Sampling
from vbon.engine.remote.engine import RemoteEngine
from vbon.engine.remote.wire import GrowingCandidate
from vbon.prompts import complete_text, completion_decoder, decode_completion

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

EMOJI = "😀".encode()
# The bytes of each token; as in real vocabularies, one holds a space and half an emoji.
PIECES = [b"a", b" ", b" " + EMOJI[:2], *(bytes([byte]) for byte in EMOJI), "�".encode(), b""]
SPECIAL = len(PIECES) - 1


def byte_level() -> Any:
    """A tokenizer like GPT-2's, whose tokens are pieces of UTF-8."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    names = bytes_to_unicode()
    vocabulary = {"".join(names[b] for b in piece): i for i, piece in enumerate(PIECES[:-1])}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="a"))
    plain.decoder = tokenizers.decoders.ByteLevel()
    plain.add_special_tokens(["<eos>"])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>")


def byte_fallback() -> Any:
    """A tokenizer like Llama 2's, with a token for each byte that no piece covers."""
    names = ["a", "▁", "▁a", *(f"<0x{byte:02X}>" for byte in EMOJI), "�"]
    plain = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="a")
    )
    decoders = tokenizers.decoders
    plain.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    plain.add_special_tokens(["<eos>"])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>")


TOKENIZERS = {"byte-level": byte_level(), "byte-fallback": byte_fallback()}


def streamed(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """The text as vLLM streams it: with the same decoder of the tokenizers library."""
    stream = tokenizers.decoders.DecodeStream(ids=list(prompt), skip_special_tokens=True)
    return "".join(stream.step(tokenizer._tokenizer, token) or "" for token in ids)


def sequences(longest: int) -> Iterator[tuple[int, ...]]:
    for length in range(1, longest + 1):
        yield from itertools.product(range(len(PIECES)), repeat=length)


def test_a_text_ends_with_its_last_complete_character() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    for ids in sequences(4):
        ends = [
            b"".join(PIECES[i] for i in ids[:end]).decode("utf-8", "replace")
            for end in range(len(ids) + 1)
        ]
        expected = [text for text in ends if not text.endswith("�")][-1]
        assert complete_text(tokenizer, list(ids)) == expected, ids


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_whole_and_streamed_texts_are_the_same(kind: str) -> None:
    tokenizer, prompt = TOKENIZERS[kind], [0, 1]
    decode = completion_decoder(tokenizer, prompt)
    for ids in sequences(4):
        assert decode(ids) == streamed(tokenizer, prompt, ids), ids


@pytest.mark.parametrize("tokens", range(1, 9))
def test_an_emoji_appears_with_its_last_byte(tokens: int) -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = [0, 2, 5, 6, 2, 5, 6, 0][:tokens]
    expected = "a" + " 😀" * ((tokens - 1) // 3) + "a" * (tokens == 8)
    assert decode_completion(tokenizer, [0], ids) == expected


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_texts_of_single_tokens_add_up_to_the_whole(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = [0, 3, 4, 5, 6, 0, 1, 3, 4, 5, 6, 3, 4]
    parts = [
        decode_completion(tokenizer, [0, *ids[:place]], [token]) for place, token in enumerate(ids)
    ]
    assert "".join(parts) == decode_completion(tokenizer, [0], ids) == "a😀a 😀"


def test_a_replacement_character_of_the_prompt_is_not_part_of_the_text() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    assert decode_completion(tokenizer, [0, 7], [0, 1]) == "a "
    assert decode_completion(tokenizer, [0, 7], []) == ""
    assert decode_completion(tokenizer, [0, 3, 4], [5, 6, 0]) == "😀a"


def test_a_long_run_of_half_characters_takes_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    class Counting:
        def decode(self, ids: list[int], **options: Any) -> str:
            decoded.append(len(ids))
            return str(TOKENIZERS["byte-level"].decode(ids, **options))

    assert complete_text(Counting(), [0] + [3] * 1000) == "a"
    assert sum(decoded) < 7000


@pytest.mark.train
def test_a_sample_in_training_is_scored_without_half_a_character() -> None:
    torch = pytest.importorskip("torch")
    from training.rollouts.rollout import rollout_of

    tokenizer = TOKENIZERS["byte-level"]
    responses = [[0, 2, 5], [2, 5, 6], [3], [0, 3, SPECIAL]]
    rollout = rollout_of([[0, 1]] * 4, responses, tokenizer, torch.device("cpu"))
    assert rollout.texts(tokenizer) == ["a", " 😀", "", "a"]


async def test_the_text_from_a_servers_detokenizer_ends_in_the_same_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer, engine = TOKENIZERS["byte-level"], RemoteEngine("http://host/v1")

    async def text_of(token_ids: list[int]) -> str:
        return str(tokenizer.decode(token_ids, skip_special_tokens=True))

    monkeypatch.setattr(engine, "_text_of", text_of)
    for prompt in ([0, 1], [0, 3, 4], [0, 7]):
        for ids in sequences(3):
            expected = decode_completion(tokenizer, prompt, ids)
            assert await engine.decode(prompt, list(ids)) == expected, (prompt, ids)
    await engine.stop()


def test_a_server_that_sends_half_a_character_as_a_replacement_character() -> None:
    growing = GrowingCandidate(Sampling(max_tokens=3), 0)
    texts = []
    for text, reason in (("a", None), ("�", None), ("�", "length")):
        logprobs = {"token_logprobs": [-1.0]}
        growing.add({"choices": [{"text": text, "logprobs": logprobs, "finish_reason": reason}]})
        texts.append(growing.partial().text)
    assert texts == ["a", "a", "a"]
    assert growing.candidate().text == "a"
    assert len(growing.candidate().token_ids) == 3
