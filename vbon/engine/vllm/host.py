"""vLLM's engine processes: how one is configured, started and stopped."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from vbon.engine.metrics import logger_into
from vbon.engine.vllm.engine_args import one_line, refuse_unknown
from vbon.engine.vllm.guardian import Guardian
from vbon.errors import CheckpointError, NotReadyError
from vbon.storage.checkpoints import Checkpoint, check_checkpoint

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM


logger = logging.getLogger(__name__)

TINY_BYTES = 20_000_000  # of weights
MANY_CORES = 8


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """Engine settings that matter; ``None`` leaves vLLM's default.

    Attributes:
        dtype: ``auto`` takes the checkpoint's.
        max_model_len: context in tokens.
        max_num_seqs: sequences decoded at once.
        gpu_memory_utilization: share of a GPU's memory for this engine.
        tensor_parallel_size: GPUs per engine.
        kv_cache_gib: memory for the KV cache; CPU only.
        enforce_eager: skip compilation: starts sooner, decodes slower.
        executor: ``uni`` runs the model inside the engine process.
        cpu_threads: threads of the model on a CPU; ``None``: :func:`default_cpu_threads`.
        trust_remote_code: let the checkpoint bring its own code.
        scheduling_policy: ``fcfs``, or ``priority`` to let requests say how early they are served.
        metrics: let vLLM keep its own Prometheus metrics.
        stall_timeout_s: an engine with work that says nothing for so long hangs; ``None``: never.
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
    stall_timeout_s: float | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    args_setting: str = "engine.args"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter's weights as they were at some time.

    Attributes:
        path: as configured.
        number: vLLM's name for these weights: the same path read again later has another.
    """

    path: str
    number: int
    checkpoint: Checkpoint


class VllmHost:
    """One ``AsyncLLM``: a base policy and the LoRA adapters served on top of it."""

    def __init__(self, path: str, options: VllmOptions, adapters: tuple[str, ...] = ()) -> None:
        self.checkpoint = check_checkpoint(path, "causal-lm")
        self.adapters: dict[str, Adapter] = {}
        for adapter in adapters:
            self.use(self.new_adapter(adapter))
        self.options = options
        self.tokenizer: Any = None
        self.max_model_len = 0
        self.registry = CollectorRegistry()
        self.starts = 0
        self._llm: AsyncLLM | None = None
        self._guardian: Guardian | None = None
        self._heard_s = 0.0
        self._starting: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether it has started and has not died."""
        return self._llm is not None and not self._llm.errored

    @property
    def unfinished(self) -> int:
        """Sequences that vLLM has neither finished nor aborted."""
        if self._llm is None or self._llm.errored:
            return 0
        return self._llm.output_processor.get_num_unfinished_requests()

    @property
    def silent_s(self) -> float:
        """Seconds since the engine's last step, while there is something to decode; else 0."""
        if not self.unfinished:
            self._heard_s = monotonic()
        return monotonic() - self._heard_s

    @property
    def llm(self) -> AsyncLLM:
        """The running engine.

        Raises:
            NotReadyError: it has not started.
        """
        if self._llm is None:
            raise NotReadyError(f"the engine of {self.checkpoint.path} has not started")
        return self._llm

    async def start(self) -> None:
        """Build the engine unless one lives; policies that share a host may all call this.

        Those that call while it is being built share the attempt, and its failure.

        Raises:
            CheckpointError: it cannot be built.
        """
        if self.alive:
            return
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start(), name="start-engine")
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        await self._shut_down()  # what a dead one left behind
        if self.starts:
            self._check_again()
        # Building the engine blocks for tens of seconds; liveness probes must not wait.
        building = asyncio.ensure_future(asyncio.to_thread(self._build))
        try:
            llm = await asyncio.shield(building)
        except asyncio.CancelledError:
            building.add_done_callback(_end_unwanted)  # the thread goes on to its end
            raise
        self.tokenizer = llm.get_tokenizer()
        self.max_model_len = int(llm.model_config.max_model_len)
        self._listen(llm)
        self._llm = llm
        self._guardian = Guardian(self.pids)
        self.starts += 1

    async def stop(self) -> None:
        """Shut the engine down, also one that is still being built; safe to call twice."""
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._shut_down()

    async def _shut_down(self) -> None:
        llm, self._llm = self._llm, None
        if llm is not None:
            # vLLM cancels this task last, by when the task has logged the end of the engine's process as an
            # EngineDeadError with a traceback.
            if llm.output_handler is not None:
                llm.output_handler.cancel()
            await asyncio.to_thread(llm.shutdown)
            _fail_unfinished(llm)
            await asyncio.sleep(0)  # it has its sockets closed by this loop
            await asyncio.to_thread(_release, llm)
        if self._guardian is not None:
            await asyncio.to_thread(self._guardian.dismiss)

    async def keep_guarded(self) -> None:
        """Replace a guardian that was killed: the engine would outlive a front end that is killed next."""
        if self._guardian is not None and self.alive and not self._guardian.on_watch:
            logger.warning(
                "the guardian of %s was killed; another takes over", self.checkpoint.path
            )
            await asyncio.to_thread(self._guardian.dismiss)
            self._guardian = Guardian(self.pids)

    def kill(self) -> None:
        """End the engine's processes at once; vLLM notices, and fails what they were decoding."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def pids(self) -> list[int]:
        """Of the engine's processes; those that they started end with them."""
        manager = self._llm.engine_core.resources.engine_manager if self._llm is not None else None
        return [] if manager is None else [process.pid for process in manager.processes]

    def _check_again(self) -> None:
        """What is on the disk now is what will be served: its revision may be another."""
        found = check_checkpoint(self.checkpoint.path, "causal-lm")
        if found.revision != self.checkpoint.revision:
            logger.warning(
                "%s has changed since the service started: %s is served from here on",
                found.path,
                found.revision,
            )
        self.checkpoint = found

    def _listen(self, llm: AsyncLLM) -> None:
        """Take down when the engine last said something: every step, whatever becomes of it here."""
        take = llm.engine_core.get_output_async

        async def get_output_async() -> Any:
            outputs = await take()
            self._heard_s = monotonic()
            return outputs

        llm.engine_core.get_output_async = get_output_async

    def new_adapter(self, path: str) -> Adapter:
        """The weights that are at a path now.

        Raises:
            CheckpointError: there are none that can be used.
        """
        number = 1 + max((adapter.number for adapter in self.adapters.values()), default=0)
        return Adapter(path, number, check_checkpoint(path, "adapter"))

    def use(self, adapter: Adapter) -> None:
        """What its path stands for from here on, after a restart of the engine too."""
        self.adapters[adapter.path] = adapter

    async def load_adapter(self, adapter: Adapter) -> None:
        """Let the engine read its weights; in a request, weights that do not fit would end the engine.

        Raises:
            CheckpointError: they do not fit the base, or their rank is over the engine's.
        """
        request = self.lora_request(adapter)
        try:
            await self.llm.add_lora(request)
        except Exception as error:  # whatever vLLM raises here, the adapter cannot be served
            raise CheckpointError(
                f"vLLM cannot serve the adapter {adapter.path}: {type(error).__name__}: {error}"
            ) from error

    def lora_request(self, adapter: Adapter | None) -> LoRARequest | None:
        """What tells vLLM to decode with an adapter."""
        if adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest(f"adapter-{adapter.number}", adapter.number, adapter.checkpoint.path)

    @property
    def arguments(self) -> dict[str, Any]:
        """What the engine is built with, by vLLM's names for it; ``None`` is its own default."""
        options = self.options
        arguments: dict[str, Any] = {
            "model": self.checkpoint.path,
            "dtype": served_dtype(self.checkpoint.path, options.dtype),
            "tensor_parallel_size": options.tensor_parallel_size,
            "enforce_eager": options.enforce_eager,
            "trust_remote_code": options.trust_remote_code,
            "load_format": "safetensors",
            "disable_log_stats": True,
            "enable_log_requests": False,
            "distributed_executor_backend": options.executor,
            "max_model_len": options.max_model_len,
            "max_num_seqs": options.max_num_seqs,
            "scheduling_policy": options.scheduling_policy,
        }
        if options.gpu_memory_utilization is not None:
            arguments["gpu_memory_utilization"] = options.gpu_memory_utilization
        if self.adapters:
            ranks = [_adapter_rank(one.checkpoint.path) for one in self.adapters.values()]
            arguments |= {
                "enable_lora": True,
                "max_loras": len(ranks),
                "max_lora_rank": max(8, *ranks),
            }
        return arguments | dict(options.args)

    def _build(self) -> AsyncLLM:
        self.registry = CollectorRegistry()
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(self.options.kv_cache_gib))
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        if self.options.executor == "uni":
            # Otherwise vLLM's CPU platform silently puts `mp` in the place of `uni`; the engine core
            # of AsyncLLM is a process of its own whatever this says.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        if self.options.cpu_threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(self.options.cpu_threads)
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        elif self.options.executor == "uni":
            threads = default_cpu_threads(self.checkpoint.path, len(os.sched_getaffinity(0)))
            os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        from vllm.engine.arg_utils import AsyncEngineArgs

        known = [argument.name for argument in fields(AsyncEngineArgs)]
        refuse_unknown(self.options.args, known, field=self.options.args_setting)
        try:
            return _engine_type().from_engine_args(
                AsyncEngineArgs(**self.arguments), stat_loggers=self._stat_loggers()
            )
        except Exception as error:  # whatever vLLM raises here, the checkpoint cannot be served
            raise CheckpointError(
                f"vLLM cannot serve {self.checkpoint.path}: {one_line(error)}"
            ) from error

    def _stat_loggers(self) -> list[Any]:
        """With one of its own vLLM keeps statistics in spite of ``disable_log_stats``, without its log."""
        if not self.options.metrics:
            return []
        from vllm.v1.metrics.loggers import PrometheusStatLogger

        return [logger_into(self.registry, PrometheusStatLogger)]


@cache
def _engine_type() -> type[AsyncLLM]:
    from vllm.v1.engine.async_llm import AsyncLLM

    class OwnedAsyncLLM(AsyncLLM):
        """An ``AsyncLLM`` that its host shuts down, and that does nothing more when it is destroyed.

        vLLM's own destructor shuts the engine down once more. At the end of the program, when modules
        have been cleared, that call fails and prints a traceback.
        """

        was_shut_down = False

        def shutdown(self, timeout: float | None = None) -> None:
            super().shutdown(timeout)
            self.was_shut_down = True

        def __del__(self) -> None:
            if not self.was_shut_down:
                super().__del__()

    return OwnedAsyncLLM


def served_dtype(path: str, asked: str) -> str:
    """vLLM's ``dtype`` for a policy; ``auto`` is the checkpoint's own.

    vLLM's own ``auto`` rounds a float32 checkpoint to bfloat16, which is another policy than the one that
    was trained and measured, and on CPUs without instructions for it decodes at half the speed.
    """
    config = Path(path) / "config.json"
    if asked != "auto" or not config.is_file():
        return asked
    found = json.loads(config.read_text(encoding="utf-8"))
    own = found.get("dtype") or found.get("torch_dtype")
    return "float32" if own == "float32" else asked


def _end_unwanted(building: asyncio.Future[AsyncLLM]) -> None:
    """Shut an engine down that was built for someone who no longer waited for it."""
    if not building.cancelled() and building.exception() is None:
        # Not by the loop's executor, which takes nothing any more while the process comes to its end.
        threading.Thread(target=building.result().shutdown, name="end-unwanted-engine").start()


def _fail_unfinished(llm: AsyncLLM) -> None:
    """Tell those who wait for tokens that none will come; what would have told them is cancelled by now."""
    if llm.output_processor.get_num_unfinished_requests():
        from vllm.v1.engine.exceptions import EngineDeadError

        llm.output_processor.propagate_error(EngineDeadError())


def _release(llm: AsyncLLM) -> None:
    """Give back what vLLM leaves to the end of the process: nine descriptors an engine."""
    resources = llm.engine_core.resources
    resources.ctx.destroy(linger=0)
    if resources.engine_manager is not None:
        for process in resources.engine_manager.processes:
            with suppress(ValueError):  # not ended yet, or closed already
                process.close()


def default_cpu_threads(path: str, cores: int) -> int:
    """All cores, but one less where what feeds the engine needs one more than the engine does.

    A thread that has to wait for a core holds up all the others. A tiny policy gains more from a core
    that is left free than from its second thread; a larger one only where one core is a small share
    (docs/log.md). vLLM's own `mp` executor always leaves one.
    """
    size = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    tiny = 0 < size < TINY_BYTES
    return max(1, cores - 1) if tiny or cores >= MANY_CORES else cores


def _adapter_rank(path: str) -> int:
    config = json.loads((Path(path) / "adapter_config.json").read_text(encoding="utf-8"))
    return int(config["r"])
