"""Building the sandbox: finished parts are kept, and unusable input is reported before training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

from training.configs import SandboxConfig
from training.sandbox import build
from training.sandbox.build import build_sandbox
from training.sandbox.labelled import read_labelled
from vbon.errors import DataError

PARTS = ("policy", "reward", "gold")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts that were made; each a directory with the seed in a file instead of a model."""
    names: list[str] = []

    def parts(config: SandboxConfig, _: object) -> list[tuple[str, str, Callable[[Path], Any]]]:
        def maker(name: str) -> Callable[[Path], dict[str, float]]:
            def make(directory: Path) -> dict[str, float]:
                (directory / "seed").write_text(str(config.seed))
                names.append(name)
                return {"parameters": 1}

            return make

        return [(name, "reward", maker(name)) for name in PARTS]

    monkeypatch.setattr(build, "model_parts", parts)
    monkeypatch.setattr(build, "_is_intact", lambda path, kind: (path / "seed").exists())
    return names


def configured(out: Path, **changes: object) -> SandboxConfig:
    values: dict[str, object] = {"num_reviews": 1000, "train_prompts": 3, "heldout_prompts": 3}
    return SandboxConfig(out=out, **{**values, **changes})  # type: ignore[arg-type]


def content(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"corpus": ["misspelt=1"]}, "misspelt does not exist"),
        ({"train_prompts": 100_000}, "ask for fewer prompts"),
    ],
)
def test_what_cannot_be_made_does_not_cost_what_is_there(
    made: list[str], tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    out = tmp_path / "sandbox"
    build_sandbox(configured(out))
    before = content(out)
    with pytest.raises(DataError, match=words):
        build_sandbox(configured(out, replace=True, **changes))
    assert content(out) == before


def test_a_replacement_that_was_killed_takes_no_old_part_for_a_new_one(
    made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "sandbox"
    build_sandbox(configured(out))
    other = configured(out, seed=1, replace=True)

    def killed(path: Path) -> None:
        if path.name == "reward":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(build, "recover_directory", killed)
        with pytest.raises(KeyboardInterrupt):
            build_sandbox(other)
    assert [(out / part / "seed").read_text() for part in PARTS] == ["1", "0", "0"]
    build_sandbox(other)
    assert [(out / part / "seed").read_text() for part in PARTS] == ["1", "1", "1"]
    assert made == [*PARTS, *PARTS]  # none twice
    assert json.loads((out / "sandbox.json").read_text())["config"]["seed"] == 1


def test_texts_kept_aside_of_one_label_are_refused_before_training(
    made: list[str], tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    rare = np.random.default_rng([0, 1]).permutation(200)[-1]  # the last of those trained on
    rows = [{"text": f"word{i} another{i}", "label": int(i == rare)} for i in range(200)]
    corpus.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(DataError, match=r"20 texts held out .* all have label 0; add texts of"):
        build_sandbox(configured(tmp_path / "sandbox", corpus=[str(corpus)]))
    assert made == []
    assert not (tmp_path / "sandbox").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "caf\\ud83d", "label": 1}', "half a character"),
        ("[" * 200_000, "not a JSON object"),
    ],
)
def test_a_damaged_line_of_a_corpus_is_named(tmp_path: Path, line: str, words: str) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "ok", "label": 0}\n' + line + "\n")
    with pytest.raises(DataError, match=rf"corpus\.jsonl:2 .*{words}"):
        read_labelled([str(corpus)], None)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("0,", "corpus.csv:3: label '' is neither"),
        ("just a text", "corpus.csv:3 has fewer columns"),
        ('1,"' + "x" * 200_000, "corpus.csv, after line 2: unexpected end of data"),
    ],
)
def test_a_damaged_row_of_a_table_is_named(tmp_path: Path, row: str, words: str) -> None:
    corpus = tmp_path / "corpus.csv"
    corpus.write_text(f"text,label\nok,1\n{row}\n")
    with pytest.raises(DataError, match=words):
        read_labelled([str(corpus)], None)


def test_a_corpus_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus.pos"
    corpus.write_text("good")

    def refuse(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"cannot read .*corpus\.pos: Permission denied"):
        read_labelled([str(corpus)], None)
