"""The settings of ``vbon bench reward``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BeforeValidator, Field, field_validator, model_validator

from vbon.config import OptionGroups, Settings
from vbon.engine.vllm.engine_args import parse_values, refuse_owned

SideName = Literal["worker", "vllm", "vllm-serve"]
SIDES: list[SideName] = ["worker", "vllm", "vllm-serve"]
# The first call of a side compiles or fills caches; nothing is compared with fewer pairs than these.
LEAST_PAIRS = 2
OWNED = {
    "model": "use --reward",
    "runner": "the bench measures the pooling runner",
    "dtype": "use --dtype",
    "gpu_memory_utilization": "use --gpu-memory-utilization",
    "trust_remote_code": "use --trust-remote-code",
    "tokenizer": "a reward model always uses its own tokenizer",
    "load_format": "weights are only read from safetensors files, which cannot run code",
}


class RewardBenchSettings(Settings):
    """Measure reward texts scored per second: our worker against vLLM's pooling runner.

    All sides run the same classifier and get the same texts, which are new for each measurement. They take
    turns in one run; a figure is the median of the ratios of neighbours, with the smallest and the largest.
    The CPU time of each side for a text is beside it, which other programs on the machine do not change.
    A side that cannot start is named and left out. The largest difference between the scores of two sides is
    printed; the exit status is 3 if it is above --tolerance.

    worker: the process in which the service runs a classifier (transformers).
    vllm: vLLM's pooling runner in such a process, which gets the same token ids.
    vllm-serve: `vllm serve --runner pooling`, which the service would ask over HTTP.

    Examples:
      vbon bench reward --reward DIR --json bench.json
      vbon bench reward --reward DIR --batches 16,64 --lengths 128 --sides worker,vllm --threads 2
    """

    option_groups: ClassVar[OptionGroups] = {
        "Grid": ("batches", "lengths", "spread", "max_call_tokens"),
        "Measuring": (
            "sides",
            "pairs",
            "seconds",
            "cell_seconds",
            "seed",
            "tolerance",
            "json_file",
        ),
        "Model": (
            "reward",
            "dtype",
            "threads",
            "reward_batch_size",
            "gpu_memory_utilization",
            "engine_args",
            "trust_remote_code",
        ),
    }

    reward: str = Field(
        "sandbox/reward",
        description="the directory of a one-logit classifier, or hf://org/name; with-eos:DIR if it was "
        "trained with EOS after each text",
    )
    sides: list[SideName] = Field(SIDES, min_length=1, description="sides to measure")
    batches: list[int] = Field([1, 4, 16, 64, 256], description="texts of one call")
    lengths: list[int] = Field(
        [32, 128, 512], description="tokens of a text, at most; too long ones are left out"
    )
    spread: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="how much shorter texts of a call are: lengths lie between (1 - spread) and 1 times the "
        "longest",
    )
    max_call_tokens: int = Field(
        131_072,
        ge=1,
        description="tokens of one call, at most; larger cells are left out, which bounds the memory",
    )
    pairs: int = Field(5, ge=LEAST_PAIRS, description="times that each side is measured")
    seconds: float = Field(
        1.0, gt=0, description="length of one measurement of the slowest side, about"
    )
    cell_seconds: float = Field(
        60.0, gt=0, description=f"time after which a cell ends once it has {LEAST_PAIRS} pairs"
    )
    seed: int = Field(0, ge=0, description="seed of the texts")
    tolerance: float = Field(
        1e-3, ge=0, description="largest difference between two sides' scores of a text"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="type of vLLM's weights; auto is the checkpoint's, as in our worker"
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads of each side; default: the cores of this machine"
    )
    reward_batch_size: int = Field(
        64, ge=1, description="texts of our worker's forward pass, as in `vbon serve`"
    )
    gpu_memory_utilization: float = Field(
        0.3, gt=0, le=1, description="share of a GPU's memory for each of vLLM's sides"
    )
    engine_args: Annotated[dict[str, Any], BeforeValidator(parse_values)] = Field(
        {}, description='further vLLM engine arguments, as JSON: {"enforce_eager": true}'
    )
    json_file: Path | None = Field(
        None,
        validation_alias=AliasChoices("json", "json_file"),
        description="file for every figure, with provenance",
    )
    trust_remote_code: bool = Field(False, description="let the checkpoint run its own code")

    @field_validator("batches", "lengths")
    @classmethod
    def _positive(cls, values: list[int]) -> list[int]:
        if not values or min(values) < 1:
            raise ValueError("give whole numbers of at least 1")
        return list(dict.fromkeys(values))

    @model_validator(mode="after")
    def _engine_args_that_count(self) -> RewardBenchSettings:
        refuse_owned(self.engine_args, OWNED)
        if len(set(self.sides)) < len(self.sides):
            raise ValueError("a side is named twice in sides")
        return self
