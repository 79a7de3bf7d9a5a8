"""Draws samples with vLLM inside the training process, from the policy's current weights.

vLLM keeps its own copy of the policy. Before sampling, the weights of the given model are loaded into that
copy, unless it holds them already. Shapes: B sequences, T response tokens.
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
from training.rollouts.predictor import Predictor, logprobs_of
from training.rollouts.rollout import Rollout, rollout_of
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
from vbon.storage.stop_tokens import find_extra_stop_ids

if TYPE_CHECKING:
    from vllm import SamplingParams

CPU_KV_CACHE_BYTES = 2**30

# Identity, address and write count of each parameter; they change whenever a weight changes.
_WeightState = tuple[tuple[int, int, int], ...]


class VllmGenerator:
    """The :class:`~training.rollouts.generator.Generator` over vLLM, one engine in each process.

    It supports plain models, models with a LoRA, and models that FSDP2 shards. A LoRA is merged into the
    weights on their way to vLLM; the model itself does not change. Shards are gathered one parameter at a
    time, so every process must sample at the same time. The engine starts at the first ``sample``.

    Args:
        policy: the checkpoint that the models come from: a directory or ``hf://org/name``.
        config: the run's settings, for temperature, length limit and dtypes.
        logprobs: True to provide ``sampled_logprob_BT``. The model itself computes it in an extra pass,
            because vLLM's rounding differs.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or vLLM cannot run it.
    """

    def __init__(
        self, policy: str, tokenizer: Any, config: TrainConfig, *, logprobs: bool = False
    ) -> None:
        self._path = check_checkpoint(policy, "causal-lm").path
        self._tokenizer, self._config, self._logprobs = tokenizer, config, logprobs
        self.extra_stop_ids = find_extra_stop_ids(self._path, tokenizer)
        self._llm: Any = None
        self._context = 0
        self._joined = False  # True if vLLM uses the trainer's process group
        # The model whose weights vLLM holds; a weak reference, since a later model may have the same id.
        self._model: weakref.ref[Any] | None = None
        self._weights_held: _WeightState | None = None
        self.syncs = 0

    def sample(
        self, model: Any, prompts: Sequence[list[int]], num_samples: int, seeds: Sequence[int]
    ) -> Rollout:
        """Draw ``num_samples`` responses to each prompt from the model's current weights.

        The seed of a sample is a hash of its prompt's seed and its index. So the samples of a prompt do not
        depend on other prompts, except for floating-point sums, which depend on the batch.

        Returns:
            The responses; those of a prompt are consecutive rows.

        Raises:
            PromptTooLongError: prompt and response together exceed vLLM's context.
            InvalidInputError: the model has parameters that cannot be loaded into vLLM.
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
        """Shut down vLLM and free its memory; may be called twice."""
        llm, self._llm, self._model = self._llm, None, None
        if llm is not None:
            engine = llm.llm_engine
            if self._joined:
                # The engine's own shutdown would destroy the process group, which the trainer still uses.
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
            InvalidInputError: ``engine_args`` has a name that is not an argument of vLLM.
        """
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        distributed = torch.distributed
        self._joined = distributed.is_available() and distributed.is_initialized()
        several = self._joined and distributed.get_world_size() > 1
        with _environment(VLLM_ENABLE_V1_MULTIPROCESSING="0"):  # run the engine in this process
            from vllm import LLM
            from vllm.engine.arg_utils import EngineArgs

            known = [argument.name for argument in fields(EngineArgs)]
            refuse_unknown(self._config.engine_args or {}, known, field="engine_args")
            try:
                self._llm = LLM(**self._arguments("external_launcher" if several else "uni"))
            except Exception as error:  # any failure means that vLLM cannot run it
                raise CheckpointError(f"vLLM cannot run {self._path}: {one_line(error)}") from error
        self._context = int(self._llm.model_config.max_model_len)

    def _arguments(self, executor: str) -> dict[str, Any]:
        """vLLM's own arguments: our choices, overridden by the user's ``engine_args``."""
        config = self._config
        chosen: dict[str, Any] = {
            "model": self._path,
            "dtype": config.dtype,
            "trust_remote_code": config.trust_remote_code,
            "load_format": "safetensors",
            # Of the checkpoint's generation_config.json, only the stop tokens count; see ``_sampling``.
            "generation_config": "vllm",
            # As much context as fits into the KV cache; with more, vLLM would not start.
            "max_model_len": -1,
            "distributed_executor_backend": executor,
        }
        given = config.engine_args or {}
        if torch.cuda.is_available():
            return chosen | {"gpu_memory_utilization": config.generation_gpu_memory} | given
        # On a CPU, compiled code would keep using the packed weights that it was compiled with.
        chosen["kv_cache_memory_bytes"] = CPU_KV_CACHE_BYTES
        return chosen | given | {"enforce_eager": True}

    def _check_lengths(self, prompts: Sequence[list[int]]) -> None:
        longest, new = max(len(ids) for ids in prompts), self._config.max_new_tokens
        if longest + new > self._context:
            raise PromptTooLongError(prompt_tokens=longest, max_tokens=new, limit=self._context)

    def _synchronise(self, model: Any) -> None:
        """Load the model's weights into vLLM, unless it holds them already."""
        state = _weight_state(model)
        held = self._model is not None and self._model() is model
        if held and state is not None and self._weights_held == state:
            return
        self._model = None  # until the load is complete, the weights are of no particular model
        self._llm.collective_rpc(
            "reload_weights", kwargs={"weights_iterator": merged_weights(model)}
        )
        if not torch.cuda.is_available():
            self._llm.apply_model(_pack_again)
        if not self._llm.reset_prefix_cache():
            raise EngineError("vLLM could not drop the KV cache of the previous weights")
        self._model, self._weights_held = weakref.ref(model), state
        self.syncs += 1

    def _sampling(self, seed: int) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=self._config.max_new_tokens,
            temperature=self._config.temperature,
            seed=seed,
            # The same tokens end a response as in ``sample_responses``.
            ignore_eos=True,
            stop_token_ids=[self._tokenizer.eos_token_id, *self.extra_stop_ids],
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
        config = self._config
        predictor = Predictor(model, config.temperature, autocast=config.dtype == "bfloat16")
        return replace(rollout, sampled_logprob_BT=logprobs_of(predictor, rollout))


@torch.no_grad()
def merged_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Iterate over a model's weights, complete and with LoRAs merged, under their checkpoint names.

    The model itself does not change. Only one merged or gathered weight exists at a time. With FSDP2 every
    process must iterate, because gathering is collective.

    Raises:
        InvalidInputError: the model has parameters that cannot be converted to checkpoint weights.
    """
    if getattr(model, "_weight_conversions", None):
        raise _unsupported(model, "whose checkpoint stores its weights in another layout")
    adapted = dict(_adapted_layers(model))
    for name, parameter in model.named_parameters():
        plain = name.removeprefix("base_model.model.")
        layer, _, kind = plain.rpartition(".base_layer.")
        if ".lora_" in name:
            continue
        if ".modules_to_save." in name or ".original_module." in name or parameter.numel() == 0:
            raise _unsupported(model, f"with a parameter like {name}")
        weight = _whole(parameter)
        if not layer:
            yield plain, weight
        elif kind == "weight":
            yield f"{layer}.weight", _merged(adapted[layer], weight)
        else:
            yield f"{layer}.{kind}", weight


def _adapted_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """The layers that have a LoRA, with their names in the checkpoint."""
    if not hasattr(model, "peft_config"):
        return
    from peft.tuners.lora import Linear

    for name, module in model.named_modules():
        if not hasattr(module, "base_layer"):
            continue
        dora = isinstance(module, Linear) and any(module.use_dora.values())
        if not isinstance(module, Linear) or dora or module.merged_adapters:
            raise _unsupported(model, f"with an adapter like that of {name}")
        yield name.removeprefix("base_model.model."), module


def _merged(layer: Any, weight: torch.Tensor) -> torch.Tensor:
    """``W`` plus ``scale B A`` of each active adapter, in the dtype of ``W``, as PEFT itself merges."""
    for adapter in layer.active_adapters:
        up, down = _whole(layer.lora_B[adapter].weight), _whole(layer.lora_A[adapter].weight)
        change = (up @ down) * layer.scaling[adapter]
        weight = weight + (change.T if layer.fan_in_fan_out else change).to(weight.dtype)
    return weight


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The complete tensor: an FSDP2 shard is gathered from all processes."""
    gather = getattr(tensor, "full_tensor", None)
    return (gather() if gather is not None else tensor).detach()


def _unsupported(model: Any, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"cannot load into vLLM the weights of a {type(model).__name__} {what}; use --generation "
        "transformers",
        field="generation",
    )


def _weight_state(model: Any) -> _WeightState | None:
    """A value that changes whenever a parameter is written to (torch counts writes) or replaced.

    ``None`` for sharded parameters, because torch does not promise to count writes to a shard.
    """
    parameters = list(model.parameters())
    if any(hasattr(parameter, "full_tensor") for parameter in parameters):
        return None
    return tuple((id(p), p.data_ptr(), p._version) for p in parameters)


def _pack_again(model: Any) -> None:
    """Renew the packed copies of the weights that vLLM's CPU layers use.

    vLLM's own reload does this for every layer with a weight in the checkpoint. An output layer that shares
    the embedding's weight has none there, and would keep the old copy.
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
