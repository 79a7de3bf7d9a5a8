"""Engine arguments that users pass through to vLLM, checked before an engine starts.

Importing this needs no vllm: the modules that import it pass its argument names in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from vbon.errors import InvalidInputError

# Arguments that nobody may set, with the reason or the remedy.
FIXED = {
    "tokenizer": "a policy always uses the tokenizer in its own directory",
    "skip_tokenizer_init": "the tokenizer is always needed",
    "load_format": "weights are only read from safetensors files, which cannot run code",
    "hf_token": "set the environment variable HF_TOKEN; engine arguments are written to result files",
    "runner": "a policy always generates text",
    "convert": "a policy always generates text",
    "logprobs_mode": "log-probabilities are always raw_logprobs, those of the policy itself",
    "enable_log_requests": "prompts are never logged",
}
OWNED_BY_SERVICE = FIXED | {
    "model": "use --policies NAME=DIR",
    "served_model_name": "use --policies NAME=DIR; each policy is a mode of its name",
    "dtype": "use --engine.dtype",
    "max_model_len": "use --engine.max-model-len",
    "max_num_seqs": "use --engine.max-num-seqs",
    "gpu_memory_utilization": "use --engine.gpu-memory-utilization",
    "tensor_parallel_size": "use --engine.tensor-parallel-size",
    "enforce_eager": "use --engine.enforce-eager",
    "distributed_executor_backend": "use --engine.executor",
    "scheduling_policy": "use --engine.scheduling-policy",
    "logprobs_mode": "use --engine.logprobs",
    "disable_log_stats": "use --engine.metrics",
    "trust_remote_code": "use --trust-remote-code",
    "seed": "give `seed` in each request",
    "enable_lora": "add LoRA adapters with --policies NAME=DIR",
    "max_loras": "it is the number of LoRA adapters among --policies",
    "max_lora_rank": "it is the largest rank of the LoRA adapters among --policies",
}
_OWNED_BY_TRAINING = FIXED | {
    "model": "use --policy",
    "served_model_name": "samples are not served under a name",
    "dtype": "use --dtype",
    "trust_remote_code": "use --trust-remote-code",
    "seed": "use --seed",
    "disable_log_stats": "vLLM's own metrics are only available in the service",
    "enable_lora": "samples are drawn from one policy without adapters",
}
OWNED_BY_SAMPLE = _OWNED_BY_TRAINING | {
    "distributed_executor_backend": "it follows from tensor_parallel_size, which you may set",
    "generation_config": "the stop tokens of the checkpoint's own generation_config.json end a sample, as "
    "in training",
}
OWNED_BY_GENERATION = _OWNED_BY_TRAINING | {
    "gpu_memory_utilization": "use --generation-gpu-memory",
    "tensor_parallel_size": "each training process has an engine of its own",
    "distributed_executor_backend": "each training process has an engine of its own",
    "generation_config": "the tokenizer's EOS and the stop tokens of the checkpoint's own "
    "generation_config.json end a sample, as in the trainer's own sampler",
}


def parse_values(args: Any) -> Any:
    """Engine arguments with values given as ``NAME=VALUE`` text read as JSON where they are JSON.

    ``max_num_batched_tokens=2048`` becomes a number this way and ``quantization=fp8`` stays a string.
    """
    if not isinstance(args, dict):
        return args
    return {name: _parse_value(value) for name, value in args.items()}


def _parse_value(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def refuse_owned(args: Mapping[str, Any], owned: Mapping[str, str]) -> None:
    """Check that no argument is one that this project sets itself.

    Args:
        args: engine arguments, by vLLM's names.
        owned: the names that are refused, with the remedy for each.

    Raises:
        ValueError: an argument is refused; says what to use instead.
    """
    for name in args:
        remedy = owned.get(name.replace("-", "_"))
        if remedy is not None:
            raise ValueError(f"the vLLM argument {name!r} cannot be set here: {remedy}")


def refuse_unknown(args: Mapping[str, Any], known: Iterable[str], *, field: str) -> None:
    """Check that vLLM has an argument of each name.

    Args:
        known: the names of vLLM's engine arguments.
        field: the setting that the arguments come from, for the error.

    Raises:
        InvalidInputError: vLLM has no such argument; names the closest one it has.
    """
    public = sorted(name for name in known if not name.startswith("_"))
    for name in args:
        if name not in public:
            close = get_close_matches(name, public, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InvalidInputError(
                f"{field}: vLLM has no engine argument {name!r}{hint}", field=field
            )


def one_line(error: Exception) -> str:
    """An error of vLLM's in one line: its type and message, or each wrong value of a config object."""
    if isinstance(error, ValidationError):
        return "; ".join(_problem(details) for details in error.errors())
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _problem(details: Any) -> str:
    name = ".".join(str(part) for part in details["loc"])
    message = details["msg"].removeprefix("Value error, ")
    return f"{name}: {message} (got {details['input']!r:.80})" if name else message
