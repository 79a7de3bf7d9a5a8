"""Typed settings of every training command. Importing this imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from bestofn.config import NoneWord, Settings

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


class VbonConfig(Settings):
    """Fine-tune the reference policy to answer once what best-of-N answers with N samples.

    Minimises KL(q || p_bon) (arXiv 2407.06057). A killed run resumes where it stopped.
    """

    policy: str = POLICY
    reward: str = REWARD
    cache: Path = Field(Path("sandbox/cache.jsonl"), description="reward cache made by `sample`")
    heldout: Annotated[Path | None, NoneWord] = Field(
        Path("sandbox/prompts/heldout.jsonl"),
        description="held-out prompts for the metrics on the card; `none` skips them",
    )
    out: Path = Field(Path("sandbox/vbon"), description="checkpoint directory to write")
    num_samples: int = Field(16, description="N of the best-of-N to imitate")
    bound: Literal["lower", "exact"] = Field(
        "lower", description="i = 1 lower bound, or the exact sum over i"
    )
    steps: int = Field(20, ge=1, description="on-policy optimizer steps")
    prompts_per_step: int = Field(32, ge=1, description="prompts sampled each step")
    samples_per_prompt: int = Field(8, ge=2, description="samples of each; baseline leaves one out")
    micro_batch_size: int = Field(256, ge=2, description="sequences per forward pass")
    max_new_tokens: int = Field(40, ge=1, description="as the cache was sampled")
    temperature: float = Field(1.0, gt=0, le=10, description="as the cache was sampled")
    learning_rate: float = Field(2e-5, gt=0, description="peak of the on-policy steps")
    warmup_steps: int = Field(3, ge=0, description="linear steps to the peak; linear decay after")
    warm_start_epochs: float = Field(
        2.4,
        ge=0,
        description="passes over the cached samples, weighted toward best-of-N, before the on-policy "
        "steps (forward KL); 0 trains as in the paper, from the reference",
    )
    warm_start_learning_rate: float = Field(8e-4, gt=0, description="peak of the warm start")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping")
    lora_rank: int | None = Field(
        None, ge=1, description="train a LoRA of this rank, merged on export"
    )
    lora_alpha: int = Field(32, ge=1, description="LoRA scale: alpha / rank")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="type to train in")
    seed: int = Field(0, ge=0, description="same seed, same machine: same checkpoint")
    checkpoint_every: int = Field(10, ge=1, description="steps between resumable states")
    replace: bool = REPLACE
    reward_batch_size: int = Field(64, ge=1, description="texts scored in one forward pass")
    trust_remote_code: bool = TRUST

    @model_validator(mode="after")
    def _whole_groups(self) -> VbonConfig:
        if self.micro_batch_size % self.samples_per_prompt:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} must be a multiple of samples_per_prompt "
                f"{self.samples_per_prompt}: the baseline needs a prompt's samples together"
            )
        return self


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

    @model_validator(mode="after")
    def _enough_samples(self) -> EvaluateConfig:
        if self.reference_samples <= self.num_samples:
            raise ValueError(
                f"reference_samples {self.reference_samples} must be above num_samples "
                f"{self.num_samples}: best-of-N needs N of them and one opponent"
            )
        return self
