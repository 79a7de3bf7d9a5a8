"""Typed settings of every training command. Importing this imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, field_validator, model_validator

from vbon.config import NoneWord, Settings

POLICY = Field("sandbox/policy", description="reference policy: a directory or hf://org/name")
REWARD = Field(
    "sandbox/reward",
    description="reward model: a one-logit classifier directory, python:module:function or a URL",
)
TRAIN_PROMPTS = Field(
    Path("sandbox/prompts/train.jsonl"), description='prompts: JSONL with "prompt", or one a line'
)
HELDOUT_PROMPTS = Field(
    Path("sandbox/prompts/heldout.jsonl"), description="prompts kept aside, same forms"
)
REPLACE = Field(
    False,
    description="if the output was made with other settings, make it again instead of refusing",
)
TRUST = Field(False, description="let checkpoints bring their own code")


class SandboxConfig(Settings):
    """Make a policy, a reward model and a held-out gold reward model from nothing, in minutes.

    Without --corpus the text is the embedded synthetic movie reviews; with it, your own labelled
    text: FILE=1 or FILE=0 (one text a line, all of that label; a .pos or .neg ending needs no =),
    or JSONL with "text" and "label", or CSV/TSV with a header of those names.
    """

    out: Path = Field(Path("sandbox"), description="directory to make")
    corpus: list[str] = Field([], description="labelled text files; repeat for several")
    encoding: str | None = Field(None, description="of --corpus; default UTF-8, then Latin-1")
    seed: int = Field(0, ge=0, description="same seed, same sandbox")
    num_reviews: int = Field(
        24_000, ge=1000, description="synthetic reviews to write (without --corpus)"
    )
    policy_texts: int = Field(
        12_000, ge=100, description="texts the policy reads per epoch, at most"
    )
    policy_epochs: float | None = Field(
        None, gt=0, description="default: enough to read about policy_texts x 1.5 texts"
    )
    policy_hidden: int = Field(192, ge=64, multiple_of=64, description="policy width")
    policy_layers: int = Field(3, ge=1, description="policy depth")
    vocab_size: int = Field(4096, ge=300, description="most entries of the byte-level BPE")
    max_length: int = Field(128, ge=32, description="context of all three models, tokens")
    train_prompts: int = Field(64, ge=1, description="openings to train on")
    heldout_prompts: int = Field(64, ge=1, description="openings kept aside for evaluation")
    replace: bool = REPLACE


class SampleConfig(Settings):
    """Draw M reference completions a prompt, score them, write the reward cache (JSONL, resumable)."""

    policy: str = POLICY
    reward: str = REWARD
    prompts: Path = TRAIN_PROMPTS
    out: Path = Field(Path("sandbox/cache.jsonl"), description="reward cache to write")
    num_samples: int = Field(256, ge=2, description="M, samples a prompt; several times N")
    max_new_tokens: int = Field(40, ge=1, description="most tokens of a completion")
    temperature: float = Field(1.0, gt=0, le=10, description="of the reference policy")
    seed: int = Field(0, ge=0, description="makes the samples repeatable")
    backend: Literal["vllm", "transformers"] = Field(
        "vllm", description="what generates; transformers where vLLM is not installed"
    )
    concurrency: int = Field(4, ge=1, description="prompts in the engine at once (vllm)")
    reward_batch_size: int = Field(64, ge=1, description="texts scored in one forward pass")
    dtype: str = Field("auto", description="weights' type")
    replace: bool = REPLACE
    trust_remote_code: bool = TRUST


GOLD = Field(
    None, description="held-out gold reward model, never trained on; reported beside the proxy"
)


class TrainConfig(Settings):
    """What every objective's command shares; each adds its own settings."""

    policy: str = POLICY
    reward: str = REWARD
    gold: Annotated[str | None, NoneWord] = GOLD
    cache: Path = Field(Path("sandbox/cache.jsonl"), description="reward cache made by `sample`")
    heldout: Annotated[Path | None, NoneWord] = Field(
        Path("sandbox/prompts/heldout.jsonl"),
        description="held-out prompts for the metrics on the card; `none` skips them",
    )
    out: Path = Field(Path("sandbox/tuned"), description="checkpoint directory to write")
    steps: int = Field(40, ge=1, description="optimizer steps after the warm start")
    prompts_per_step: int = Field(32, ge=1, description="prompts of each step, over all processes")
    samples_per_prompt: int = Field(
        8, ge=1, description="samples of each, drawn or cached; baselines leave one out"
    )
    micro_batch_size: int = Field(
        256, ge=2, description="sequences per backward pass and process; gradients accumulate"
    )
    max_new_tokens: int = Field(40, ge=1, description="as the cache was sampled")
    temperature: float = Field(1.0, gt=0, le=10, description="as the cache was sampled")
    learning_rate: float | None = Field(
        None, gt=0, description="peak of the main steps; default: what suits the objective"
    )
    warmup_steps: int = Field(3, ge=0, description="linear steps to the peak; linear decay after")
    warm_start_steps: int = Field(
        0, ge=0, description="steps before that imitate cached bests of N (forward KL, as bon-sft)"
    )
    warm_start_num_samples: int = Field(
        16, ge=2, description="N of the warm start where the objective has none of its own"
    )
    warm_start_learning_rate: float = Field(8e-4, gt=0, description="peak of the warm start")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping")
    max_kl: float = Field(
        50.0, gt=0, description="nats from the reference beyond which a run counts as diverged"
    )
    lora_rank: int | None = Field(
        None, ge=1, description="train a LoRA of this rank, merged on export"
    )
    lora_alpha: int = Field(32, ge=1, description="LoRA scale: alpha / rank")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="type to run in; weights stay float32 in training"
    )
    frozen_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="type of frozen weights, the reference's and a LoRA's base; bfloat16 halves them",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: slower, far less memory"
    )
    generation: Literal["transformers", "vllm"] = Field(
        "transformers", description="what draws the policy's samples; vllm for large policies"
    )
    generation_gpu_memory: float = Field(
        0.3, gt=0, lt=1, description="share of a GPU's memory for vLLM's weights and KV cache"
    )
    seed: int = Field(0, ge=0, description="same seed, same machine: same checkpoint")
    checkpoint_every: int = Field(10, ge=1, description="steps between resumable states")
    replace: bool = REPLACE
    reward_batch_size: int = Field(64, ge=1, description="texts scored in one forward pass")
    trust_remote_code: bool = TRUST


# What else an evaluation has figures or revisions of.
_OWN_NAMES = {"reference", "best-of-n", "reward", "gold"}


class EvaluateConfig(Settings):
    """Held-out prompts: reference against best-of-n (every n) against tuned checkpoints.

    Prints a table, writes evaluation.json and the (KL, win rate) and (KL, reward) frontier.
    """

    policy: str = POLICY
    checkpoints: dict[str, str] = Field(
        default={"vbon": "sandbox/vbon"}, description="NAME=DIR; repeat for several"
    )
    reward: str = REWARD
    gold: Annotated[str | None, NoneWord] = Field(
        "sandbox/gold", description="held-out reward model; `none` for none"
    )
    prompts: Path = HELDOUT_PROMPTS
    out: Path = Field(Path("sandbox/evaluation"), description="directory for JSON and plots")
    num_samples: int = Field(16, ge=2, description="N to point out among the n of the curve")
    reference_samples: int = Field(256, ge=4, description="M reference samples a prompt")
    policy_samples: int = Field(64, ge=1, description="samples a prompt of each checkpoint")
    max_new_tokens: int = Field(40, ge=1, description="as trained")
    temperature: float = Field(1.0, gt=0, le=10, description="as trained")
    batch_size: int = Field(512, ge=1, description="sequences generated at once")
    reward_batch_size: int = Field(64, ge=1, description="texts scored in one forward pass")
    seed: int = Field(1, ge=0, description="makes the samples repeatable")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="type to run in")
    trust_remote_code: bool = TRUST

    @field_validator("checkpoints")
    @classmethod
    def _names_apart(cls, checkpoints: dict[str, str]) -> dict[str, str]:
        taken = sorted(_OWN_NAMES & checkpoints.keys())
        if taken:
            raise ValueError(
                f"{', '.join(taken)} already names a part of the evaluation; call the checkpoint "
                "something else"
            )
        return checkpoints

    @model_validator(mode="after")
    def _enough_samples(self) -> EvaluateConfig:
        if self.reference_samples <= self.num_samples:
            raise ValueError(
                f"reference_samples {self.reference_samples} must be above num_samples "
                f"{self.num_samples}: best-of-N needs N of them and one opponent"
            )
        return self


# Every published way on the sandbox; `--grid` replaces the whole list.
DEFAULT_GRID = [
    "vbon: num_samples=2 4 8 16",
    "kl-rl: beta=0.1 0.2 0.4 0.8",
    "dpo: beta=0.05 0.1 0.3 1",
    "bon-sft: num_samples=2 4 8 16",
    "bonbon: num_samples=2 4 8 16",
    "j-bond: anchor_rate=0.02 0.05 0.1 0.2",
    "bond: num_samples=4 16",
    "wind: beta=0.05 0.1",
    "bon-aware-sft: num_samples=2 4",
    "bon-aware-rl: num_samples=2 4",
    "qrpo: beta=0.05 0.1",
]


class SweepConfig(TrainConfig):
    """Objectives x N (or beta) x seeds from the same policy, reward, prompts and budget.

    One record a cell, resumable cell by cell; `report` draws them. A grid entry is
    'NAME: PARAMETER=V1 V2 ...' or, for a variant,
    'NAME=OBJECTIVE: PARAMETER=V1 V2 ...; SETTING=VALUE; ...' with any setting of the objective's command.
    """

    out: Path = Field(Path("runs/sweep"), description="directory of the sweep")
    title: str = Field("sandbox", description="what the report calls it")
    steps: int = Field(70, ge=1, description="optimizer steps of each cell, a warm start included")
    grid: list[str] = Field(DEFAULT_GRID, description="what to train; repeat for several")
    seeds: list[int] = Field([0, 1, 2], description="training seeds of each cell; repeat")
    jobs: int = Field(1, ge=1, description="cells trained at once, each in a process of its own")
    heldout_prompts: int = Field(64, ge=2, description="held-out prompts to measure on, at most")
    reference_samples: int = Field(128, ge=8, description="reference samples a held-out prompt")
    policy_samples: int = Field(32, ge=4, description="samples a held-out prompt of each cell")
    keep_checkpoints: bool = Field(True, description="keep each cell's checkpoint, ready to serve")


class ReportConfig(Settings):
    """Frontier plots, Pareto shares, efficiency and cost of one or several sweeps, as one HTML page."""

    sweeps: list[Path] = Field([Path("runs/sweep")], description="sweep directories; repeat")
    out: Path = Field(Path("runs/report"), description="directory for the page, plots and tables")


class BenchConfig(Settings):
    """Samples trained a second by this trainer (kl-rl) and by TRL's RLOOTrainer: same batch, same run.

    Repeats of the two alternate; the ratio is the median [smallest, largest] over pairs. Needs `trl`.
    """

    policy: str = POLICY
    reward: str = REWARD
    cache: Path = Field(Path("sandbox/cache.jsonl"), description="reward cache made by `sample`")
    steps: int = Field(6, ge=2, description="optimizer steps of a repeat; the first is left out")
    repeats: int = Field(3, ge=1, description="repeats of each side")
    prompts_per_step: int = Field(32, ge=1, description="prompts of each step")
    samples_per_prompt: int = Field(8, ge=2, description="samples of each")
    max_new_tokens: int = Field(40, ge=1, description="as the cache was sampled")
    temperature: float = Field(1.0, gt=0, le=10, description="as the cache was sampled")
    beta: float = Field(0.1, gt=0, description="weight of the KL, in units of reward a nat")
    learning_rate: float = Field(1e-4, gt=0, description="at the first step; linear decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="type to run in")
    seed: int = Field(0, ge=0, description="of the first repeat; each takes the next")
    reward_batch_size: int = Field(64, ge=1, description="texts scored in one forward pass")
    json_file: Path | None = Field(
        None,
        validation_alias=AliasChoices("json", "json_file"),
        description="write every step's figures, with provenance",
    )
    trust_remote_code: bool = TRUST
