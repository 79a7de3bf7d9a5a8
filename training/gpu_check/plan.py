"""Steps of the check: the command of each, its time limit, and the steps it needs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from training.gpu_check.config import GpuCheckConfig

Kind = Literal["prepare", "cache", "training", "evaluation"]
_FSDP = Path(__file__).resolve().parents[2] / "docs" / "accelerate-fsdp.yaml"


@dataclass(frozen=True, slots=True)
class CheckStep:
    """One step of the check.

    Attributes:
        name: short and unique; also the name of its output.
        title: what is measured, for the report.
        kind: tells which figures its output holds.
        words: the module to run and its arguments.
        limit_s: seconds after which it is stopped.
        needs: names of the steps whose output it reads.
        launcher: arguments of ``accelerate launch``, if it is launched so.
        absent: why it cannot run here, if it cannot.
    """

    name: str
    title: str
    kind: Kind
    words: tuple[str, ...]
    limit_s: float
    needs: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()
    absent: str = ""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of the work, which ``--tiny`` reduces."""

    sandbox: tuple[str, ...] = ()
    prompts: int = 64
    samples: int = 128
    tokens: int = 40
    speed_steps: int = 6
    speed_batch: tuple[int, int] = (32, 8)
    budget_steps: int = 250
    budget_batch: tuple[int, int] = (64, 8)
    evaluation: tuple[str, ...] = ("--reference-samples", "256", "--policy-samples", "64")
    num_samples: int = 16


FULL = Sizes()
TINY = Sizes(
    sandbox=(
        *("--num-reviews", "1200", "--policy-texts", "600", "--policy-hidden", "64"),
        *("--policy-layers", "1", "--train-prompts", "6", "--heldout-prompts", "5"),
        *("--max-length", "96"),
    ),
    prompts=6,
    samples=16,
    tokens=8,
    speed_steps=2,
    speed_batch=(2, 4),
    budget_steps=2,
    budget_batch=(2, 4),
    evaluation=("--reference-samples", "8", "--policy-samples", "4"),
    num_samples=4,
)


_HALF = ("--dtype", "bfloat16", "--frozen-dtype", "bfloat16")
# Short trainings that differ in one thing each: title, rank of the LoRA, and flags.
SPEED: dict[str, tuple[str, int | None, tuple[str, ...]]] = {
    "lora-bf16": ("LoRA of rank 16, bf16, frozen weights in bf16", 16, _HALF),
    "full-bf16": ("all weights, bf16", None, ("--dtype", "bfloat16")),
    "lora-fp32": ("LoRA of rank 16, float32", 16, ("--dtype", "float32")),
    "lora-checkpointing": (
        "LoRA of rank 16, bf16, with gradient checkpointing",
        16,
        (*_HALF, "--gradient-checkpointing"),
    ),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """The models and files that the steps read and write."""

    config: GpuCheckConfig

    @property
    def sizes(self) -> Sizes:
        """The sizes of the work."""
        return TINY if self.config.tiny else FULL

    def steps(self) -> list[CheckStep]:
        """All steps in order: what everything else needs first, then the most telling."""
        found = [
            *self._prepare(),
            *self._speed(),
            self._fsdp(),
            *self._budget(),
            *self._vllm(),
        ]
        # On a CPU, libraries are imported and engines started for minutes.
        return (
            [replace(step, limit_s=4 * step.limit_s) for step in found]
            if self.config.tiny
            else found
        )

    @property
    def policy(self) -> str:
        """The policy whose speed and memory are measured."""
        models = self.config.models
        return str(self._at("stand-in") if models is None else models / "policy")

    def output(self, step: str) -> Path:
        """The file or directory that a step writes."""
        return self._at("cache.jsonl" if step == "cache" else step)

    def _at(self, name: str) -> Path:
        return self.config.out / name

    def _model(self, name: str) -> str:
        models = self.config.models
        return str((self._at("sandbox") if models is None else models) / name)

    def _files(self) -> tuple[str, str]:
        """Prompt files to train on and to report on."""
        if self.config.models is None:
            prompts = self._at("sandbox") / "prompts"
            return str(prompts / "train.jsonl"), str(prompts / "heldout.jsonl")
        prompts = self._at("prompts")
        return str(prompts / "train.jsonl"), str(prompts / "test.jsonl")

    def _prepare(self) -> Iterator[CheckStep]:
        inputs: tuple[str, ...]
        if self.config.models is None:
            words = ("training", "sandbox", "--out", str(self._at("sandbox")), *self.sizes.sandbox)
            yield CheckStep("sandbox", "make the sandbox", "prepare", words, 150)
            shape = ("--tiny",) if self.config.tiny else ()
            words = ("training.gpu_check.stand_in", str(self._at("stand-in")), *shape)
            title = "make a policy of SmolLM2's shape with random weights"
            yield CheckStep("stand-in", title, "prepare", words, 60)
            inputs = ("sandbox", "stand-in")
        else:
            source = self.config.models / "prompts" / "openings.jsonl"
            words = ("training.gpu_check.prompts", str(source), str(self._at("prompts")))
            yield CheckStep("prompts", "split the prompts", "prepare", words, 30)
            inputs = ("prompts",)
        title = "sample the reward cache with transformers"
        words = self._sample(self.policy, self.output("cache"), "transformers")
        yield CheckStep("cache", title, "cache", words, 90, inputs)

    def _sample(self, policy: str, out: Path, backend: str) -> tuple[str, ...]:
        return (
            *("training", "sample", "--policy", policy, "--reward", self._model("reward")),
            *("--prompts", self._files()[0], "--num-samples", str(self.sizes.samples)),
            *("--max-new-tokens", str(self.sizes.tokens), "--backend", backend),
            *("--out", str(out)),
        )

    def _speed(self) -> Iterator[CheckStep]:
        for name, (title, rank, flags) in SPEED.items():
            words = self._train("vbon", name, self._short(), rank)
            yield CheckStep(name, title, "training", (*words, *flags), 60, ("cache",))

    def _short(self) -> tuple[str, ...]:
        """Settings of a run that only shows speed and memory."""
        prompts, samples = self.sizes.speed_batch
        return (
            *("--steps", str(self.sizes.speed_steps), "--warm-start-steps", "0"),
            *("--prompts-per-step", str(prompts), "--samples-per-prompt", str(samples)),
            *("--cache", str(self.output("cache")), "--policy", self.policy),
        )

    def _train(
        self, objective: str, name: str, settings: Sequence[str], rank: int | None
    ) -> tuple[str, ...]:
        strength = ("--num-samples", str(self.sizes.num_samples)) if objective == "vbon" else ()
        return (
            *("training", objective, "--out", str(self.output(name)), "--replace"),
            *("--reward", self._model("reward"), "--heldout", "none"),
            *("--max-new-tokens", str(self.sizes.tokens), "--checkpoint-every", "1000000"),
            *("--lora-rank", "none" if rank is None else str(rank)),
            *strength,
            *settings,
        )

    def _fsdp(self) -> CheckStep:
        """Full weights under FSDP in one process: sharding, gathering and export, without a second GPU."""
        engine = "transformers" if _no_vllm() else "vllm"
        words = self._train("vbon", "fsdp", (*self._short(), "--generation", engine), None)
        launcher = (
            *("--config_file", str(_FSDP), "--num_processes", "1"),
            *("--fsdp_transformer_layer_cls_to_wrap", self.config.layer_class),
        )
        absent = "accelerate has no FSDP on a CPU" if self.config.tiny else ""
        title = f"FSDP on one GPU, all weights, samples from {engine}"
        return CheckStep("fsdp", title, "training", words, 90, ("cache",), launcher, absent)

    def _budget(self) -> Iterator[CheckStep]:
        """vBoN and kl-rl from the reference with the same number of samples, and their evaluation.

        On the sandbox, whose policy has a meaning, if there is no real model.
        """
        own = self.config.models is None
        policy = self._model("policy")
        cache, needs = self.output("cache"), ("cache",)
        if own:
            cache, needs = self._at("sandbox.jsonl"), ("budget-cache",)
            title = "sample the sandbox's reward cache"
            words = self._sample(policy, cache, "transformers")
            yield CheckStep("budget-cache", title, "cache", words, 60, ("sandbox",))
        prompts, samples = self.sizes.budget_batch
        settings = (
            *("--steps", str(self.sizes.budget_steps), "--warm-start-steps", "0"),
            *("--prompts-per-step", str(prompts), "--samples-per-prompt", str(samples)),
            *("--policy", policy, "--cache", str(cache), "--gold", self._model("gold")),
            *("--learning-rate", "1e-4" if own else "5e-5"),
        )
        rank = None if own else 16
        flags = () if own else _HALF
        drawn = self.sizes.budget_steps * prompts * samples
        for objective in ("vbon", "kl-rl"):
            words = (*self._train(objective, f"budget-{objective}", settings, rank), *flags)
            title = f"{objective} from the reference, {drawn:,} samples"
            yield CheckStep(f"budget-{objective}", title, "training", words, 150, needs)
        made = ("budget-vbon", "budget-kl-rl")
        checkpoints = [
            word
            for name in made
            for word in ("--checkpoints", f"{name.removeprefix('budget-')}={self.output(name)}")
        ]
        words = (
            *("training", "evaluate", "--policy", policy, "--reward", self._model("reward")),
            *("--gold", self._model("gold"), "--prompts", self._files()[1], *checkpoints),
            *("--num-samples", str(self.sizes.num_samples), *self.sizes.evaluation),
            *("--max-new-tokens", str(self.sizes.tokens), "--out", str(self.output("evaluation"))),
        )
        title = "win rate and KL of both on test prompts"
        yield CheckStep("evaluation", title, "evaluation", words, 90, made)

    def _vllm(self) -> Iterator[CheckStep]:
        absent, needs = _no_vllm(), ("cache",)
        eager = ("--engine-args", '{"enforce_eager": true}') if self.config.tiny else ()
        words = (*self._sample(self.policy, self.output("cache-vllm.jsonl"), "vllm"), *eager)
        yield CheckStep(
            "vllm-cache",
            "sample the reward cache with vLLM",
            "cache",
            words,
            120,
            needs,
            (),
            absent,
        )
        settings = (*self._short(), "--generation", "vllm", *eager)
        words = self._train("vbon", "vllm-training", settings, 16)
        title = "LoRA of rank 16, bf16, samples from vLLM"
        yield CheckStep(
            "vllm-training", title, "training", (*words, *_HALF), 120, needs, (), absent
        )


def _no_vllm() -> str:
    return "" if find_spec("vllm") else "vLLM is not installed"


def chosen(steps: Sequence[CheckStep], only: Sequence[str]) -> list[CheckStep]:
    """The steps named, and those that they need, in order; all if none are named.

    Raises:
        ValueError: there is no step of a name.
    """
    by_name = {step.name: step for step in steps}
    unknown = [name for name in only if name not in by_name]
    if unknown:
        raise ValueError(f"there is no step {unknown[0]!r}; the steps are {', '.join(by_name)}")
    wanted, left = set[str](), list(only or by_name)
    while left:
        name = left.pop()
        wanted.add(name)
        left += [other for other in by_name[name].needs if other not in wanted]
    return [step for step in steps if step.name in wanted]


def command_of(step: CheckStep, record: Path) -> list[str]:
    """The whole command of a step, whose peak memory and time go to ``record``."""
    module, *arguments = step.words
    measured = ["-m", "training.gpu_check.measured", str(record), module, *arguments]
    if step.launcher:
        return [sys.executable, "-m", "accelerate.commands.launch", *step.launcher, *measured]
    return [sys.executable, *measured]
