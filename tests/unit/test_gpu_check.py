"""``scripts/gpu-check``: real commands, steps that end in time, and nothing measured is lost."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM, AutoTokenizer

from training.__main__ import STEPS
from training.gpu_check import measured, runner, stand_in
from training.gpu_check.__main__ import _check, _device
from training.gpu_check.config import GpuCheckConfig
from training.gpu_check.figures import figures_of
from training.gpu_check.plan import CheckStep, Plan, chosen, command_of
from training.gpu_check.prompts import split_file
from training.gpu_check.report import write_report
from training.gpu_check.runner import RESULTS, CheckRunner
from training.train.config import train_config_type
from training.train.size_defaults import expected_bytes
from vbon.config import load_settings
from vbon.errors import DataError
from vbon.prompt_files import read_prompt_file
from vbon.storage.checkpoints import check_checkpoint
from vbon.storage.model_shape import ModelShape


def plan_of(tmp_path: Path, **settings: Any) -> Plan:
    return Plan(GpuCheckConfig(out=tmp_path / "out", **settings))


def parsed(step: CheckStep) -> Any:
    """The settings that a step's command would read from its words."""
    _, name, *flags = step.words
    kind = STEPS[name].settings_type() if name in STEPS else train_config_type(name)
    return load_settings(kind, flags, program="x")


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("models", [None, Path("real-model")])
def test_every_command_is_one_of_the_project_and_reads_what_earlier_ones_write(
    tmp_path: Path, tiny: bool, models: Path | None
) -> None:
    plan = plan_of(tmp_path, tiny=tiny, models=models)
    steps = plan.steps()
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    written: dict[str, str] = {"sandbox": str(plan.output("sandbox"))}
    for place, step in enumerate(steps):
        assert set(step.needs) <= set(names[:place]), step.name
        if step.words[0] != "training":
            continue
        settings = parsed(step)
        written[step.name] = str(settings.out)
        if step.kind in ("training", "evaluation"):
            assert settings.out == plan.output(step.name)
        if step.kind == "training":
            assert str(settings.cache) in {written[name] for name in step.needs}
            assert settings.prompts_per_step * settings.samples_per_prompt >= 8
        if step.kind == "evaluation":
            assert set(settings.checkpoints.values()) == {written[name] for name in step.needs}
    by_name = {step.name: step for step in steps}
    vbon, kl_rl = (parsed(by_name[name]) for name in ("budget-vbon", "budget-kl-rl"))
    same = ("steps", "prompts_per_step", "samples_per_prompt", "learning_rate", "cache", "policy")
    assert [getattr(vbon, name) for name in same] == [getattr(kl_rl, name) for name in same]
    assert vbon.warm_start_steps == kl_rl.warm_start_steps == 0
    assert sum(step.limit_s for step in steps[:4]) < (2400 if tiny else 600)


def test_steps_are_chosen_with_what_they_need(tmp_path: Path) -> None:
    steps = plan_of(tmp_path).steps()
    assert [step.name for step in chosen(steps, [])] == [step.name for step in steps]
    found = [step.name for step in chosen(steps, ["evaluation"])]
    assert found == ["sandbox", "budget-cache", "budget-vbon", "budget-kl-rl", "evaluation"]
    with pytest.raises(ValueError, match="no step 'misspelt'; the steps are sandbox, stand-in"):
        chosen(steps, ["misspelt"])


def test_a_launched_step_wraps_the_layer_of_the_policy(tmp_path: Path) -> None:
    from accelerate.commands.launch import launch_command_parser

    plan = plan_of(tmp_path, layer_class="Qwen2DecoderLayer")
    step = next(step for step in plan.steps() if step.name == "fsdp")
    words = command_of(step, tmp_path / "record.json")
    assert words[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    launched = launch_command_parser().parse_args(words[3:])
    assert launched.num_processes == 1
    assert launched.fsdp_transformer_layer_cls_to_wrap == "Qwen2DecoderLayer"
    assert launched.training_script == "training.gpu_check.measured"
    assert launched.training_script_args[1:3] == ["training", "vbon"]


Make = Callable[..., CheckRunner]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A runner of steps whose words are a shell's."""

    def shell(step: CheckStep, record: Path) -> list[str]:
        return ["sh", "-c", step.words[0].replace("RECORD", str(record))]

    monkeypatch.setattr(runner, "command_of", shell)

    def made(seconds: float = 60, revision: str = "a") -> CheckRunner:
        settings = {"config": {"tiny": True}, "git_revision": revision}
        seen: list[Any] = []
        return CheckRunner(
            tmp_path, settings, seconds, lambda step, record: dict(record), seen.append
        )

    return made


def step_of(name: str, script: str, limit_s: float = 30, **settings: Any) -> CheckStep:
    return CheckStep(name, f"do {name}", "prepare", (script,), limit_s, **settings)


GOOD = """echo '{"seconds": 2}' > RECORD"""


def test_each_step_ends_in_its_own_way_and_the_rest_goes_on(make: Make, tmp_path: Path) -> None:
    steps = [
        step_of("good", GOOD),
        step_of("bad", "echo a reason; exit 3"),
        step_of("silent", "true"),
        step_of("after-bad", GOOD, needs=("good", "bad")),
        step_of("elsewhere", GOOD, absent="vLLM is not installed"),
        step_of("last", GOOD, needs=("good",)),
    ]
    results = make().run(steps)
    assert json.loads((tmp_path / RESULTS).read_text()) == results
    found = {name: (step["status"], step.get("reason")) for name, step in results["steps"].items()}
    assert found == {
        "good": ("done", None),
        "bad": ("failed", "a reason"),
        "silent": ("failed", ""),
        "after-bad": ("left out", "it needs bad"),
        "elsewhere": ("not here", "vLLM is not installed"),
        "last": ("done", None),
    }
    assert results["steps"]["good"]["figures"] == {"seconds": 2}


def test_a_step_is_stopped_at_its_limit_with_its_children(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_LEAST_S", 0.1)
    script = f"sleep 600 & echo $! > {tmp_path}/child; wait"
    results = make().run([step_of("slow", script, limit_s=0.5), step_of("next", GOOD)])
    assert results["steps"]["slow"]["status"] == "out of time"
    assert results["steps"]["next"]["status"] == "done"
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 60
    with suppress(psutil.NoSuchProcess):  # it has ended, and been waited for
        while psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_an_interrupted_check_keeps_what_it_measured_and_goes_on(
    make: Make, tmp_path: Path
) -> None:
    count = f"echo x >> {tmp_path}/count; {GOOD}"
    interrupted = make()
    outcome = interrupted._outcome

    def stopped(step: CheckStep) -> dict[str, Any]:
        if step.name == "second":
            raise KeyboardInterrupt
        return outcome(step)

    interrupted._outcome = stopped  # type: ignore[method-assign]
    steps = [step_of("first", count), step_of("second", GOOD)]
    with pytest.raises(KeyboardInterrupt):
        interrupted.run(steps)
    assert list(json.loads((tmp_path / RESULTS).read_text())["steps"]) == ["first"]
    assert list(make().run(steps)["steps"]) == ["first", "second"]
    assert (tmp_path / "count").read_text() == "x\n"
    make(revision="b").run(steps)  # of other code, nothing is kept
    assert (tmp_path / "count").read_text() == "x\nx\n"


def test_no_step_begins_without_time(make: Make) -> None:
    results = make(seconds=0).run([step_of("late", GOOD)])
    assert results["steps"]["late"]["status"] == "left out"
    assert "run the check again to go on" in results["steps"]["late"]["reason"]


def history(*seconds: float) -> list[dict[str, Any]]:
    return [
        {
            "loss": 1.0 - number, "kl_nats": 0.1 * number, "grad_norm": 2.0, "log_cdf": None, "reward": 0.5,
            "sequences_trained": 16, "sample_s": 0.5 * s, "score_s": 0.25 * s, "learn_s": 0.25 * s,
        }
        for number, s in enumerate(seconds)
    ]  # fmt: skip


def test_figures_of_a_training(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, tiny=True)
    step = next(step for step in plan.steps() if step.name == "full-bf16")
    stand_in.make_stand_in(Path(plan.policy), stand_in.TINY)
    out = plan.output(step.name)
    out.mkdir(parents=True)
    rows = history(60.0, 2.0, 4.0, 8.0)
    (out / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {**parsed(step).model_dump(mode="json"), "micro_batch_size": 4}
    (out / "training.json").write_text(json.dumps({"config": settings}))
    found = figures_of(step, plan, {"seconds": 12.34, "peak_gpu_bytes": 30e6})
    assert found["samples_per_s"] == 4.0  # the median of 8, 4 and 2; the first step warms up
    assert (found["steps"], found["sampling_share"], found["seconds"]) == (4, 0.5, 12.3)
    assert found["first"] == {"loss": 1.0, "kl_nats": 0.0, "reward": 0.5, "grad_norm": 2.0}
    assert found["last"]["kl_nats"] == pytest.approx(0.3)
    # 20 bytes a parameter; a chunk of 1,310 distributions in 5 copies; activations of a layer in bf16.
    parameters = AutoModelForCausalLM.from_pretrained(plan.policy).num_parameters()
    expected = 20 * parameters + 5 * 4 * 1310 * 800 + 4 * 2 * 8 * 64 * 34
    assert found["arithmetic_gb"] == round(expected / 1e9, 2)
    assert found["of_arithmetic"] == round(30e6 / expected, 2)


def test_the_arithmetic_of_memory_is_that_of_the_page() -> None:
    """The one-GPU rows of docs/scale.md: a policy of 3 B in float32, LoRA of rank 16, B = 4, T = 256."""
    shape = ModelShape(3_000_000_000, 32, 4096, 128_000)
    config = train_config_type("kl-rl")(
        lora_rank=16, micro_batch_size=4, max_new_tokens=256, policy="p", reward="r"
    )
    chunk, activations = 5 * 4 * 128 * 128_000, 4 * 2 * 256 * 4096 * 2 * 34 * 32
    assert expected_bytes(shape, config) == 12e9 + chunk + activations


def test_figures_of_a_cache_and_of_an_evaluation(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, tiny=True)
    steps = {step.name: step for step in plan.steps()}
    plan.config.out.mkdir(parents=True)
    lines = [{"prompt": "a", "responses": ["x"] * 3}, {"prompt": "b", "responses": ["y"] * 3}]
    plan.output("cache").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = figures_of(steps["cache"], plan, {"seconds": 2.0, "peak_host_bytes": 5e8})
    assert found == {"seconds": 2.0, "peak_host_gb": 0.5, "samples": 6, "samples_per_s": 3.0}
    interval = {"mean": 0.8, "low": 0.7, "high": 0.9, "count": 4}
    rows = [
        {"method": "reference", "win_rate": None},
        {"method": "best-of-n", "n": 4, "win_rate": interval},
        {"method": "vbon", "win_rate": interval, "kl_nats": interval, "reward": interval},
    ]
    plan.output("evaluation").mkdir()
    (plan.output("evaluation") / "evaluation.json").write_text(json.dumps({"rows": rows}))
    found = figures_of(steps["evaluation"], plan, {"seconds": 1.0})
    assert found["vbon"] == {"win_rate": interval, "kl_nats": interval}
    assert "best-of-n" not in found


def test_the_report_shows_what_there_is(tmp_path: Path) -> None:
    interval = {"mean": 0.8, "low": 0.7, "high": 0.9, "count": 4}
    results = {
        "created": "2026-01-01", "git_revision": "abc", "versions": {"torch": "2"},
        "machine": {"system": "Linux", "device": "a GPU"},
        "steps": {
            "lora-bf16": {
                "title": "LoRA", "status": "done", "seconds": 9.0,
                "figures": {
                    "samples_per_s": 31.5, "peak_gpu_gb": 3.1, "arithmetic_gb": 3.0, "of_arithmetic": 1.03,
                    "first": {"loss": 1.0}, "last": {"loss": 0.5},
                },
            },
            "evaluation": {"title": "both", "status": "done", "figures": {"vbon": {"win_rate": interval}}},
            "fsdp": {"title": "FSDP", "status": "failed", "reason": "one | two\nthree"},
        },
    }  # fmt: skip
    write_report(tmp_path, results)
    rows = [line for line in (tmp_path / "results.md").read_text().splitlines() if line[:2] == "| "]
    assert rows[2] == (
        "| lora-bf16: LoRA | done | 9.0 | 31.5 | 3.1 | 1.03 of 3.0 GB | first loss 1; last loss 0.5 |"
    )
    assert rows[3].endswith("| vbon: win_rate 0.800 [0.700, 0.900] |")
    assert rows[4] == "| fsdp: FSDP | failed |  |  |  |  | one / two three |"


def test_time_and_memory_are_recorded_of_what_fails_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "falls_over.py").write_text(
        "import sys\nsys.exit(4 if sys.argv[1:] == ['x'] else 5)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["before"])
    with pytest.raises(SystemExit) as ended:
        measured.main([str(tmp_path / "record.json"), "falls_over", "x"])
    assert ended.value.code == 4
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["seconds"] > 0
    assert record["peak_host_bytes"] > 10**7


def test_the_stand_in_has_smollm2s_shape_and_a_word_for_every_id(tmp_path: Path) -> None:
    import torch

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(stand_in.SMOLLM2)
    assert model.num_parameters() == 134_515_008
    stand_in.make_stand_in(tmp_path / "tiny", stand_in.TINY)
    check_checkpoint(str(tmp_path / "tiny"), "causal-lm")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tiny")
    assert len(tokenizer) == stand_in.TINY.vocab_size
    assert all(isinstance(tokenizer.decode([number]), str) for number in range(len(tokenizer)))
    assert tokenizer.decode([len(tokenizer) - 1]) == f" word{len(tokenizer) - 1}"
    assert (
        tokenizer.decode(tokenizer("the film", add_special_tokens=False)["input_ids"]) == "the film"
    )


def test_prompts_of_a_real_model_are_split(tmp_path: Path) -> None:
    file = tmp_path / "openings.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"p{i}"}) + "\n" for i in range(9)))
    split_file(file, tmp_path / "out")
    train, test = (
        [prompt.text for prompt in read_prompt_file(tmp_path / "out" / f"{part}.jsonl").prompts]
        for part in ("train", "test")
    )
    assert test == ["p0", "p4", "p8"]
    assert sorted([*train, *test]) == [f"p{i}" for i in range(9)]
    file.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    with pytest.raises(DataError, match="has 2 prompts, too few"):
        split_file(file, tmp_path / "out")


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        DataError, match=r"torch sees no GPU here; .* try the check itself with --tiny"
    ):
        _device(tiny=False)
    assert _device(tiny=True) == "CPU"


def test_progress_counts_the_chosen_steps_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps were done by an earlier check; of the four chosen, none is left."""
    shown: list[int] = []

    class Bar:
        def __init__(self, title: str, total: int) -> None:
            self.total = total

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            assert sum(shown) == self.total

        def advance(self, count: int, facts: str) -> None:
            shown.append(count)

    def shell(step: CheckStep, record: Path) -> list[str]:
        return ["sh", "-c", f"echo {{}} > {record}"]

    monkeypatch.setattr("vbon.progress_bar.ProgressBar", Bar)
    monkeypatch.setattr("training.gpu_check.figures.figures_of", lambda *_: {})
    monkeypatch.setattr(runner, "command_of", shell)
    plan = plan_of(tmp_path, tiny=True)
    for only in ([], ["lora-bf16"]):
        shown.clear()
        steps = chosen(plan.steps(), only)
        results = _check(plan.config, plan, steps)
        assert {"lora-bf16", "evaluation"} <= results["steps"].keys()
    assert shown == [4]
