"""Typed settings of every training command. Importing this imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    FiniteFloat,
    field_validator,
    model_validator,
)

from training.objectives import DEFAULT_GRID
from vbon.config import PROMPT_FILE, FileEncoding, NoneWord, OptionGroups, PromptColumn, Settings
from vbon.engine.protocol import LEAST_TEMPERATURE, MOST_TEMPERATURE
from vbon.engine.vllm.engine_args import (
    OWNED_BY_GENERATION,
    OWNED_BY_SAMPLE,
    parse_values,
    refuse_owned,
)
from vbon.storage.evaluation_record import POLICY_SAMPLES, REFERENCE_SAMPLES

POLICY = Field("sandbox/policy", description="reference policy: a directory, or hf://org/name")
REWARD = Field(
    "sandbox/reward",
    description="reward model: the directory of a one-logit classifier (with-eos:DIR if it was trained "
    "with EOS after each text), python:module:function, python:./file.py:function, a URL, or "
    "SCHEME:ARGUMENT of a plug-in",
)
TRAIN_PROMPTS = Field(
    Path("sandbox/prompts/train.jsonl"),
    description=f"file of prompts: {PROMPT_FILE}",
)
HELDOUT_PROMPTS = Field(
    Path("sandbox/prompts/heldout.jsonl"),
    description="file of prompts kept aside for evaluation, in the forms of `vbon sample`",
)
REPLACE = Field(
    False,
    description="make the output again if it was made with other settings, instead of refusing",
)
TRUST = Field(False, description="let checkpoints run their own code")
# Left out of records where it is not given, so that outputs made before this setting existed still count.
EngineArgs = Annotated[
    dict[str, Any] | None,
    BeforeValidator(parse_values),
    Field(
        exclude_if=lambda args: not args,
        description='further vLLM engine arguments, as JSON: {"max_num_batched_tokens": 8192}',
    ),
]

# Left out of records where it is not given, for the same reason.
MissingEosReward = Annotated[
    FiniteFloat | None,
    NoneWord,
    Field(
        exclude_if=lambda reward: reward is None,
        description="reward of a sample that the token limit cuts off, in place of the reward model's; "
        "default: it is scored like the others",
    ),
]


def _check_engine_args(
    args: dict[str, Any] | None, owned: dict[str, str], uses_vllm: bool, flag: str
) -> None:
    if args and not uses_vllm:
        raise ValueError(f"engine_args are for vLLM; add {flag} vllm or leave them out")
    refuse_owned(args or {}, owned)


def _check_vllm_temperature(temperature: float, flag: str) -> None:
    """Reject temperatures at which vLLM would fail, or would sample at another one than the record says."""
    if not LEAST_TEMPERATURE <= temperature <= MOST_TEMPERATURE:
        raise ValueError(
            f"temperature is {temperature:g}; vLLM samples at {LEAST_TEMPERATURE:g} to "
            f"{MOST_TEMPERATURE:g}; change it, or use {flag} transformers"
        )


WORKER_CPUS = Field(
    1.0, ge=0, description="CPUs that a Ray worker takes; its models use as many threads"
)
WORKER_GPUS = Field(0.0, ge=0, description="GPUs that a Ray worker takes")
_RAY_SETTINGS = ("worker_backend", "workers", "worker_cpus", "worker_gpus", "shard_prompts")


def _check_ray_settings(config: Settings, uses_ray: bool) -> None:
    """Reject settings of Ray's workers where there are none."""
    given = [name for name in _RAY_SETTINGS if name in config.model_fields_set]
    if given and not uses_ray:
        raise ValueError(f"{given[0]} is for Ray's workers; add --backend ray or leave it out")


class SandboxConfig(Settings):
    """Make a policy, a reward model and a held-out gold reward model from nothing, in minutes.

    Without --corpus the text is synthetic movie reviews. With it, the text is your own and labelled:
    FILE=1 or FILE=0 (one text a line, all with that label; files that end in .pos or .neg need no =), or
    records with "text" and "label": JSON, JSON lines, CSV or TSV with a header, Parquet, a dataset directory.

    Examples:
      vbon sandbox
      vbon sandbox --corpus liked.txt=1 --corpus disliked.txt=0 --out mine
    """

    option_groups: ClassVar[OptionGroups] = {
        "Text": ("corpus", "encoding", "num_reviews", "train_prompts", "heldout_prompts"),
        "Models": (
            "policy_texts",
            "policy_epochs",
            "policy_hidden",
            "policy_layers",
            "vocab_size",
            "max_length",
        ),
        "Run": ("out", "seed", "jobs", "replace"),
    }

    out: Path = Field(Path("sandbox"), description="directory to make")
    corpus: list[str] = Field(
        [], description="labelled text files to use instead of synthetic reviews"
    )
    encoding: str | None = Field(
        None,
        description="encoding of --corpus, such as latin-1; default: that of its byte order mark, or UTF-8",
    )
    seed: int = Field(0, ge=0, description="seed of everything that is made")
    num_reviews: int = Field(
        24_000, ge=1000, description="synthetic reviews to write (without --corpus)"
    )
    policy_texts: int = Field(
        12_000, ge=100, description="texts that the policy reads per epoch, at most"
    )
    policy_epochs: float | None = Field(
        None,
        gt=0,
        description="epochs of the policy; default: enough to read about policy_texts x 1.5 texts",
    )
    policy_hidden: int = Field(192, ge=64, multiple_of=64, description="width of the policy")
    policy_layers: int = Field(3, ge=1, description="layers of the policy")
    vocab_size: int = Field(
        4096, ge=300, description="entries of the byte-level BPE vocabulary, at most"
    )
    max_length: int = Field(128, ge=32, description="context of all three models, tokens")
    train_prompts: int = Field(64, ge=1, description="openings to train on")
    heldout_prompts: int = Field(64, ge=1, description="openings kept aside for evaluation")
    jobs: int = Field(
        1,
        ge=1,
        description="models trained at once, each in its own process with its share of the cores",
    )
    replace: bool = REPLACE


class SampleConfig(Settings):
    """Draw and score M reference completions of each prompt, and write them to the reward cache.

    The cache is a file of JSON lines. A run that was killed goes on when the same command is given again.

    With --backend ray, the workers of a Ray cluster draw and score: the one at RAY_ADDRESS, or one of this
    machine alone. Each takes shards of prompts; one that dies costs its shard, which is drawn again. Models
    must be at the same paths on all machines; the cache is written here.

    Examples:
      vbon sample --policy DIR --reward DIR --prompts prompts.jsonl --out cache.jsonl
      RAY_ADDRESS=head:6379 vbon sample --backend ray --worker-gpus 1 --policy DIR --reward DIR
    """

    option_groups: ClassVar[OptionGroups] = {
        "Inputs and output": (
            "policy",
            "reward",
            "prompts",
            "prompt_column",
            "encoding",
            "out",
            "replace",
        ),
        "Sampling": ("num_samples", "max_new_tokens", "temperature", "missing_eos_reward", "seed"),
        "Engine": (
            "backend",
            "concurrency",
            "reward_batch_size",
            "dtype",
            "engine_args",
            "trust_remote_code",
        ),
        "Ray": ("worker_backend", "workers", "worker_cpus", "worker_gpus", "shard_prompts"),
    }

    policy: str = POLICY
    reward: str = REWARD
    prompts: Path = TRAIN_PROMPTS
    prompt_column: PromptColumn = None
    encoding: FileEncoding = None
    out: Path = Field(Path("sandbox/cache.jsonl"), description="reward cache to write")
    num_samples: int = Field(
        256, ge=2, description="M, samples per prompt; take several times the N of best-of-N"
    )
    max_new_tokens: int = Field(40, ge=1, description="new tokens of a completion, at most")
    temperature: float = Field(
        1.0, gt=0, le=10, description="sampling temperature of the reference policy"
    )
    missing_eos_reward: MissingEosReward = None
    seed: int = Field(0, ge=0, description="seed that makes the samples repeatable")
    backend: Literal["vllm", "transformers", "ray"] = Field(
        "vllm",
        description="engine that samples; transformers where vLLM is not installed; ray: the workers of a "
        "Ray cluster",
    )
    concurrency: int = Field(4, ge=1, description="prompts in the engine at once (vllm)")
    reward_batch_size: int = Field(64, ge=1, description="texts scored in one forward pass")
    dtype: str = Field("auto", description="type of the weights")
    engine_args: EngineArgs = None
    replace: bool = REPLACE
    trust_remote_code: bool = TRUST
    worker_backend: Literal["vllm", "transformers"] = Field(
        "vllm", description="engine that samples in each worker"
    )
    workers: int | None = Field(
        None, ge=1, description="workers; default: as many as the cluster has room for"
    )
    worker_cpus: float = WORKER_CPUS
    worker_gpus: float = WORKER_GPUS
    shard_prompts: int = Field(
        8, ge=1, description="prompts of a shard; a worker that dies costs the work on one"
    )

    @property
    def sampler(self) -> Literal["vllm", "transformers"]:
        """The engine that draws the samples, here or in Ray's workers."""
        return self.worker_backend if self.backend == "ray" else self.backend

    @model_validator(mode="after")
    def _engine_args_that_count(self) -> SampleConfig:
        flag = "--worker-backend" if self.backend == "ray" else "--backend"
        _check_engine_args(self.engine_args, OWNED_BY_SAMPLE, self.sampler == "vllm", flag)
        if self.sampler == "vllm":
            _check_vllm_temperature(self.temperature, flag)
        _check_ray_settings(self, self.backend == "ray")
        return self


GOLD = Field(None, description="held-out gold reward model; it is never trained on, only reported")


class TrainConfig(Settings):
    """Settings that all objectives share; each objective adds its own."""

    option_groups: ClassVar[OptionGroups] = {
        "Inputs and output": (
            "policy",
            "initial",
            "reward",
            "gold",
            "cache",
            "heldout",
            "prompt_column",
            "encoding",
            "out",
            "replace",
        ),
        "Steps": ("steps", "prompts_per_step", "samples_per_prompt", "micro_batch_size", "seed"),
        "Sampling": (
            "max_new_tokens",
            "temperature",
            "missing_eos_reward",
            "generation",
            "generation_gpu_memory",
            "engine_args",
        ),
        "Optimizer": ("learning_rate", "warmup_steps", "max_grad_norm", "max_kl"),
        "Warm start": ("warm_start_steps", "warm_start_num_samples", "warm_start_learning_rate"),
        "Weights and memory": (
            "lora_rank",
            "lora_alpha",
            "dtype",
            "frozen_dtype",
            "gradient_checkpointing",
            "reward_batch_size",
            "checkpoint_every",
            "trust_remote_code",
        ),
    }

    policy: str = POLICY
    reward: str = REWARD
    gold: Annotated[str | None, NoneWord] = GOLD
    cache: Path = Field(
        Path("sandbox/cache.jsonl"), description="reward cache made by `vbon sample`"
    )
    heldout: Annotated[Path | None, NoneWord] = Field(
        Path("sandbox/prompts/heldout.jsonl"),
        description="file of held-out prompts for the metrics on the model card, in the forms of `vbon "
        "sample`; `none` skips them, captured nats too",
    )
    prompt_column: PromptColumn = None
    encoding: FileEncoding = None
    initial: Annotated[str | None, NoneWord] = Field(
        None,
        exclude_if=lambda initial: initial is None,
        description="checkpoint whose weights the training begins with, such as an earlier run's; the KL "
        "stays that from --policy; default: the weights of --policy",
    )
    out: Path = Field(Path("sandbox/tuned"), description="directory of the checkpoint")
    steps: int = Field(40, ge=1, description="optimizer steps after the warm start")
    prompts_per_step: int = Field(32, ge=1, description="prompts of each step, over all processes")
    samples_per_prompt: int = Field(
        8, ge=1, description="samples of each prompt, drawn or cached; baselines leave one out"
    )
    micro_batch_size: int = Field(
        256,
        ge=2,
        description="sequences per backward pass and process; gradients accumulate; for a policy of 20 "
        "million parameters or more, as many as fit in memory by default",
    )
    max_new_tokens: int = Field(
        40, ge=1, description="new tokens of a completion, at most; as in the cache"
    )
    temperature: float = Field(
        1.0, gt=0, le=10, description="sampling temperature, as in the cache"
    )
    missing_eos_reward: MissingEosReward = None
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="highest learning rate of the main steps; default: one that suits the objective "
        "and the size of the policy",
    )
    warmup_steps: int = Field(
        3,
        ge=0,
        description="steps in which the learning rate rises linearly; it falls linearly after",
    )
    warm_start_steps: int = Field(
        0,
        ge=0,
        description="steps before the main ones that imitate cached best-of-N answers (forward KL, as "
        "bon-sft)",
    )
    warm_start_num_samples: int = Field(
        16, ge=2, description="N of the warm start where the objective has none of its own"
    )
    warm_start_learning_rate: float = Field(
        8e-4,
        gt=0,
        description="highest learning rate of the warm start; from 20 million parameters on, by size",
    )
    max_grad_norm: float = Field(1.0, gt=0, description="norm to which gradients are clipped")
    max_kl: float = Field(
        50.0,
        gt=0,
        description="KL from the reference, nats, beyond which a run counts as diverged; 20 from 20 million "
        "parameters on",
    )
    lora_rank: Annotated[int | None, NoneWord] = Field(
        None,
        ge=1,
        description="rank of a LoRA to train, merged on export; default: 16 if the policy has 20 million "
        "parameters or more; `none` trains all weights",
    )
    lora_alpha: int = Field(32, ge=1, description="scale of the LoRA: alpha / rank")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="type of the computation; trained weights stay float32"
    )
    frozen_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="type of frozen weights, the reference policy's and a LoRA's base; bfloat16 "
        "halves them",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: slower, far less memory"
    )
    generation: Literal["transformers", "vllm"] = Field(
        "transformers", description="engine that samples the policy; vllm for large policies"
    )
    generation_gpu_memory: float = Field(
        0.3, gt=0, lt=1, description="share of a GPU's memory for vLLM's weights and KV cache"
    )
    engine_args: EngineArgs = None
    seed: int = Field(
        0, ge=0, description="seed; the same seed on the same machine gives the same checkpoint"
    )
    checkpoint_every: int = Field(10, ge=1, description="steps between resumable states")
    replace: bool = REPLACE
    reward_batch_size: int = Field(64, ge=1, description="texts scored in one forward pass")
    trust_remote_code: bool = TRUST

    @property
    def exports_adapter(self) -> bool:
        """True if the checkpoint is exported as an adapter of the reference policy too.

        A LoRA that begins with other weights does not fit the reference policy.
        """
        return self.lora_rank is not None and self.initial is None

    @model_validator(mode="after")
    def _engine_args_that_count(self) -> TrainConfig:
        uses_vllm = self.generation == "vllm"
        _check_engine_args(self.engine_args, OWNED_BY_GENERATION, uses_vllm, "--generation")
        if uses_vllm:
            _check_vllm_temperature(self.temperature, "--generation")
        return self


# What else an evaluation has figures or revisions of.
_OWN_NAMES = {"reference", "best-of-n", "reward", "gold"}


class EvaluateConfig(Settings):
    """Measure the reference policy, best-of-n for every n, and checkpoints on held-out prompts.

    Prints a table and writes evaluation.json with plots of the frontier: win rate and reward against KL.

    Examples:
      vbon evaluate --policy DIR --checkpoints vbon=DIR --reward DIR --gold DIR --prompts heldout.jsonl
    """

    option_groups: ClassVar[OptionGroups] = {
        "Inputs and output": (
            "policy",
            "checkpoints",
            "reward",
            "gold",
            "prompts",
            "prompt_column",
            "encoding",
            "out",
            "per_prompt",
        ),
        "Captured nats": ("captured_nats", "cache"),
        "Samples": (
            "num_samples",
            "reference_samples",
            "policy_samples",
            "max_new_tokens",
            "temperature",
            "missing_eos_reward",
            "seed",
        ),
        "Speed": ("batch_size", "reward_batch_size", "dtype", "trust_remote_code"),
    }

    policy: str = POLICY
    checkpoints: dict[str, str] = Field(
        default={"vbon": "sandbox/vbon"}, description="NAME=DIR of each checkpoint"
    )
    reward: str = REWARD
    gold: Annotated[str | None, NoneWord] = Field(
        "sandbox/gold", description="held-out reward model; `none` for none"
    )
    prompts: Path = HELDOUT_PROMPTS
    prompt_column: PromptColumn = None
    encoding: FileEncoding = None
    out: Path = Field(Path("sandbox/evaluation"), description="directory of the figures and plots")
    per_prompt: bool = Field(
        False,
        exclude_if=lambda wanted: not wanted,
        description="also write per-prompt.json, the figures of each prompt, with which methods can be "
        "compared in pairs",
    )
    num_samples: int = Field(16, ge=2, description="N to point out on the best-of-n curve")
    reference_samples: int = Field(
        REFERENCE_SAMPLES, ge=4, description="M, reference samples per prompt"
    )
    policy_samples: int = Field(
        POLICY_SAMPLES, ge=1, description="samples of each checkpoint per prompt"
    )
    max_new_tokens: int = Field(
        40, ge=1, description="new tokens of a completion, at most; as trained"
    )
    temperature: float = Field(1.0, gt=0, le=10, description="sampling temperature, as trained")
    missing_eos_reward: MissingEosReward = None
    captured_nats: bool = Field(
        False,
        exclude_if=lambda wanted: not wanted,
        description="also measure how much of best-of-N's KL each checkpoint has learnt, on held-out prompts",
    )
    cache: Path | None = Field(
        None,
        exclude_if=lambda cache: cache is None,
        description="reward cache of the training; measures captured nats on its samples and on fresh "
        "samples of its prompts too",
    )
    batch_size: int = Field(
        512,
        ge=1,
        description="sequences generated at once; unless given, fewer from 20 million parameters on",
    )
    reward_batch_size: int = Field(64, ge=1, description="texts scored in one forward pass")
    seed: int = Field(1, ge=0, description="seed that makes the samples repeatable")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="type of the computation")
    trust_remote_code: bool = TRUST

    @field_validator("checkpoints")
    @classmethod
    def _names_apart(cls, checkpoints: dict[str, str]) -> dict[str, str]:
        taken = sorted(_OWN_NAMES & checkpoints.keys())
        if taken:
            raise ValueError(
                f"{', '.join(taken)} already names a part of the evaluation; give the checkpoint "
                "another name"
            )
        return checkpoints

    @model_validator(mode="after")
    def _cache_that_counts(self) -> EvaluateConfig:
        if self.cache is not None and not self.captured_nats:
            raise ValueError("cache is for captured nats; add --captured-nats or leave it out")
        return self

    @model_validator(mode="after")
    def _enough_samples(self) -> EvaluateConfig:
        if self.reference_samples <= self.num_samples:
            raise ValueError(
                f"reference_samples {self.reference_samples} must be above num_samples "
                f"{self.num_samples}: best-of-N needs N of them and one opponent"
            )
        return self


class CellWorkers(Settings):
    """Settings of commands that train cells: here, or in the workers of a Ray cluster."""

    backend: Literal["local", "ray"] = Field(
        "local",
        description="where cells are trained: on this machine, or by the workers of a Ray cluster, the one "
        "at RAY_ADDRESS or one of this machine alone",
    )
    worker_cpus: float = WORKER_CPUS
    worker_gpus: float = WORKER_GPUS

    @model_validator(mode="after")
    def _ray_settings_that_count(self) -> Self:
        _check_ray_settings(self, self.backend == "ray")
        return self


class SweepConfig(CellWorkers, TrainConfig):
    """Train objectives x N (or beta) x seeds under one budget.

    All cells share policy, reward model, prompts and budget. Each finished cell leaves a record, so a run
    that was killed goes on; `vbon report` draws the records. A grid entry is
    'NAME: PARAMETER=V1 V2 ...' or, for a variant,
    'NAME=OBJECTIVE: PARAMETER=V1 V2 ...; SETTING=VALUE ...; ...' with any setting of the objective. Settings
    with several values give a cell for each combination.

    With --validation the grid is a search. Every method tries the same number of settings, measured on the
    validation prompts. For each N of --targets, the setting with the highest win rate that spends no more KL
    than the bound of best-of-N is chosen, trained again with --seeds and measured on --heldout.

    Examples:
      vbon sweep --grid "vbon: num_samples=4 16" --grid "kl-rl: beta=0.5 1" --out runs/sweep
      vbon sweep --validation sandbox/prompts/validation.jsonl --grid "vbon: num_samples=4 16"
    """

    option_groups: ClassVar[OptionGroups] = {
        "Sweep": (
            "grid",
            "seeds",
            "jobs",
            "title",
            "validation",
            "targets",
            "search_seed",
            "choices",
            "heldout_prompts",
            "reference_samples",
            "policy_samples",
            "keep_checkpoints",
        ),
        "Ray": tuple(CellWorkers.model_fields),
        **TrainConfig.option_groups,
    }

    out: Path = Field(Path("runs/sweep"), description="directory of the sweep")
    title: str = Field("sandbox", description="title of the report")
    steps: int = Field(70, ge=1, description="optimizer steps of each cell, warm start included")
    grid: list[str] = Field(DEFAULT_GRID, description="objectives and values to train")
    seeds: list[int] = Field([0, 1, 2], description="training seeds of each cell")
    jobs: int = Field(
        1,
        ge=1,
        description="cells trained at once, each in its own process; with --backend ray, as many as the "
        "cluster has room for by default",
    )
    heldout_prompts: int = Field(64, ge=2, description="held-out prompts to measure on, at most")
    reference_samples: int = Field(128, ge=8, description="reference samples per held-out prompt")
    policy_samples: int = Field(32, ge=4, description="samples of each cell per held-out prompt")
    keep_checkpoints: bool = Field(True, description="keep each cell's checkpoint, ready to serve")
    validation: Annotated[Path | None, NoneWord] = Field(
        None,
        description="prompts to choose settings on, apart from those to train on and the held-out ones; "
        "default: every cell of the grid is measured on the held-out prompts",
    )
    targets: list[int] = Field(
        [4, 16],
        description="N whose KL bound a chosen setting may spend; one setting is chosen for each",
    )
    search_seed: int = Field(
        1000, ge=0, description="training seed of the search; the chosen settings get --seeds"
    )
    choices: Path | None = Field(
        None,
        description="choices.json of another sweep of the same grid, to train its chosen settings here "
        "instead of searching",
    )

    @model_validator(mode="after")
    def _search_apart_from_report(self) -> SweepConfig:
        if self.validation is not None and self.choices is not None:
            raise ValueError("choices replace the search on validation prompts; give only one")
        if self.validation is not None and self.search_seed in self.seeds:
            raise ValueError(
                f"search_seed {self.search_seed} is one of the seeds {self.seeds}; the chosen settings "
                "must be trained again with others, so give another --search-seed"
            )
        if any(target < 2 for target in self.targets):
            raise ValueError("targets must be at least 2: best-of-1 is the reference policy itself")
        return self


class ReportConfig(Settings):
    """Draw sweeps as tables, plots and one HTML page.

    The page shows what the KL buys, the frontier, Pareto shares, efficiency and cost.

    Examples:
      vbon report --sweeps runs/sweep --out runs/report
    """

    sweeps: list[Path] = Field([Path("runs/sweep")], description="directories of sweeps")
    out: Path = Field(Path("runs/report"), description="directory of the page, plots and tables")
    pool: bool = Field(
        False,
        description="also pool the sweeps: the same methods on several sandboxes, which are resampled too",
    )


class BenchConfig(Settings):
    """Measure samples trained per second against TRL's RLOO trainer in the same run.

    This project's side trains kl-rl on the same batch. Repeats of the two sides alternate, and the ratio is
    the median [smallest, largest] over the pairs. Needs the package `trl` (extra `bench`).

    Examples:
      vbon bench train --repeats 5 --json bench.json
    """

    policy: str = POLICY
    reward: str = REWARD
    cache: Path = Field(
        Path("sandbox/cache.jsonl"), description="reward cache made by `vbon sample`"
    )
    steps: int = Field(
        6, ge=2, description="optimizer steps of a repeat; the first one is not timed"
    )
    repeats: int = Field(3, ge=1, description="repeats of each side")
    prompts_per_step: int = Field(32, ge=1, description="prompts of each step")
    samples_per_prompt: int = Field(8, ge=2, description="samples of each prompt")
    max_new_tokens: int = Field(
        40, ge=1, description="new tokens of a completion, at most; as in the cache"
    )
    temperature: float = Field(
        1.0, gt=0, le=10, description="sampling temperature, as in the cache"
    )
    beta: float = Field(0.1, gt=0, description="weight of the KL, in units of reward per nat")
    learning_rate: float = Field(
        1e-4, gt=0, description="learning rate of the first step; it falls linearly after"
    )
    max_grad_norm: float = Field(1.0, gt=0, description="norm to which gradients are clipped")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="type of the computation")
    seed: int = Field(
        0, ge=0, description="seed of the first repeat; each further repeat takes the next"
    )
    reward_batch_size: int = Field(64, ge=1, description="texts scored in one forward pass")
    json_file: Path | None = Field(
        None,
        validation_alias=AliasChoices("json", "json_file"),
        description="file for every step's figures, with provenance",
    )
    trust_remote_code: bool = TRUST
