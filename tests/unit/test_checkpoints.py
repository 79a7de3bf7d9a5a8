"""Unfit model directories and the errors they give."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from vbon.errors import CheckpointError
from vbon.storage.checkpoints import (
    Kind,
    check_checkpoint,
    has_changed,
    refuse_changed,
    write_checksums,
)


def write_safetensors(path: Path, payload: bytes = b"\0" * 16) -> None:
    header = {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, len(payload)]}}
    raw = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + payload)


def write_model(directory: Path, architecture: str = "LlamaForCausalLM") -> None:
    (directory / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    (directory / "tokenizer.json").write_text("{}")
    write_safetensors(directory / "model.safetensors")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    write_model(directory)
    return directory


def test_a_good_directory_has_a_revision_that_follows_its_content(model: Path) -> None:
    first = check_checkpoint(str(model), "causal-lm")
    assert first.revision.startswith("sha256:")
    assert check_checkpoint(str(model), "causal-lm") == first
    write_safetensors(model / "model.safetensors", b"\1" * 16)
    assert check_checkpoint(str(model), "causal-lm").revision != first.revision


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json", "tokenizer_config.json", "merges.txt", "spiece.model", "chat_template.jinja",
        "additional_chat_templates/tools.jinja", "generation_config.json",
    ],
)  # fmt: skip
def test_the_tokenizer_is_part_of_a_models_revision(model: Path, name: str) -> None:
    before = check_checkpoint(str(model), "causal-lm").revision
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text('{"edited": true}')
    assert check_checkpoint(str(model), "causal-lm").revision != before


def test_how_it_is_applied_is_part_of_an_adapters_revision(model: Path) -> None:
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    (model / "adapter_config.json").write_text('{"lora_alpha": 1}')
    before = check_checkpoint(str(model), "adapter").revision
    (model / "adapter_config.json").write_text('{"lora_alpha": 2}')
    assert check_checkpoint(str(model), "adapter").revision != before


def test_large_files_are_sampled_but_still_told_apart(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vbon.storage.checkpoints._FULL_HASH_LIMIT", 0)
    monkeypatch.setattr("vbon.storage.checkpoints._BLOCK", 8)
    first = check_checkpoint(str(model), "causal-lm").revision
    write_safetensors(model / "model.safetensors", b"\0" * 15 + b"\1")
    assert check_checkpoint(str(model), "causal-lm").revision != first


def spoil_missing(model: Path) -> None:
    model.rename(model.with_name("elsewhere"))


def spoil_file(model: Path) -> None:
    spoil_missing(model)
    model.write_text("not a directory")


def spoil_config(model: Path) -> None:
    (model / "config.json").unlink()


def spoil_json(model: Path) -> None:
    (model / "config.json").write_text("{")


def spoil_kind(model: Path) -> None:
    (model / "config.json").write_text('{"architectures": ["BertForMaskedLM"]}')


def spoil_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def spoil_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def spoil_pickle(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def truncate(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])


def truncate_header(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:6])


def spoil_shard(model: Path) -> None:
    (model / "model.safetensors").unlink()
    index = {"weight_map": {"w": "model-00001-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_missing, "does not exist"),
        (spoil_file, "is a file"),
        (spoil_config, "no config.json"),
        (spoil_json, "not valid JSON"),
        (spoil_kind, "BertForMaskedLM, not a causal language model"),
        (spoil_tokenizer, "no tokenizer"),
        (spoil_weights, "no model.safetensors"),
        (spoil_pickle, "pickled weights"),
        (truncate, "truncated or damaged"),
        (truncate_header, "truncated"),
        (spoil_shard, "00001-of-00002.safetensors is missing"),
    ],
)
def test_an_unfit_directory_says_why(model: Path, spoil, words: str) -> None:
    spoil(model)
    with pytest.raises(CheckpointError, match=words):
        check_checkpoint(str(model), "causal-lm")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "not a sequence classifier"),
        ({"architectures": ["BertForSequenceClassification"]}, "has 2 output labels"),
        (
            {"architectures": ["XForSequenceClassification"], "id2label": {"0": "a", "1": "b"}},
            "has 2 output labels",
        ),
    ],
)
def test_a_reward_model_needs_one_logit(model: Path, config: dict, words: str) -> None:
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=words):
        check_checkpoint(str(model), "reward")


def flip(path: Path, at: int = -1) -> None:
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_checksums_keep_the_revision_and_name_the_file_that_changed(model: Path) -> None:
    before = check_checkpoint(str(model), "causal-lm")
    (model / "README.md").write_text("a card")
    write_checksums(model, "causal-lm")
    assert check_checkpoint(str(model), "causal-lm") == before
    (model / "README.md").write_text("a card that somebody edited")
    (model / "chat_template.jinja").write_text("a file that somebody added")
    assert check_checkpoint(str(model), "causal-lm") == before
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        whole = (model / name).read_bytes()
        flip(model / name)
        with pytest.raises(CheckpointError, match=rf"{name}: its content is not .*export it again"):
            check_checkpoint(str(model), "causal-lm")
        (model / name).write_bytes(whole)


def test_files_are_hashed_once_and_only_sampled_blocks_where_nothing_is_recorded(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vbon.storage.checkpoints._FULL_HASH_LIMIT", 0)
    monkeypatch.setattr("vbon.storage.checkpoints._SAMPLE_BLOCKS", 2)
    monkeypatch.setattr("vbon.storage.checkpoints._BLOCK", 2)
    first = check_checkpoint(str(model), "causal-lm").revision
    flip(model / "model.safetensors", -8)  # between the sampled blocks
    assert check_checkpoint(str(model), "causal-lm").revision == first
    flip(model / "model.safetensors", -8)
    write_checksums(model, "causal-lm")
    monkeypatch.setattr("vbon.storage.checkpoints._fingerprint", None)
    assert check_checkpoint(str(model), "causal-lm").revision == first
    flip(model / "model.safetensors", -8)
    with pytest.raises(CheckpointError, match="its content is not what was written"):
        check_checkpoint(str(model), "causal-lm")


@pytest.mark.parametrize("damage", ["[]", '{"files": {}, "revision": "sha256:1"}', "{", "\xff"])
def test_damaged_checksums_are_no_reason_to_trust_the_files(model: Path, damage: str) -> None:
    write_checksums(model, "causal-lm")
    (model / "checksums.json").write_bytes(damage.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"checksums\.json"):
        check_checkpoint(str(model), "causal-lm")


def test_weights_beside_the_recorded_ones_are_not_taken(model: Path) -> None:
    write_checksums(model, "causal-lm")
    (model / "model.safetensors").rename(model / "a.safetensors")
    index = {"weight_map": {"w": "a.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        check_checkpoint(str(model), "causal-lm")


@pytest.mark.parametrize("header", [b"[]", b'{"w": 1}', b'{"w": {"data_offsets": [0]}}', b"\xff"])
def test_a_garbled_header_is_an_error_with_its_name(model: Path, header: bytes) -> None:
    content = struct.pack("<Q", len(header)) + header
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a safetensors file"):
        check_checkpoint(str(model), "causal-lm")


def test_one_logit_is_accepted(model: Path) -> None:
    config = {"architectures": ["XForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    (model / "config.json").write_text(json.dumps(config))
    check_checkpoint(str(model), "reward")


def test_a_hub_id_is_left_to_the_library() -> None:
    found = check_checkpoint("hf://some-org/some-model", "causal-lm")
    assert (found.path, found.revision) == ("some-org/some-model", "hub")
    with pytest.raises(CheckpointError, match="hf://org/name"):
        check_checkpoint("some-org/some-model", "causal-lm")


def test_a_directory_that_may_not_be_read_is_an_error_with_its_name(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"cannot read .*config.json: Permission denied"):
        check_checkpoint(str(model), "causal-lm")


DEEP = "[" * 100_000 + "]" * 100_000
DAMAGE = {
    "deep": DEEP.encode(),
    "a deep object": ('{"architectures": ' + DEEP + "}").encode(),
    "not UTF-8": b"\xff\xfe{}",
    "empty": b"",
    "cut": b'{"architectures": [',
    "a list": b"[]",
    "null": b"null",
    "a number": b"1e999",
    "other types": b'{"architectures": 5, "id2label": 7, "num_labels": {}, "files": [], "revision": 1}',
    "other items": b'{"architectures": [null, {}], "weight_map": {"a": [1]}, "files": {"a": 3}}',
    "a long number": b'{"num_labels": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", ["causal-lm", "reward", "adapter"])
@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "adapter_config.json",
        "checksums.json",
        "model.safetensors.index.json",
        "model.safetensors",
        "adapter_model.safetensors",
    ],
)
def test_whatever_a_file_holds_the_directory_is_named_as_unusable(
    tmp_path: Path, file: str, kind: Kind, damage: str
) -> None:
    config = {"architectures": ["XForSequenceClassification", "XForCausalLM"], "num_labels": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    content = DAMAGE[damage]
    if file.endswith(".safetensors"):
        content = len(content).to_bytes(8, "little") + content
    elif file != "model.safetensors.index.json":
        header = json.dumps({"w": {"data_offsets": [0, 0]}}).encode()
        for weights in ("model.safetensors", "adapter_model.safetensors"):
            (tmp_path / weights).write_bytes(len(header).to_bytes(8, "little") + header)
    (tmp_path / file).write_bytes(content)
    told = ""
    try:
        check_checkpoint(str(tmp_path), kind)
    except CheckpointError as error:
        told = str(error)
    # A file that this kind of model does not read may be damaged, and an adapter's config is vLLM's to check.
    read = {"checksums.json", "adapter_config.json" if kind == "adapter" else "config.json"}
    may_pass = file not in read or (kind == "adapter" and damage.startswith("other"))
    assert told or may_pass
    assert not told or str(tmp_path) in told
    assert len(told) < 1000


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "config.json"])
def test_a_change_after_the_check_is_noticed_whatever_its_size_and_time(
    model: Path, name: str
) -> None:
    checkpoint = check_checkpoint(str(model), "causal-lm")
    refuse_changed(checkpoint)
    (model / "README.md").write_text("the card may be edited")
    assert not has_changed(checkpoint)
    seen, content = (model / name).stat(), (model / name).read_bytes()
    (model / name).write_bytes(content[:-1] + b"?")
    os.utime(model / name, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    with pytest.raises(CheckpointError, match="changed while they were loaded"):
        refuse_changed(checkpoint)


def test_a_file_that_comes_or_goes_after_the_check_is_noticed(model: Path) -> None:
    checkpoint = check_checkpoint(str(model), "causal-lm")
    (model / "chat_template.jinja").write_text("x")
    assert has_changed(checkpoint)
    (model / "chat_template.jinja").unlink()
    assert not has_changed(checkpoint)
    (model / "tokenizer.json").unlink()
    assert has_changed(checkpoint)
