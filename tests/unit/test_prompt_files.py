"""Prompt files as texts for the clients; test_sample.py tests the lines themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from vbon.errors import DataError
from vbon.prompt_files import BUILT_IN_PROMPTS, read_prompt_texts, read_prompts


def test_prompt_files_in_both_forms(tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_text('{"prompt": "a"}\n\nplain text\n')
    assert read_prompt_texts(path, 10) == ["a", "plain text"]
    path.write_text('{"prmpt": "a"}\n')
    with pytest.raises(DataError, match="p:1"):
        read_prompt_texts(path, 10)
    with pytest.raises(DataError, match="does not exist"):
        read_prompt_texts(tmp_path / "none", 10)


def test_texts_keep_duplicates_and_prompts_drop_them(tmp_path: Path) -> None:
    """A load test sends a file as it is; training and sampling use each prompt once."""
    path = tmp_path / "p"
    path.write_text("b\na\nb\nc\n")
    assert read_prompt_texts(path, 3) == ["b", "a", "b"]
    assert [prompt.text for prompt in read_prompts(path)] == ["b", "a", "c"]


def test_without_a_file_the_built_in_prompts_are_used() -> None:
    assert read_prompt_texts(None, 2) == list(BUILT_IN_PROMPTS[:2])
    assert read_prompt_texts(None, 100) == list(BUILT_IN_PROMPTS)


def test_an_empty_file_and_a_chat_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_text("\n \n")
    for read in (read_prompts, lambda file: read_prompt_texts(file, 1)):
        with pytest.raises(DataError, match="contains no prompts"):
            read(path)
    path.write_text('a\n{"messages": [{"role": "user", "content": "hi"}]}\n')
    with pytest.raises(DataError, match=r"p:2 is a chat"):
        read_prompt_texts(path, 10)
    assert len(read_prompts(path)) == 2
