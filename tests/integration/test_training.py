"""The training commands on a tiny sandbox: what they write, resume, and refuse."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.train

from safetensors.torch import load_file  # noqa: E402
from tokenizers.decoders import DecodeStream  # noqa: E402

from tests.tiny import sample_config, train_config  # noqa: E402
from training.cache.reward_cache import RewardCache  # noqa: E402
from training.cache.sample import build_cache  # noqa: E402
from training.configs import EvaluateConfig, SandboxConfig  # noqa: E402
from training.evaluation.evaluate import evaluate_checkpoints  # noqa: E402
from training.rollouts.load_policy import load_policy  # noqa: E402
from training.rollouts.predictor import Predictor, logprobs_of, terms_of  # noqa: E402
from training.rollouts.rollout import Rollout, sample_responses  # noqa: E402
from training.sandbox.build import build_sandbox  # noqa: E402
from training.train.inputs import TrainingInputs  # noqa: E402
from training.train.resume import state_path  # noqa: E402
from training.train.run import train  # noqa: E402
from vbon.errors import CheckpointError, DataError, ExportError, RewardError  # noqa: E402
from vbon.prompts import Prompt  # noqa: E402
from vbon.rewards import Scorable, open_reward_model  # noqa: E402
from vbon.storage.checkpoints import check_checkpoint  # noqa: E402
from vbon.storage.training_record import TrainingRecord  # noqa: E402


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    ours, theirs = weights(a), weights(b)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_sandbox_makes_standard_directories(sandbox: Path) -> None:
    for part, kind in (("policy", "causal-lm"), ("reward", "reward"), ("gold", "reward")):
        check_checkpoint(str(sandbox / part), kind)  # type: ignore[arg-type]
        card = (sandbox / part / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: transformers")
        assert "seed" in card
    record = json.loads((sandbox / "sandbox.json").read_text())
    assert set(record["metrics"]) == {"policy", "reward", "gold"}
    assert record["metrics"]["gold"]["parameters"] > record["metrics"]["reward"]["parameters"]
    assert record["versions"]["torch"]
    assert record["git_revision"]


def test_prompts_are_kept_apart(sandbox: Path) -> None:
    train, heldout = [
        {row["prompt"] for row in read_jsonl(sandbox / "prompts" / name)}
        for name in ("train.jsonl", "heldout.jsonl")
    ]
    assert (len(train), len(heldout)) == (6, 5)
    assert not train & heldout


def test_sandbox_again_keeps_what_is_whole_and_mends_what_is_not(sandbox: Path, caplog) -> None:
    copy = sandbox.with_name("copy")
    shutil.copytree(sandbox, copy)
    whole = (copy / "policy" / "model.safetensors").stat().st_mtime_ns
    damaged = copy / "reward" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    config = SandboxConfig(
        out=copy, num_reviews=1200, policy_texts=600, policy_hidden=64, policy_layers=1,
        train_prompts=6, heldout_prompts=5, max_length=96,
    )  # fmt: skip
    build_sandbox(config)
    assert (copy / "policy" / "model.safetensors").stat().st_mtime_ns == whole
    assert same(copy / "reward", sandbox / "reward")  # deterministic under the seed
    with pytest.raises(DataError, match="seed: 0 -> 1"):
        build_sandbox(config.model_copy(update={"seed": 1}))


def test_cache_has_m_scored_samples_a_prompt(sandbox: Path) -> None:
    tokenizer = load_policy(str(sandbox / "policy"))[1]
    cache = RewardCache.open(sandbox / "cache.jsonl", tokenizer, max_new_tokens=12)
    assert (len(cache), cache.smallest) == (6, 32)
    first = read_jsonl(sandbox / "cache.jsonl")[0]
    reward = open_reward_model(str(sandbox / "reward"))
    reward.load()
    items = [Scorable(cache.prompt(0), text) for text in first["responses"]]
    np.testing.assert_allclose(reward.score(items), cache.rewards(0), atol=1e-4)
    # The ids are those that were drawn, so they spell the text and end as the reason says. A text ends before
    # a character that is cut in the middle, as the tokenizers library streams it.
    prompt_ids = tokenizer(cache.prompt(0).text)["input_ids"]
    drawn = zip(cache.responses(0), first["responses"], first["finish_reasons"], strict=True)
    for ids, text, reason in drawn:
        stream = DecodeStream(ids=prompt_ids, skip_special_tokens=True)
        steps = [stream.step(tokenizer._tokenizer, int(token)) for token in ids]
        assert "".join(step or "" for step in steps) == text
        assert (ids[-1] == tokenizer.eos_token_id) == (reason == "stop")
        assert reason == "stop" or len(ids) == 12


def test_sampling_resumes_after_a_torn_line(sandbox: Path, tmp_path: Path) -> None:
    whole = (sandbox / "cache.jsonl").read_bytes()
    out = tmp_path / "cache.jsonl"
    build_cache(sample_config(sandbox, out))
    assert out.read_bytes() == whole  # the seed fixes every sample
    lines = whole.splitlines(keepends=True)
    out.rename(tmp_path / "cache.jsonl.partial")
    (tmp_path / "cache.jsonl.partial").write_bytes(b"".join(lines[:2]) + lines[2][:50])
    build_cache(sample_config(sandbox, out))
    assert out.read_bytes() == whole
    with pytest.raises(DataError, match="num_samples: 32 -> 16"):
        build_cache(sample_config(sandbox, out, num_samples=16))


def test_a_reward_without_a_number_for_a_prompt_stops_sampling(
    sandbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad_reward.py").write_text(
        "def score(prompts, completions):\n    return [float('nan')] * len(prompts)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = sample_config(sandbox, tmp_path / "c.jsonl", reward="python:bad_reward:score")
    with pytest.raises(RewardError, match="finite reward"):
        build_cache(config)


def test_vbon_writes_a_loadable_checkpoint_with_a_full_card(vbon_checkpoint: Path) -> None:
    check_checkpoint(str(vbon_checkpoint), "causal-lm")
    card = (vbon_checkpoint / "README.md").read_text()
    for fact in ("| N | 4 |", "| M, reference samples a prompt | 32 |", "| seed | 0 |", "sha256:",
                 "held-out win rate", "held-out KL"):  # fmt: skip
        assert fact in card
    record = json.loads((vbon_checkpoint / "training.json").read_text())
    assert record["config"]["num_samples"] == 4
    assert record["cache"]["sampling_seconds"] > 0
    drawn = read_jsonl(vbon_checkpoint.parent / "cache.jsonl")
    reasons = [reason for row in drawn for reason in row["finish_reasons"]]
    share = reasons.count("length") / len(reasons)
    assert record["cache"]["truncated_share"] == pytest.approx(share)
    assert f"| cached samples cut off | {share:.1%} |" in card
    assert f"| held-out samples cut off | {record['heldout']['truncated_share']:.1%} |" in card
    assert 0 <= record["heldout"]["win_rate"]["mean"] <= 1
    history = read_jsonl(vbon_checkpoint / "history.jsonl")
    # The figures before the on-policy steps are of the same prompts and seeds, and their change is paired.
    before, after, change = (record[k] for k in ("after_warm_start", "heldout", "on_policy_change"))
    for name in ("win_rate", "kl_nats"):
        difference = after[name]["mean"] - before[name]["mean"]
        assert change[name]["mean"] == pytest.approx(difference, abs=1e-9)
        assert change[name]["count"] == after[name]["count"]
    described = TrainingRecord.model_validate(record).description
    assert "3 imitation steps at 0.0008, then 4 on-policy steps" in described
    assert described[1:] in card
    assert [row["truncated_share"] is None for row in history] == [True] * 3 + [False] * 4
    phases = [row["phase"] for row in history]
    assert phases == sorted(phases, reverse=True)  # "warm-start" before "main"
    assert phases.count("main") == 4
    assert phases.count("warm-start") == 3
    assert not state_path(vbon_checkpoint).exists()


def test_training_again_changes_nothing_and_other_settings_are_refused(
    sandbox: Path, vbon_checkpoint: Path
) -> None:
    before = (vbon_checkpoint / "model.safetensors").stat().st_mtime_ns
    train("vbon", train_config(sandbox, vbon_checkpoint))
    assert (vbon_checkpoint / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="num_samples: 4 -> 8"):
        train("vbon", train_config(sandbox, vbon_checkpoint, num_samples=8))


def test_a_killed_run_resumes_to_the_same_weights(
    sandbox: Path, vbon_checkpoint: Path, tmp_path: Path
) -> None:
    """kill -9 as soon as the first resumable state is on disk, then run the same command again."""
    out = tmp_path / "vbon"
    flags = []
    for name, value in train_config(sandbox, out).model_dump(mode="json").items():
        if value is not None and not isinstance(value, bool):
            flags += [f"--{name.replace('_', '-')}", str(value)]
    command = [sys.executable, "-m", "training", "vbon", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 600
        while not list(state_path(out).glob("step-*")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not out.exists()
    resumed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "resuming after step" in resumed.stderr
    assert same(out, vbon_checkpoint)
    ours, theirs = [
        json.loads((d / "training.json").read_text())["heldout"] for d in (out, vbon_checkpoint)
    ]
    assert ours == theirs


def test_a_damaged_checkpoint_does_not_count_as_trained(
    sandbox: Path, vbon_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "vbon"
    shutil.copytree(vbon_checkpoint, out)
    damaged = out / "model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    config = train_config(sandbox, out)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: its content .* --replace"):
        train("vbon", config)
    train("vbon", config.model_copy(update={"replace": True}))
    assert same(out, vbon_checkpoint)
    sums = json.loads((out / "checksums.json").read_text())["files"]
    assert sums["model.safetensors"]["sha256"] in (out / "README.md").read_text()


def test_what_is_no_output_of_training_is_not_replaced(sandbox: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"not the output of a training run.*choose another --out"):
        train("vbon", train_config(sandbox, tmp_path))
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("bound", ["lower", "exact"])
def test_lora_is_merged_on_export(sandbox: Path, tmp_path: Path, bound: str) -> None:
    out = tmp_path / "lora"
    config = train_config(
        sandbox, out, lora_rank=4, steps=2, warm_start_steps=0, bound=bound, learning_rate=1e-2,
        heldout=None,
    )  # fmt: skip
    inputs = TrainingInputs(config, 0, 0, 0)
    train("vbon", config, inputs)
    # The adapter was trained on the reference's own weights, which neither training nor merging changed.
    untouched = weights(sandbox / "policy")
    for name, weight in inputs.reference.named_parameters():
        torch.testing.assert_close(weight, untouched[name], atol=0, rtol=0)
    check_checkpoint(str(out / "adapter"), "adapter")
    assert (out / "adapter" / "checksums.json").exists()
    tuned, base = weights(out), weights(sandbox / "policy")
    assert set(tuned) == set(base)
    assert any(not torch.equal(tuned[name], base[name]) for name in base)


@pytest.mark.parametrize("lora_rank", [None, 4])
def test_a_run_begins_with_another_checkpoint_and_keeps_its_kl_to_the_reference(
    sandbox: Path, tmp_path: Path, lora_rank: int | None
) -> None:
    """With a learning rate of nearly 0, the figures are those of the checkpoint that it began with."""
    first = tmp_path / "first"
    train("vbon", train_config(sandbox, first, learning_rate=1e-2, warm_start_steps=0))
    settings: dict[str, object] = {
        "initial": str(first), "lora_rank": lora_rank, "steps": 1, "warm_start_steps": 0,
        "learning_rate": 1e-9, "cached_weight": 0.0, "bound": "lower",
    }  # fmt: skip
    out = tmp_path / "more"
    config = train_config(sandbox, out, **settings)
    row = train("vbon", config).row
    begun = json.loads((first / "training.json").read_text())["heldout"]
    assert row is not None
    assert row.kl_nats.mean == pytest.approx(begun["kl_nats"]["mean"], rel=0.3)
    assert row.kl_nats.mean > 0.05
    assert not (out / "adapter").exists()  # it would not fit the reference
    before, after = weights(first), weights(out)
    assert all(torch.allclose(after[name], before[name], atol=1e-5) for name in before)
    record = json.loads((out / "training.json").read_text())
    assert record["identity"]["initial_revision"].startswith("sha256:")
    assert train("vbon", config).row == row  # kept
    with pytest.raises(DataError, match="initial"):
        train("vbon", config.model_copy(update={"initial": None}))


def test_a_cache_of_other_settings_or_models_is_refused(sandbox: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="max_new_tokens"):
        train("vbon", train_config(sandbox, tmp_path / "v", max_new_tokens=20))
    with pytest.raises(DataError, match="reward_revision"):
        train("vbon", train_config(sandbox, tmp_path / "v", reward=str(sandbox / "gold")))


def test_policy_and_reward_of_the_wrong_kind_are_refused(sandbox: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a causal language model"):
        train("vbon", train_config(sandbox, tmp_path / "v", policy=str(sandbox / "reward")))
    with pytest.raises(CheckpointError, match="not a sequence classifier"):
        train("vbon", train_config(sandbox, tmp_path / "v", reward=str(sandbox / "policy")))


def test_a_full_disk_during_export_keeps_the_old_checkpoint(
    sandbox: Path, vbon_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is there; training it again with other settings runs out of disk at the end."""
    import errno

    out = tmp_path / "vbon"
    shutil.copytree(vbon_checkpoint, out)
    config = train_config(sandbox, out, steps=1, warm_start_steps=0, heldout=None, replace=True)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(ExportError, match=r"No space left .* untouched"):
        train("vbon", config)
    assert same(out, vbon_checkpoint)
    assert not list(tmp_path.glob(".vbon.partial*"))


def test_sampling_matches_the_policy_and_padding_changes_nothing(sandbox: Path) -> None:
    """Log-probabilities recomputed from one prompt alone equal those of the mixed batch."""
    policy, tokenizer, _ = load_policy(str(sandbox / "policy"))
    prompts = [tokenizer(text)["input_ids"] for text in ("the film was", "in this old french")]
    rollout = sample_responses(
        policy, tokenizer, prompts, num_samples=40, max_new_tokens=60, seeds=[3, 4]
    )
    lengths = rollout.mask_BT.sum(1)
    assert int(lengths.min()) < int(lengths.max())  # rows left the batch at different steps

    with torch.no_grad():
        terms = terms_of(Predictor(policy), Predictor(policy), rollout)
        torch.testing.assert_close(terms.kl_BT, torch.zeros_like(terms.kl_BT))
        for row in (0, 45, 79):
            ids = prompts[row // 40]
            response = rollout.response_BT[row][rollout.mask_BT[row]]
            alone = torch.tensor([[*ids, *response.tolist()]])
            log_q = torch.log_softmax(policy(alone).logits[0, :-1], -1)
            expected = log_q.gather(-1, alone[0, 1:, None])[len(ids) - 1 :, 0]
            found = terms.logprob_BT[row][rollout.mask_BT[row]]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_prompts_samples_do_not_depend_on_its_batch(sandbox: Path) -> None:
    """Alone, and in a batch of others: the same tokens, and the log-probabilities they were drawn with."""
    policy, tokenizer, _ = load_policy(str(sandbox / "policy"))
    texts = ("the film was", "in this old french", "i think that")
    prompts = [tokenizer(text)["input_ids"] for text in texts]

    def drawn(ids: list[list[int]], seeds: list[int]) -> Rollout:
        return sample_responses(
            policy, tokenizer, ids, num_samples=4, max_new_tokens=12, seeds=seeds
        )

    together, alone = drawn(prompts, [5, 6, 7]), drawn(prompts[1:2], [6])
    theirs = together.rows(slice(4, 8))
    width = alone.mask_BT.shape[1]
    torch.testing.assert_close(theirs.response_BT[:, :width] * theirs.mask_BT[:, :width],
                               alone.response_BT * alone.mask_BT)  # fmt: skip
    recomputed = logprobs_of(Predictor(policy), alone)
    assert alone.sampled_logprob_BT is not None
    torch.testing.assert_close(alone.sampled_logprob_BT, recomputed.detach(), atol=1e-4, rtol=1e-4)


def test_sampler_draws_from_the_policy(sandbox: Path) -> None:
    """First-token frequencies against the exact distribution; chi-square, false alarm below 1e-4."""
    policy, tokenizer, _ = load_policy(str(sandbox / "policy"))
    ids = tokenizer("the film")["input_ids"]
    draws = 20_000
    rollout = sample_responses(
        policy, tokenizer, [ids], num_samples=draws, max_new_tokens=1, seeds=[1]
    )
    with torch.no_grad():
        p = torch.softmax(policy(torch.tensor([ids])).logits[0, -1].double(), -1)
    counts = torch.bincount(rollout.response_BT[:, 0], minlength=len(p)).double()
    common = p * draws >= 10
    rest_p, rest_count = p[~common].sum(), counts[~common].sum()
    expected = torch.cat([p[common], rest_p[None]]) * draws
    observed = torch.cat([counts[common], rest_count[None]])
    statistic = float(((observed - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    # Wilson-Hilferty: the .9999 quantile of chi-square.
    quantile = freedom * (1 - 2 / (9 * freedom) + 3.719 * np.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < quantile


def test_evaluate_writes_table_json_and_plots(
    sandbox: Path, vbon_checkpoint: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = sandbox / "evaluation"
    config = EvaluateConfig(
        policy=str(sandbox / "policy"), checkpoints={"vbon": str(vbon_checkpoint)},
        reward=str(sandbox / "reward"), gold=str(sandbox / "gold"),
        prompts=sandbox / "prompts" / "heldout.jsonl", out=out, num_samples=4,
        reference_samples=32, policy_samples=8, max_new_tokens=12,
    )  # fmt: skip
    evaluate_checkpoints(config)
    result = json.loads((out / "evaluation.json").read_text())
    rows = {(row["method"], row["n"]): row for row in result["rows"]}
    assert [n for method, n in rows if method == "best-of-n"] == [2, 4, 8, 16]
    for (method, n), row in rows.items():
        if method == "best-of-n":
            assert row["win_rate"]["mean"] == pytest.approx(n / (n + 1), abs=1e-2)
            assert row["kl_kind"] == "upper bound"
            estimate = row["kl_other"]["estimate from p(selected)"]["mean"]
            assert estimate <= row["kl_nats"]["mean"] + 1e-9
    vbon = rows[("vbon", 1)]
    assert vbon["kl_kind"] == "Rao-Blackwellised"
    assert set(vbon["kl_other"]) == {"naive", "k3"}
    assert vbon["gold"]["count"] == 5
    assert (out / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "frontier.svg").read_text()
    table = capsys.readouterr().out
    assert "best-of-4" in table
    peak = result["gold_peak"]
    assert 1 <= peak["low"] <= peak["n"] <= peak["high"] <= peak["largest"] == 31
    assert "Gold reward of best-of-n" in table
    monkeypatch.setattr("training.evaluation.evaluate._measure", None)  # kept, and shown again
    evaluate_checkpoints(config)
    assert capsys.readouterr().out == table
    with pytest.raises(TypeError):
        evaluate_checkpoints(config.model_copy(update={"policy_samples": 7}))


def test_captured_nats_of_a_checkpoint_and_of_the_reference_itself(
    sandbox: Path, vbon_checkpoint: Path, capsys
) -> None:
    """The reference captures nothing, on its cache, on fresh samples and on held-out prompts."""
    recorded = json.loads((vbon_checkpoint / "training.json").read_text())["captured_nats"]
    assert (recorded["n"], recorded["fresh"]) == (4, None)
    assert [recorded[kind]["count"] for kind in ("cache", "heldout")] == [6, 5]
    assert "captured nats of best-of-4" in (vbon_checkpoint / "README.md").read_text()
    out = sandbox / "captured"
    config = EvaluateConfig(
        policy=str(sandbox / "policy"), reward=str(sandbox / "reward"), gold=None, out=out,
        checkpoints={"vbon": str(vbon_checkpoint), "still": str(sandbox / "policy")},
        prompts=sandbox / "prompts" / "heldout.jsonl", num_samples=4, reference_samples=32,
        policy_samples=4, max_new_tokens=12, captured_nats=True, cache=sandbox / "cache.jsonl",
    )  # fmt: skip
    evaluate_checkpoints(config)
    table = capsys.readouterr().out
    assert "Captured nats of best-of-4" in table
    rows = json.loads((out / "evaluation.json").read_text())["rows"]
    nats = {row["method"]: row["captured_nats"] for row in rows}
    assert nats["best-of-n"] is None
    for kind, prompts in (("cache", 6), ("fresh", 5), ("heldout", 5), ("memorised", 5)):
        still, tuned = nats["still"][kind], nats["vbon"][kind]
        assert still["mean"] == pytest.approx(0, abs=1e-4)
        assert tuned["low"] <= tuned["mean"] <= tuned["high"]
        assert tuned["count"] == min(prompts, 5)  # as many training prompts as held-out ones
    # Training used the same samples of the same cache, of one prompt more.
    assert nats["vbon"]["cache"]["mean"] == pytest.approx(recorded["cache"]["mean"], abs=0.15)
    evaluate_checkpoints(config)  # kept, and shown again
    assert capsys.readouterr().out == table
    with pytest.raises(DataError, match="max_new_tokens"):
        evaluate_checkpoints(config.model_copy(update={"max_new_tokens": 11}))


def test_a_large_policy_trains_with_its_defaults_and_records_them(
    sandbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny policy counts as large here. The same command finds its finished run again."""
    monkeypatch.setattr("training.train.size_defaults.SMALL", 0)
    out = tmp_path / "lora"
    config = train_config(sandbox, out, heldout=None)
    train("vbon", config)
    record = json.loads((out / "training.json").read_text())
    chosen = {"lora_rank": 16, "max_kl": 20.0, "warm_start_learning_rate": pytest.approx(2e-4)}
    assert {name: record["config"][name] for name in chosen} == chosen
    assert record["learning_rate"] == pytest.approx(1e-4)
    assert record["identity"]["micro_batch_size"] == 16  # given
    assert (out / "adapter" / "adapter_config.json").is_file()
    with monkeypatch.context() as patched:
        patched.setattr("training.train.run._train_and_export", None)
        train("vbon", config)
    with pytest.raises(DataError, match="lora_rank: 16 -> None"):
        train("vbon", config.model_copy(update={"lora_rank": None}))


def test_own_labelled_text_builds_the_same_three(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good, bad = ["fine", "superb", "lovely"], ["dull", "awful", "grim"]
    for name, words in (("r.pos", good), ("r.neg", bad)):
        lines = [
            f"sentence {i} about caf\xe9 number {rng.integers(99)} is {rng.choice(words)} and "
            f"{rng.choice(words)} indeed"
            for i in range(400)
        ]
        (tmp_path / name).write_bytes("\n".join(lines).encode("latin-1"))
    out = tmp_path / "sandbox"
    build_sandbox(
        SandboxConfig(
            out=out, corpus=[str(tmp_path / "r.pos"), f"{tmp_path / 'r.neg'}=0"], encoding="latin-1",
            policy_texts=200, policy_hidden=64, policy_layers=1, train_prompts=6,
            heldout_prompts=5, max_length=64,
        )
    )  # fmt: skip
    metrics = json.loads((out / "sandbox.json").read_text())["metrics"]
    assert metrics["reward"]["heldout_auc"] > 0.8
    (tmp_path / "plain.txt").write_text("a line")
    with pytest.raises(DataError, match="cannot tell the labels"):
        build_sandbox(SandboxConfig(out=tmp_path / "x", corpus=[str(tmp_path / "plain.txt")]))


def test_padding_does_not_change_a_reward_even_where_pad_is_eos(
    sandbox: Path, tmp_path: Path
) -> None:
    """Batches of mixed length against one text at a time, for both kinds of tokenizer."""
    items = [
        Scorable(Prompt(text="the film"), " was" + " good" * i + " and dull" * (i % 3))
        for i in range(1, 12)
    ]
    own_pad = sandbox / "reward"
    eos_pad = tmp_path / "reward"
    shutil.copytree(own_pad, eos_pad)
    config = json.loads((eos_pad / "tokenizer_config.json").read_text())
    config["pad_token"] = config["eos_token"]
    (eos_pad / "tokenizer_config.json").write_text(json.dumps(config))
    (eos_pad / "checksums.json").unlink()  # changed on purpose
    scores = []
    for path in (own_pad, eos_pad):
        model = open_reward_model(str(path))
        model.load()
        together = model.score(items)
        alone = [model.score([item])[0] for item in items]
        np.testing.assert_allclose(together, alone, atol=1e-4)
        scores.append(together)
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)
    too_long = model.score([Scorable(Prompt(text="film"), " film" * 500)])
    assert too_long == [None]  # counted as unscored, never cut to fit


def test_a_conversation_that_its_template_refuses_leaves_the_rest_of_the_batch(
    sandbox: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "reward"
    shutil.copytree(sandbox / "reward", path)
    (path / "checksums.json").unlink()  # changed on purpose
    (path / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('no system role') }}{% endif %}{{ m['content'] }}{% endfor %}"
    )
    model = open_reward_model(str(path))
    model.load()
    system, user = {"role": "system", "content": "be brief"}, {"role": "user", "content": "film?"}
    fits = Scorable(Prompt(messages=(user,)), "good")  # type: ignore[arg-type]
    refused = Scorable(Prompt(messages=(system, user)), "good")  # type: ignore[arg-type]
    alone = model.score([fits])
    assert model.score([refused, fits, refused]) == [None, *alone, None]
    assert caplog.text.count("no system role; such texts get no reward") == 1


def test_parts_of_the_sandbox_built_side_by_side_are_those_built_in_turn(
    sandbox: Path, tmp_path: Path
) -> None:
    """One thread each, so that sums are taken in the same order; the tokenizer is trained twice."""
    from training.worker_pool import worker_pool

    beside = tmp_path / "sandbox"
    config = json.loads((sandbox / "sandbox.json").read_text())["config"]
    build_sandbox(SandboxConfig(**config, out=beside, jobs=2))
    for part in ("policy", "reward", "gold"):
        assert (beside / part / "tokenizer.json").read_bytes() == (
            sandbox / part / "tokenizer.json"
        ).read_bytes()
        first, second = (
            load_file(where / part / "model.safetensors") for where in (sandbox, beside)
        )
        assert first.keys() == second.keys()
        for name, weight in first.items():
            assert torch.allclose(weight, second[name], atol=1e-3), (part, name)
    with pytest.raises(DataError, match="a worker process died"), worker_pool(1) as pool:
        pool.submit(os._exit, 9).result()
