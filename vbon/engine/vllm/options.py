"""Settings of a vLLM engine, and the defaults that depend on its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vbon.storage.json_files import read_json_file

ENCODE_TIMEOUT_S = 5.0
TINY_BYTES = 20_000_000  # of weights
MANY_CORES = 8


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """Settings of an engine; ``None`` keeps vLLM's default.

    Attributes:
        dtype: type of the weights; ``auto`` takes the checkpoint's.
        max_model_len: length of the context in tokens.
        max_num_seqs: maximum number of sequences decoded at once.
        gpu_memory_utilization: share of the GPU's memory for this engine.
        tensor_parallel_size: number of GPUs for this engine.
        kv_cache_gib: memory for the KV cache in GiB; on a CPU only.
        enforce_eager: whether to skip compilation, which starts sooner and decodes slower.
        executor: vLLM's executor; ``uni`` runs the model inside the engine process.
        cpu_threads: threads of the model on a CPU; ``None`` uses :func:`default_cpu_threads`.
        trust_remote_code: whether the checkpoint may run its own code.
        scheduling_policy: ``fcfs`` (first come, first served) or ``priority``.
        metrics: whether vLLM keeps its own Prometheus metrics.
        sampled_logprobs: whether log-probabilities are those of the distribution sampled.
        stall_timeout_s: an engine that has work and is silent for longer than this hangs; ``None`` turns
            the check off.
        tool_parser: name of vLLM's parser of the policy's tool calls.
        encode_timeout_s: limit for tokenizer and chat template on one prompt.
        args: further engine arguments by vLLM's names.
        args_setting: name of the setting that ``args`` come from, for error messages.
    """

    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int = 1
    kv_cache_gib: int = 1
    enforce_eager: bool = False
    executor: str | None = None
    cpu_threads: int | None = None
    trust_remote_code: bool = False
    scheduling_policy: str = "fcfs"
    metrics: bool = False
    sampled_logprobs: bool = False
    stall_timeout_s: float | None = None
    tool_parser: str | None = None
    encode_timeout_s: float = ENCODE_TIMEOUT_S
    args: Mapping[str, Any] = field(default_factory=dict)
    args_setting: str = "engine.args"


def served_dtype(path: str, asked: str) -> str:
    """vLLM's ``dtype`` for a policy; ``auto`` means the checkpoint's own type.

    vLLM's own ``auto`` rounds float32 checkpoints to bfloat16. That is not the policy that was trained and
    measured, and it decodes at half the speed on CPUs without bfloat16 instructions.
    """
    config = Path(path) / "config.json"
    if asked != "auto" or not config.is_file():
        return asked
    found = read_json_file(config)
    own = found.get("dtype") or found.get("torch_dtype")
    return "float32" if own == "float32" else asked


def default_cpu_threads(path: str, cores: int) -> int:
    """The default number of threads of an engine on a CPU: all cores, or all but one.

    The front end that feeds the engine needs a core too, and a thread that waits for a core holds up all the
    others. A tiny policy gains more from a free core than from another thread. A larger policy does so only
    if one core is a small share of all (docs/log.md). vLLM's own ``mp`` executor always leaves one core free.
    """
    size = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    tiny = 0 < size < TINY_BYTES
    return max(1, cores - 1) if tiny or cores >= MANY_CORES else cores
