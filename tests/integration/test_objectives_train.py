"""Every objective through the real trainer on a tiny sandbox: resume, divergence, bad data, sweeps."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.train

from safetensors.torch import load_file  # noqa: E402

from tests.tiny import train_config  # noqa: E402
from training.configs import ReportConfig, SweepConfig  # noqa: E402
from training.objectives import OBJECTIVES  # noqa: E402
from training.report.write import write_report  # noqa: E402
from training.rollouts.predictor import Predictor, logprobs_of  # noqa: E402
from training.rollouts.rollout import Rollout, rollout_of  # noqa: E402
from training.rollouts.sequence_logprobs import sequence_logprobs  # noqa: E402
from training.sweep.run import run_sweep  # noqa: E402
from training.train.inputs import TrainingInputs  # noqa: E402
from training.train.resume import state_path  # noqa: E402
from training.train.run import train  # noqa: E402
from training.train.trainer import Trainer  # noqa: E402
from vbon.errors import DataError, DivergedError, InvalidInputError  # noqa: E402
from vbon.storage.checkpoints import check_checkpoint  # noqa: E402

# Settings that fit 8 cached samples... of a tiny sandbox: 32 a prompt, groups of 4.
SETTINGS: dict[str, dict[str, Any]] = {
    "bon-aware-sft": {"num_samples": 2, "expert_samples": 8},
    "wind": {"updates": 2},
}


@pytest.fixture(scope="module")
def inputs(sandbox: Path) -> TrainingInputs:
    config = train_config(sandbox, sandbox / "unused")
    return TrainingInputs(config, heldout_limit=3, reference_samples=8, policy_samples=4)


def config_of(sandbox: Path, out: Path, objective: str, **changes: Any) -> Any:
    values = {"warm_start_steps": 0, "steps": 5, "heldout": None, **SETTINGS.get(objective, {})}
    return train_config(sandbox, out, objective, **(values | changes))


def steps_of(out: Path) -> list[dict[str, Any]]:
    """The history without its timings."""
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in rows]


def same_weights(a: Path, b: Path) -> bool:
    ours, theirs = (load_file(d / "model.safetensors") for d in (a, b))
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A run that dies when it comes to a step, as by kill -9: nothing is cleaned up."""
    death = {"step": -1}
    step = Trainer.step

    def dying(self: Trainer, number: int) -> Any:
        if number == death["step"]:
            raise SystemExit(137)
        return step(self, number)

    monkeypatch.setattr(Trainer, "step", dying)
    return death


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_and_resumes_after_any_step(
    sandbox: Path, inputs: TrainingInputs, tmp_path: Path, killed_at: dict[str, int], objective: str
) -> None:
    """Killed before each of its 5 steps (states after 2 and 4), it ends as an unbroken run does."""
    whole = tmp_path / "whole"
    finished = train(objective, config_of(sandbox, whole, objective), inputs)
    check_checkpoint(str(whole), "causal-lm")
    assert not same_weights(whole, sandbox / "policy")
    history = steps_of(whole)
    assert [row["step"] for row in history] == [0, 1, 2, 3, 4]
    assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in history)
    assert finished.cost["steps"] == 5
    broken = tmp_path / "broken"
    for death in range(5):
        killed_at["step"] = death
        with pytest.raises(SystemExit):
            train(objective, config_of(sandbox, broken, objective), inputs)
        assert not broken.exists()
    killed_at["step"] = -1
    train(objective, config_of(sandbox, broken, objective), inputs)
    assert steps_of(broken) == history
    assert same_weights(broken, whole)
    card = (broken / "README.md").read_text()
    assert "arXiv" in card
    assert "| seed | 0 |" in card


def test_vbon_trains_on_its_own_samples_and_as_many_cached_ones(
    sandbox: Path, inputs: TrainingInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """log p of the cached samples is that of ``sequence_logprobs``; with no weight none are read."""
    seen: list[tuple[Rollout, torch.Tensor]] = []
    computed = Trainer._reference_logprob

    def kept(self: Trainer, rollout: Rollout) -> torch.Tensor:
        seen.append((rollout, computed(self, rollout)))
        return seen[-1][1]

    monkeypatch.setattr(Trainer, "_reference_logprob", kept)
    config = config_of(sandbox, tmp_path / "both", "vbon", steps=1)
    cost = train("vbon", config, inputs).cost
    assert (cost["samples_drawn"], cost["sequences_trained"]) == (16, 32)
    assert sum(len(logprob) for _, logprob in seen) == 16
    for rollout, logprob in seen:
        alone = rollout.rows(slice(0, 1))
        prompt = alone.sequence_BL[alone.attention_BL.bool()][: -alone.mask_BT.shape[1]].tolist()
        response = alone.response_BT[0].tolist()
        (wanted,) = sequence_logprobs(inputs.reference, inputs.tokenizer, prompt, [response], 1.0)
        assert float(logprob[0]) == pytest.approx(wanted, abs=1e-4)
    seen.clear()
    config = config_of(sandbox, tmp_path / "own", "vbon", steps=1, cached_weight=0)
    cost = train("vbon", config, inputs).cost
    assert (cost["samples_drawn"], cost["sequences_trained"]) == (16, 16)
    assert not seen


def test_offline_objectives_draw_nothing(
    sandbox: Path, inputs: TrainingInputs, tmp_path: Path
) -> None:
    drawn = {}
    for objective in ("dpo", "kl-rl", "j-bond"):
        out = tmp_path / objective
        drawn[objective] = train(
            objective, config_of(sandbox, out, objective, steps=1), inputs
        ).cost["samples_drawn"]
    # 4 prompts x 4 samples of the policy, and 2 of the anchor a prompt for j-bond
    assert drawn == {"dpo": 0, "kl-rl": 16, "j-bond": 24}


def test_micro_batches_change_nothing(
    sandbox: Path, inputs: TrainingInputs, tmp_path: Path
) -> None:
    """Gradients accumulated over single prompts, against all at once: equal but for rounding."""
    for objective in ("bond", "dpo"):
        rows = []
        for size in (64, 2):
            out = tmp_path / f"{objective}-{size}"
            train(objective, config_of(sandbox, out, objective, micro_batch_size=size), inputs)
            rows.append(steps_of(out))
        for all_at_once, in_parts in zip(*rows, strict=True):
            assert in_parts["loss"] == pytest.approx(all_at_once["loss"], rel=2e-3, abs=1e-3)
            assert in_parts["grad_norm"] == pytest.approx(all_at_once["grad_norm"], rel=2e-3)


def test_gradient_checkpointing_changes_nothing_but_memory(
    sandbox: Path, inputs: TrainingInputs, tmp_path: Path
) -> None:
    rows = []
    for flag in (False, True):
        out = tmp_path / str(flag)
        config = config_of(sandbox, out, "bond", gradient_checkpointing=flag, steps=3)
        train("bond", config, inputs)
        rows.append(steps_of(out))
    for plain, checkpointed in zip(*rows, strict=True):
        assert checkpointed["loss"] == pytest.approx(plain["loss"], rel=1e-4, abs=1e-5)
        assert checkpointed["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)


def test_a_frozen_reference_in_bfloat16_leaves_the_policy_float32(
    sandbox: Path, tmp_path: Path
) -> None:
    for rank, expected in ((None, torch.float32), (4, torch.bfloat16)):
        out = tmp_path / f"rank-{rank}"
        config = config_of(
            sandbox, out, "kl-rl", frozen_dtype="bfloat16", dtype="bfloat16", steps=1,
            lora_rank=rank,
        )  # fmt: skip
        train("kl-rl", config)
        assert steps_of(out)[0]["kl_nats"] < 0.05  # rounding, not distance
        saved = load_file(out / "model.safetensors")
        assert {tensor.dtype for tensor in saved.values()} == {expected}


def test_bfloat16_starts_at_a_kl_of_zero_and_stays_near_float32(
    sandbox: Path, inputs: TrainingInputs, tmp_path: Path
) -> None:
    found = {}
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        train("kl-rl", config_of(sandbox, out, "kl-rl", dtype=dtype, steps=3), inputs)
        found[dtype] = steps_of(out)
    # Policy and reference round alike, so equal weights have no KL whatever the type.
    assert found["bfloat16"][0]["kl_nats"] == pytest.approx(0, abs=1e-6)
    full, half = found["float32"][0], found["bfloat16"][0]
    assert half["grad_norm"] == pytest.approx(full["grad_norm"], rel=0.2)
    weights = load_file(tmp_path / "bfloat16" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_a_run_that_goes_too_far_stops_with_its_last_good_checkpoint(
    sandbox: Path, inputs: TrainingInputs, tmp_path: Path
) -> None:
    out = tmp_path / "far"
    config = config_of(
        sandbox, out, "kl-rl", learning_rate=3e-2, steps=30, beta=1e-6, max_kl=3, warmup_steps=8
    )
    with pytest.raises(DivergedError, match=r"over --max-kl 3; the last good checkpoint") as e:
        train("kl-rl", config, inputs)
    (kept,) = tmp_path.glob("far.step*")
    assert str(kept) in str(e.value)
    check_checkpoint(str(kept), "causal-lm")
    assert not out.exists()
    assert not state_path(out).exists()


def test_not_a_number_stops_a_run(
    sandbox: Path, inputs: TrainingInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.objectives.kl_rl import KlRl

    monkeypatch.setattr(KlRl, "loss", lambda self, batch: batch.policy.logprob_B.sum() * np.nan)
    with pytest.raises(DivergedError, match=r"step 0: loss nan.*no earlier state was kept"):
        train("kl-rl", config_of(sandbox, tmp_path / "nan", "kl-rl"), inputs)


def rewritten_cache(sandbox: Path, tmp_path: Path, reward: Any) -> Path:
    """The sandbox's cache with other rewards and no record of settings."""
    path = tmp_path / "cache.jsonl"
    lines = []
    for line in (sandbox / "cache.jsonl").read_text().splitlines():
        record = json.loads(line)
        record["rewards"] = [reward(r) for r in record["rewards"]]
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_rewards_that_are_all_equal_are_refused(sandbox: Path, tmp_path: Path) -> None:
    cache = rewritten_cache(sandbox, tmp_path, lambda r: 1.0)
    with pytest.raises(DataError, match="nothing to learn from"):
        train("vbon", config_of(sandbox, tmp_path / "v", "vbon", cache=cache))


def test_binary_rewards_warn_where_a_strict_order_is_assumed(
    sandbox: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = rewritten_cache(sandbox, tmp_path, lambda r: float(r > 0))
    with caplog.at_level(logging.WARNING):
        train("vbon", config_of(sandbox, tmp_path / "v", "vbon", cache=cache, steps=1))
    assert "assumes a strict order" in caplog.text
    others = [name for name, kind in OBJECTIVES.items() if not kind.strict_order]
    assert {"kl-rl", "dpo", "bon-sft", "wind", "bon-aware-rl"} <= set(others)
    assert f"{', '.join(others)} handle ties" in caplog.text
    caplog.clear()
    train("kl-rl", config_of(sandbox, tmp_path / "k", "kl-rl", cache=cache, steps=1))
    assert "strict order" not in caplog.text


@pytest.mark.parametrize(
    ("objective", "changes", "words"),
    [
        ("bon-aware-rl", {"num_samples": 5}, "samples_per_prompt 4 is too few"),
        ("dpo", {"samples_per_prompt": 3}, "must be even"),
        ("wind", {"updates": 3}, "updates 3 must divide"),
        ("kl-rl", {"samples_per_prompt": 1}, "at least 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    sandbox: Path, inputs: TrainingInputs, tmp_path: Path, objective: str, changes: Any, words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words):
        train(objective, config_of(sandbox, tmp_path / "x", objective, **changes), inputs)


def test_n_above_the_cached_samples_is_refused(
    sandbox: Path, inputs: TrainingInputs, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="32 cached samples where 64 are needed"):
        train("bon-sft", config_of(sandbox, tmp_path / "x", "bon-sft", num_samples=64), inputs)


def test_vbon_takes_an_n_above_the_cached_samples(
    sandbox: Path, inputs: TrainingInputs, tmp_path: Path
) -> None:
    """Live caches have prompts with few samples: of modes that stop early, or of a smaller N than now."""
    run = train("vbon", config_of(sandbox, tmp_path / "x", "vbon", num_samples=64, steps=1), inputs)
    assert run.cost["steps"] == 1


def test_stored_log_p_is_what_the_reference_says(sandbox: Path, inputs: TrainingInputs) -> None:
    """Stored values of cached samples equal those of a forward pass of each sample alone."""
    from training.train.reference_logprobs import ensure_reference_logprobs

    revision = inputs.fingerprints["policy_revision"]
    ensure_reference_logprobs(
        inputs.cache, inputs.reference, inputs.tokenizer, revision=revision, temperature=1.0
    )
    stored = inputs.cache.ref_logprob(2)
    assert stored is not None
    for index in (0, 7, 31):
        rollout: Rollout = rollout_of(
            [inputs.cache.prompt_ids(2)], [inputs.cache.response(2, index)], inputs.tokenizer,
            torch.device("cpu"),
        )  # fmt: skip
        with torch.no_grad():
            alone = logprobs_of(Predictor(inputs.reference), rollout)
        assert float(alone.sum()) == pytest.approx(stored[index], abs=1e-3)


def sweep_config(sandbox: Path, out: Path, **changes: Any) -> SweepConfig:
    values = {
        "policy": str(sandbox / "policy"), "reward": str(sandbox / "reward"),
        "gold": str(sandbox / "gold"), "cache": sandbox / "cache.jsonl",
        "heldout": sandbox / "prompts" / "heldout.jsonl", "out": out, "max_new_tokens": 12,
        "steps": 3, "prompts_per_step": 4, "samples_per_prompt": 4, "seeds": [0, 1],
        "reference_samples": 16, "policy_samples": 4, "title": "tiny",
        "grid": ["vbon: num_samples=2 4; warm_start_steps=1", "dpo: beta=0.3"],
    }  # fmt: skip
    return SweepConfig(**(values | changes))


def test_a_sweep_writes_a_record_a_cell_resumes_and_reports(
    sandbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "sweep"
    run_sweep(sweep_config(sandbox, out))
    records = sorted((out / "cells").glob("*/record.json"))
    assert len(records) == 6
    for path in records:
        record = json.loads(path.read_text())
        assert record["status"] == "ok"
        assert record["row"]["gold"]["count"] == 5
        assert record["best_of_tuned"]["n"] == 4
        assert record["cost"]["cached_samples"] == 6 * 32
        check_checkpoint(str(out / record["checkpoint"]), "causal-lm")
    untouched = {path: path.stat().st_mtime_ns for path in records}
    shutil.rmtree(records[0].parent)
    run_sweep(sweep_config(sandbox, out))  # only the missing cell is trained
    assert {p for p in records if p.stat().st_mtime_ns != untouched[p]} == {records[0]}
    write_report(ReportConfig(sweeps=[out], out=tmp_path / "report"))
    page = (tmp_path / "report" / "report.html").read_text()
    assert "tiny" in page
    assert "dpo" in page


def test_a_search_chooses_on_other_prompts_than_it_reports(sandbox: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    grid = ["bon-sft: num_samples=2 4; learning_rate=1e-3", "kl-rl: beta=1 2; learning_rate=1e-3"]
    settings = {
        "validation": sandbox / "prompts" / "validation.jsonl", "grid": grid, "targets": [4],
        "keep_checkpoints": False,
    }  # fmt: skip
    run_sweep(sweep_config(sandbox, out, seeds=[0], **settings))
    searched = sorted(path.name for path in (out / "search" / "cells").iterdir())
    assert len(searched) == 4
    assert all(name.endswith("-seed=1000") for name in searched)
    reported = {path: path.stat().st_mtime_ns for path in (out / "cells").glob("*/record.json")}
    assert len(reported) == 2
    heldout = sandbox / "prompts" / "heldout.jsonl"
    for path in reported:
        record = json.loads(path.read_text())
        assert record["config"]["heldout"] == str(heldout)
        # kl-rl takes its prompts from the cache and nothing else.
        reads = record["cell"]["objective"] == "bon-sft"
        assert record["cost"]["cached_samples"] == (6 * 32 if reads else 0)
        assert record["cost"]["optimizer_updates"] == 3
        assert len(record["per_prompt"]["win_rate"]) == 5
    run_sweep(sweep_config(sandbox, out, **settings))  # one seed more
    assert len(list((out / "cells").glob("*/record.json"))) == 4
    assert all(path.stat().st_mtime_ns == before for path, before in reported.items())
    write_report(ReportConfig(sweeps=[out], out=tmp_path / "report"))
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Within the KL of best-of-4: Largest productive share" in text


def test_cells_that_diverge_or_fail_are_recorded_and_the_others_go_on(
    sandbox: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    grid = [
        "wild=kl-rl: beta=0.000001; learning_rate=0.5; max_kl=2; warmup_steps=0",
        "greedy=bon-sft: num_samples=64",
        "kl-rl: beta=1",
    ]
    with pytest.raises(DataError, match=r"1 of 3 cells failed.*greedy-num_samples=64-seed=0"):
        run_sweep(sweep_config(sandbox, out, grid=grid, seeds=[0], jobs=2, keep_checkpoints=False))
    found = {
        path.parent.name.split("-")[0]: json.loads(path.read_text())
        for path in (out / "cells").glob("*/record.json")
    }
    assert {name: record["status"] for name, record in found.items()} == {
        "wild": "diverged", "greedy": "failed", "kl": "ok",
    }  # fmt: skip
    assert "cached samples" in found["greedy"]["message"]
    assert "max-kl" in found["wild"]["message"]
    assert found["kl"]["checkpoint"] is None
    assert not list((out / "cells").rglob("*.safetensors"))
