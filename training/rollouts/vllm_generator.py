"""Draws a step's samples with vLLM, in the training process and from the weights of the moment.

vLLM keeps a copy of the policy of its own. Before it samples, the weights of the model it is asked to
sample are loaded into that copy, unless they are there already. Shapes: B sequences, T new tokens.
"""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch

from training.configs import TrainConfig
from training.rollouts.rollout import Rollout, logprobs_of, response_logits, rollout_of
from vbon.engine.protocol import candidate_seed
from vbon.engine.vllm.engine_args import one_line, refuse_unknown
from vbon.errors import (
    CandidateCountError,
    CheckpointError,
    EngineError,
    InvalidInputError,
    PromptTooLongError,
)
from vbon.storage.checkpoints import check_checkpoint

if TYPE_CHECKING:
    from vllm import SamplingParams

CPU_KV_CACHE_BYTES = 2**30

# What tells two states of a model apart: where each parameter lies and how often it was written.
_State = tuple[tuple[int, int, int], ...]


class VllmGenerator:
    """The :class:`~training.rollouts.generator.Generator` over vLLM, one engine in each process.

    Works for a plain model, for one with a LoRA (merged on the way, the model stays as it is), and for
    parameters that FSDP2 shards (gathered one at a time: every process must then sample at the same
    moment). The engine starts at the first ``sample``.

    Args:
        policy: the checkpoint that the models to sample come from: a directory or ``hf://org/name``.
        config: of the run; temperature, length and types are its.
        logprobs: whether ``sampled_logprob_BT`` is wanted. It is computed by the model itself in a pass
            of its own, not taken from vLLM, whose rounding differs.

    Raises:
        CheckpointError: missing, damaged, or vLLM cannot run it.
    """

    def __init__(
        self, policy: str, tokenizer: Any, config: TrainConfig, *, logprobs: bool = False
    ) -> None:
        self._path = check_checkpoint(policy, "causal-lm").path
        self._tokenizer, self._config, self._logprobs = tokenizer, config, logprobs
        self._llm: Any = None
        self._context = 0
        self._joined = False  # whether vLLM uses a process group that was there before
        # Which model's weights vLLM holds. A weak reference: an address may be used again.
        self._model: weakref.ref[Any] | None = None
        self._state: _State | None = None
        self.syncs = 0

    def sample(
        self, model: Any, prompts: Sequence[list[int]], num_samples: int, seeds: Sequence[int]
    ) -> Rollout:
        """``num_samples`` responses to each prompt from the model as it is now.

        Rows of one prompt are consecutive. A sample's seed is a hash of its prompt's seed and its
        index, so that a prompt's samples do not depend on the others' (but for floating-point sums,
        which depend on the batch).

        Raises:
            PromptTooLongError: prompt and response together exceed what vLLM has room for.
            InvalidInputError: the model has parameters that vLLM cannot be given.
            EngineError: vLLM failed.
        """
        if self._llm is None:
            self._start()
        self._check_lengths(prompts)
        self._synchronise(model)
        rows = [ids for ids in prompts for _ in range(num_samples)]
        params = [
            self._sampling(candidate_seed(seed, index))
            for seed in seeds
            for index in range(num_samples)
        ]
        responses = self._generate(rows, params)
        device = next(model.parameters()).device
        rollout = rollout_of(rows, responses, self._tokenizer, device)
        return self._with_logprobs(model, rollout) if self._logprobs else rollout

    def close(self) -> None:
        """Shut vLLM down and free its memory; safe to call twice."""
        llm, self._llm, self._model = self._llm, None, None
        if llm is not None:
            engine = llm.llm_engine
            if self._joined:
                # The engine's own shutdown destroys the process group, which is the trainer's here.
                engine.engine_core._finalizer.detach()
                engine.model_executor.shutdown()
            else:
                engine.engine_core.shutdown()
            del llm, engine
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _start(self) -> None:
        """Start vLLM in this process.

        Raises:
            CheckpointError: vLLM cannot run the policy with these arguments.
            InvalidInputError: vLLM has no argument of a name in ``engine_args``.
        """
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        distributed = torch.distributed
        self._joined = distributed.is_available() and distributed.is_initialized()
        several = self._joined and distributed.get_world_size() > 1
        with _environment(VLLM_ENABLE_V1_MULTIPROCESSING="0"):  # the engine in this very process
            from vllm import LLM
            from vllm.engine.arg_utils import EngineArgs

            known = [argument.name for argument in fields(EngineArgs)]
            refuse_unknown(self._config.engine_args or {}, known, field="engine_args")
            try:
                self._llm = LLM(**self._arguments("external_launcher" if several else "uni"))
            except Exception as error:  # whatever vLLM raises here, the checkpoint cannot be run
                raise CheckpointError(f"vLLM cannot run {self._path}: {one_line(error)}") from error
        self._context = int(self._llm.model_config.max_model_len)

    def _arguments(self, executor: str) -> dict[str, Any]:
        """What vLLM is started with, by its names: our own choices, then the user's ``engine_args``."""
        config = self._config
        chosen: dict[str, Any] = {
            "model": self._path,
            "dtype": config.dtype,
            "trust_remote_code": config.trust_remote_code,
            "load_format": "safetensors",
            # The checkpoint's generation_config.json would bring further stop tokens.
            "generation_config": "vllm",
            # As much context as fits the KV cache: a long one would refuse to start.
            "max_model_len": -1,
            "distributed_executor_backend": executor,
        }
        given = config.engine_args or {}
        if torch.cuda.is_available():
            return chosen | {"gpu_memory_utilization": config.generation_gpu_memory} | given
        # On a CPU, compiled code would keep the packed weights it was compiled with.
        chosen["kv_cache_memory_bytes"] = CPU_KV_CACHE_BYTES
        return chosen | given | {"enforce_eager": True}

    def _check_lengths(self, prompts: Sequence[list[int]]) -> None:
        longest, new = max(len(ids) for ids in prompts), self._config.max_new_tokens
        if longest + new > self._context:
            raise PromptTooLongError(prompt_tokens=longest, max_tokens=new, limit=self._context)

    def _synchronise(self, model: Any) -> None:
        """Give vLLM the model's weights, unless it has these very ones."""
        state = _state(model)
        held = self._model is not None and self._model() is model
        if held and state is not None and self._state == state:
            return
        self._model = None  # half a load is no known state
        self._llm.collective_rpc(
            "reload_weights", kwargs={"weights_iterator": merged_weights(model)}
        )
        if not torch.cuda.is_available():
            self._llm.apply_model(_pack_again)
        if not self._llm.reset_prefix_cache():
            raise EngineError("vLLM would not drop the KV cache of the weights before")
        self._model, self._state = weakref.ref(model), state
        self.syncs += 1

    def _sampling(self, seed: int) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=self._config.max_new_tokens,
            temperature=self._config.temperature,
            seed=seed,
            # Exactly the tokenizer's EOS ends a response, as in the trainer's own sampler.
            ignore_eos=True,
            stop_token_ids=[self._tokenizer.eos_token_id],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _generate(self, rows: list[list[int]], params: list[SamplingParams]) -> list[list[int]]:
        from vllm import TokensPrompt

        inputs = [TokensPrompt(prompt_token_ids=ids) for ids in rows]
        try:
            outputs = self._llm.generate(inputs, params, use_tqdm=False)
        except Exception as error:
            raise EngineError(f"vLLM failed: {type(error).__name__}: {error}") from error
        if len(outputs) != len(rows):
            raise CandidateCountError(expected=len(rows), received=len(outputs))
        return [list(output.outputs[0].token_ids) for output in outputs]

    @torch.no_grad()
    def _with_logprobs(self, model: Any, rollout: Rollout) -> Rollout:
        kind, half = rollout.mask_BT.device.type, self._config.dtype == "bfloat16"

        def logits(part: Rollout) -> torch.Tensor:
            with torch.autocast(kind, dtype=torch.bfloat16, enabled=half):
                return response_logits(model, part, self._config.temperature)

        return replace(rollout, sampled_logprob_BT=logprobs_of(logits, rollout))


@torch.no_grad()
def merged_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Names as in the checkpoint, and whole weights, LoRAs merged; the model stays as it is.

    One merged or gathered weight exists at a time. Every process of an FSDP2 model must iterate, as
    gathering is collective.

    Raises:
        InvalidInputError: parameters that only the model itself can make weights of.
    """
    if getattr(model, "_weight_conversions", None):
        raise _cannot(model, "whose weights are stored otherwise than they are run")
    adapted = dict(_adapted_layers(model))
    for name, parameter in model.named_parameters():
        plain = name.removeprefix("base_model.model.")
        layer, _, kind = plain.rpartition(".base_layer.")
        if ".lora_" in name:
            continue
        if ".modules_to_save." in name or ".original_module." in name or parameter.numel() == 0:
            raise _cannot(model, f"with a parameter like {name}")
        weight = _whole(parameter)
        if not layer:
            yield plain, weight
        elif kind == "weight":
            yield f"{layer}.weight", _merged(adapted[layer], weight)
        else:
            yield f"{layer}.{kind}", weight


def _adapted_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """The layers that carry a LoRA, by their name in the checkpoint."""
    if not hasattr(model, "peft_config"):
        return
    from peft.tuners.lora import Linear

    for name, module in model.named_modules():
        if not hasattr(module, "base_layer"):
            continue
        dora = isinstance(module, Linear) and any(module.use_dora.values())
        if not isinstance(module, Linear) or dora or module.merged_adapters:
            raise _cannot(model, f"with an adapter like that of {name}")
        yield name.removeprefix("base_model.model."), module


def _merged(layer: Any, weight: torch.Tensor) -> torch.Tensor:
    """``W + scale B A`` for each active adapter, as PEFT itself merges, in the type of ``W``."""
    for adapter in layer.active_adapters:
        up, down = _whole(layer.lora_B[adapter].weight), _whole(layer.lora_A[adapter].weight)
        change = (up @ down) * layer.scaling[adapter]
        weight = weight + (change.T if layer.fan_in_fan_out else change).to(weight.dtype)
    return weight


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """An FSDP2 shard is gathered from all processes; anything else is whole."""
    gather = getattr(tensor, "full_tensor", None)
    return (gather() if gather is not None else tensor).detach()


def _cannot(model: Any, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"vLLM cannot be given the weights of a {type(model).__name__} {what}; use --generation "
        "transformers",
        field="generation",
    )


def _state(model: Any) -> _State | None:
    """Changes with every write into a parameter (torch counts them) and every replaced one.

    ``None`` if shards are among them: whether writes into a shard are counted is not promised.
    """
    parameters = list(model.parameters())
    if any(hasattr(parameter, "full_tensor") for parameter in parameters):
        return None
    return tuple((id(p), p.data_ptr(), p._version) for p in parameters)


def _pack_again(model: Any) -> None:
    """Renew the packed copies that vLLM's CPU layers multiply with.

    Its reload does so for every layer that has a weight in the checkpoint; an output layer that shares
    the embedding's has none, and would go on with the old.
    """
    for module in model.modules():
        if hasattr(module, "cpu_linear") and module.weight.numel():
            module.quant_method.process_weights_after_loading(module)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
