"""A vLLM engine process: its configuration, start and end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields
from functools import cache
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from vbon.child_output import relayed_output
from vbon.engine.encoder import PromptEncoder
from vbon.engine.metrics import stat_logger_type
from vbon.engine.vllm.ending import killed_if_safe
from vbon.engine.vllm.engine_args import one_line, refuse_unknown
from vbon.engine.vllm.file_caches import forget_files
from vbon.engine.vllm.guardian import Guardian
from vbon.engine.vllm.lora import adapter_rank, lora_rank_limit
from vbon.engine.vllm.options import VllmOptions, default_cpu_threads, served_dtype
from vbon.engine.vllm.requests import vllm_api
from vbon.errors import (
    CheckpointError,
    EngineDeadError,
    NotReadyError,
    ReloadRefusedError,
)
from vbon.storage.checkpoints import (
    HUB_PREFIX,
    Checkpoint,
    at_real_path,
    check_checkpoint,
    has_changed,
    refuse_changed,
)
from vbon.storage.weights_alone import (
    WITHOUT_IN_PLACE,
    BesideWeights,
    NewWeights,
    new_weights,
    read_beside_weights,
)
from vbon.threads import in_own_thread

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM


logger = logging.getLogger(__name__)

# Reading weights takes about a second per gigabyte, or more from a slow disk.
CHANGE_S = 600.0
# Requests in flight have usually finished before a change is asked for.
FINISH_S = 60.0
# What vLLM's workers need so that weights can be changed and put back.
WORKER_EXTENSION = "vbon.engine.vllm.worker_weights.WorkerWeights"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter, with the weights that its path held when it was read.

    Attributes:
        path: the configured path.
        number: vLLM's id for these weights; reading the same path again gives another id.
        rank: the largest rank of its modules.
    """

    path: str
    number: int
    checkpoint: Checkpoint
    rank: int


@dataclass(frozen=True, slots=True)
class AdapterRoom:
    """Room for LoRA adapters that come while the engine runs: how many, and up to which rank."""

    adapters: int
    rank: int


class VllmHost:
    """A base policy and the LoRA adapters on top of it, served by one ``AsyncLLM``.

    Args:
        room: for further adapters than those given; without it, an engine that starts with none takes none.
    """

    def __init__(
        self,
        path: str,
        options: VllmOptions,
        adapters: tuple[str, ...] = (),
        room: AdapterRoom | None = None,
    ) -> None:
        self.checkpoint = check_checkpoint(path, "causal-lm")
        self.adapters: dict[str, Adapter] = {}
        self._numbers = count(1)
        self._room = room
        self._places = len(adapters) + (room.adapters if room else 0)
        self._dropped: list[int] = []
        for adapter in adapters:
            self.use(self.new_adapter(adapter))
        self.options = options
        self.tokenizer: Any = None
        self.encoder: PromptEncoder | None = None
        self.max_model_len = 0
        self.registry = CollectorRegistry()
        self.starts = 0
        self._started_rank_limit = 0
        self._llm: AsyncLLM | None = None
        self._guardian: Guardian | None = None
        self._heard_s = 0.0
        # Where the weights in use were read, and what was there beside them; `None` for a model of the hub.
        self._changing = False
        self._source = self.checkpoint
        self._beside: BesideWeights | None = None
        self._starting: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """True if the engine has started and has not died."""
        return self._llm is not None and not self._llm.errored

    @property
    def unfinished(self) -> int:
        """The number of sequences that vLLM has neither finished nor aborted."""
        if self._llm is None or self._llm.errored:
            return 0
        return self._llm.output_processor.get_num_unfinished_requests()

    @property
    def silent_s(self) -> float:
        """Seconds since the engine's last step; 0 while it has nothing to decode or its weights change."""
        if not self.unfinished or self._changing:
            self._heard_s = monotonic()
        return monotonic() - self._heard_s

    @property
    def llm(self) -> AsyncLLM:
        """The running engine.

        Raises:
            NotReadyError: the engine has not started.
        """
        if self._llm is None:
            raise NotReadyError(f"the engine of {self.checkpoint.path} has not started")
        return self._llm

    async def start(self) -> None:
        """Start the engine unless it runs; every policy on this host may call this.

        Concurrent calls share one attempt and its failure.

        Raises:
            CheckpointError: vLLM cannot serve the checkpoint.
            InvalidInputError: vLLM does not know an engine argument.
        """
        if self.alive:
            return
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start(), name="start-engine")
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        await self._shut_down()  # frees what a dead engine left behind
        if self.starts or has_changed(self.checkpoint):
            await in_own_thread("check-model", self._check_again)
        # Starting blocks for tens of seconds; in a thread, the service keeps answering health probes.
        building = asyncio.ensure_future(in_own_thread("start-engine", self._build))
        try:
            llm = await asyncio.shield(building)
        except asyncio.CancelledError:
            building.add_done_callback(_end_unwanted)  # the thread cannot be stopped
            raise
        try:
            beside = await in_own_thread("read-model", read_beside_weights, self.checkpoint)
            self._source = at_real_path(self.checkpoint)
            refuse_changed(self.checkpoint)
        except CheckpointError:
            await in_own_thread("stop-engine", llm.shutdown)
            raise
        self._beside = beside
        self.tokenizer = llm.get_tokenizer()
        self.max_model_len = int(llm.model_config.max_model_len)
        self.encoder = await PromptEncoder.started(
            self.tokenizer,
            most_tokens=self.max_model_len,
            limit_s=self.options.encode_timeout_s,
        )
        self._listen(llm)
        self._llm = llm
        self._dropped.clear()
        self._guardian = Guardian(self.pids)
        self.starts += 1

    async def stop(self) -> None:
        """Shut the engine down, even while it is starting; safe to call twice."""
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._shut_down()

    async def _shut_down(self) -> None:
        llm, self._llm = self._llm, None
        encoder, self.encoder = self.encoder, None
        if encoder is not None:
            await encoder.close()
        if llm is not None:
            # vLLM cancels this task only after the engine's process has ended. The task has then logged an
            # EngineDeadError with a traceback.
            if llm.output_handler is not None:
                llm.output_handler.cancel()
            await in_own_thread("stop-engine", llm.shutdown)
            _fail_unfinished(llm)
            await asyncio.sleep(0)  # lets vLLM close its sockets in this event loop
            await in_own_thread("stop-engine", _release, llm)
        if self._guardian is not None:
            await in_own_thread("dismiss-guardian", self._guardian.dismiss)

    async def keep_guarded(self) -> None:
        """Start another guardian if it was killed, so that the engine still ends with the front end."""
        if self._guardian is not None and self.alive and not self._guardian.on_watch:
            logger.warning(
                "the guardian of %s was killed; starting another one", self.checkpoint.path
            )
            await in_own_thread("dismiss-guardian", self._guardian.dismiss)
            self._guardian = Guardian(self.pids)

    def kill(self) -> None:
        """Kill the engine's processes; vLLM notices and fails the sequences they were decoding."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def pids(self) -> list[int]:
        """Ids of the engine's processes; their children end with them."""
        manager = self._llm.engine_core.resources.engine_manager if self._llm is not None else None
        return [] if manager is None else [process.pid for process in manager.processes]

    def _check_again(self) -> None:
        """Check the checkpoint on disk again, because a restart serves what is there now."""
        found = check_checkpoint(self.checkpoint.path, "causal-lm")
        if found.revision != self.checkpoint.revision:
            logger.warning(
                "%s has changed since the service started; from now on %s is served",
                found.path,
                found.revision,
            )
        self.checkpoint = found

    def check_weights(self, path: str) -> NewWeights:
        """Check that a directory can take the place of the one in use by a change of weights alone.

        Raises:
            CheckpointError: it does not hold a usable model.
            ReloadRefusedError: it differs in more, or this engine's weights cannot be changed.
        """
        if self.adapters or self._room:
            raise ReloadRefusedError(
                f"the engine of {self.checkpoint.path} also serves LoRA adapters, or has room for them, and "
                f"they would change with the weights below them; {WITHOUT_IN_PLACE}"
            )
        if self.arguments["worker_extension_cls"] != WORKER_EXTENSION:
            raise ReloadRefusedError(
                f"the engine argument worker_extension_cls is in use; {WITHOUT_IN_PLACE}"
            )
        if path.startswith(HUB_PREFIX) or self._beside is None:
            raise ReloadRefusedError(
                f"a model of the hub has no files to compare; {WITHOUT_IN_PLACE}"
            )
        found = check_checkpoint(path, "causal-lm")
        return new_weights(found, self._beside)

    async def change_weights(
        self, new: NewWeights, *, keep_requests: bool, changed: Callable[[], object]
    ) -> None:
        """Load other weights into the running engine, between two of its steps.

        If they cannot be loaded, the old ones are put back: from the directory they came from, or from a
        copy in the host's memory if that was overwritten. The KV cache of the old weights is dropped.

        Args:
            keep_requests: whether requests in flight go on with the new weights; otherwise those that are
                being decoded finish first, and the others wait.
            changed: called when the new weights are in place, before anything is decoded with them.

        Raises:
            NotReadyError: requests in flight did not finish in time; the old weights are in use.
            CheckpointError: the weights could not be loaded; the old ones are in use.
            EngineDeadError: the engine has died, or was ended because its weights are unknown.
        """
        vllm, llm = vllm_api(), self.llm
        self._changing = True
        try:
            async with asyncio.timeout(CHANGE_S):
                try:
                    await self._pause(llm, keep_requests=keep_requests)
                    await self._load_weights(llm, new)
                    changed()
                except EngineDeadError:
                    raise
                except BaseException:
                    await llm.resume_generation()
                    raise
                await llm.resume_generation()
        except TimeoutError as error:
            self.kill()
            raise EngineDeadError(
                f"the engine of {self.checkpoint.path} did not change its weights within {CHANGE_S:g} s and "
                "was ended"
            ) from error
        except vllm.EngineDeadError as error:
            raise EngineDeadError(f"the engine of {self.checkpoint.path} has died") from error
        finally:
            self._changing = False
            self._heard_s = monotonic()

    async def _pause(self, llm: AsyncLLM, *, keep_requests: bool) -> None:
        """Stop decoding, and drop the KV cache."""
        try:
            async with asyncio.timeout(FINISH_S):
                await llm.pause_generation(mode="keep" if keep_requests else "wait")
        except TimeoutError as error:
            raise NotReadyError(
                f"the engine of {self.checkpoint.path} still decodes requests after {FINISH_S:g} s"
            ) from error

    async def _load_weights(self, llm: AsyncLLM, new: NewWeights) -> None:
        kept = has_changed(self._source)
        path = new.checkpoint.path
        try:
            await llm.collective_rpc("vbon_change_weights", args=(path, kept))
            source = at_real_path(new.checkpoint)
            refuse_changed(new.checkpoint)
        except Exception as error:  # whatever vLLM raises; the old weights are put back in any case
            await self._put_back(llm, kept=kept)
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"vLLM cannot load the weights of {path}: {one_line(error)}"
            ) from error
        self.checkpoint, self._source, self._beside = new.checkpoint, source, new.beside
        if kept:
            await llm.collective_rpc("vbon_forget_kept")

    async def _put_back(self, llm: AsyncLLM, *, kept: bool) -> None:
        """Put the old weights back, or end the engine."""
        try:
            if kept:
                await llm.collective_rpc("vbon_put_back")
            else:
                await in_own_thread("check-model", self._check_source)
                await llm.collective_rpc("vbon_change_weights", args=(self._source.path, False))
                refuse_changed(self._source)
        except Exception as error:
            self.kill()
            raise EngineDeadError(
                f"the engine of {self.checkpoint.path} could not put its old weights back and was ended: "
                f"{one_line(error)}"
            ) from error

    def _check_source(self) -> None:
        found = check_checkpoint(self._source.path, "causal-lm")
        if found.revision != self._source.revision or has_changed(self._source):
            raise CheckpointError(f"the files of {self._source.path} have changed")

    def _listen(self, llm: AsyncLLM) -> None:
        """Record the time of each message from the engine, for :attr:`silent_s`."""
        take = llm.engine_core.get_output_async

        async def get_output_async() -> Any:
            outputs = await take()
            self._heard_s = monotonic()
            return outputs

        llm.engine_core.get_output_async = get_output_async

    def new_adapter(self, path: str) -> Adapter:
        """The adapter that a path holds now.

        Raises:
            CheckpointError: the path does not hold a usable adapter.
        """
        checkpoint = check_checkpoint(path, "adapter")
        # vLLM keeps the weights of a number, so each is used once.
        return Adapter(path, next(self._numbers), checkpoint, adapter_rank(checkpoint.path))

    def use(self, adapter: Adapter) -> None:
        """Serve this adapter for its path from now on, also after a restart of the engine."""
        self.adapters[adapter.path] = adapter

    def drop(self, adapter: Adapter) -> None:
        """Unload this adapter, which no request uses any more, before the next one is loaded.

        It is not loaded again after a restart, unless its path has been read anew.
        """
        self._dropped.append(adapter.number)
        if self.adapters.get(adapter.path) is adapter:
            del self.adapters[adapter.path]

    async def load_adapter(self, adapter: Adapter) -> None:
        """Load an adapter into the engine ahead of its requests, in which a bad one would end the engine.

        Those that have been dropped make room for it.

        Raises:
            CheckpointError: the weights do not fit the base model, or their rank exceeds the engine's limit.
        """
        request = self.lora_request(adapter)
        if adapter.rank > self._started_rank_limit:
            raise CheckpointError(
                f"adapter {adapter.path} has rank {adapter.rank}, and the engine was started for ranks up to "
                f"{self._started_rank_limit}; restart the service to serve it"
            )
        try:
            while self._dropped:
                await self.llm.remove_lora(self._dropped.pop())
            await self.llm.add_lora(request)
            refuse_changed(adapter.checkpoint)
        except CheckpointError:
            raise
        except Exception as error:  # any error means that the adapter cannot be served
            raise CheckpointError(
                f"vLLM cannot serve the adapter {adapter.path}: {one_line(error)}"
            ) from error

    def lora_request(self, adapter: Adapter | None) -> LoRARequest | None:
        """vLLM's request object for an adapter, or ``None`` for the base policy."""
        if adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest(f"adapter-{adapter.number}", adapter.number, adapter.checkpoint.path)

    @property
    def lora_rank_limit(self) -> int:
        """The ``max_lora_rank`` that vLLM needs for the present adapters and for those that may come."""
        ranks = {path: one.rank for path, one in self.adapters.items()}
        return lora_rank_limit(
            ranks | ({"adapters to come": self._room.rank} if self._room else {})
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """The engine's arguments by vLLM's names; ``None`` keeps vLLM's default."""
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
            "worker_extension_cls": WORKER_EXTENSION,
        }
        if options.gpu_memory_utilization is not None:
            arguments["gpu_memory_utilization"] = options.gpu_memory_utilization
        if options.sampled_logprobs:
            arguments["logprobs_mode"] = "processed_logprobs"
        if self.adapters or self._room:
            places = max(len(self.adapters), self._places)
            arguments |= {
                "enable_lora": True,
                "max_loras": places,
                # One more than are served: an adapter that vLLM drops while requests use it, or another one,
                # would be read again from its path, which may hold a newer one by then.
                "max_cpu_loras": places + 1,
                "max_lora_rank": self.lora_rank_limit,
            }
        return arguments | dict(options.args)

    def _build(self) -> AsyncLLM:
        """Start the engine; blocks until it is ready."""
        self.registry = CollectorRegistry()
        self._started_rank_limit = self.lora_rank_limit
        self._set_environment()
        forget_files()
        from vllm.engine.arg_utils import AsyncEngineArgs

        known = [argument.name for argument in fields(AsyncEngineArgs)]
        refuse_unknown(self.options.args, known, field=self.options.args_setting)
        try:
            with relayed_output():
                return _engine_type().from_engine_args(
                    AsyncEngineArgs(**self.arguments), stat_loggers=self._stat_loggers()
                )
        except Exception as error:  # any error means that the checkpoint cannot be served
            raise CheckpointError(
                f"vLLM cannot serve {self.checkpoint.path}: {one_line(error)}"
            ) from error

    def _set_environment(self) -> None:
        """Set the environment variables that vLLM reads, also in its engine process."""
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(self.options.kv_cache_gib))
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        if self.options.executor == "uni":
            # Without this, vLLM silently replaces `uni` by `mp` on a CPU. The engine core of AsyncLLM is a
            # process of its own in any case.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        if self.options.cpu_threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(self.options.cpu_threads)
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        elif self.options.executor == "uni":
            threads = default_cpu_threads(self.checkpoint.path, len(os.sched_getaffinity(0)))
            os.environ.setdefault("OMP_NUM_THREADS", str(threads))

    def _stat_loggers(self) -> list[Any]:
        """vLLM's Prometheus logger if metrics are on.

        A logger of our own makes vLLM keep statistics in spite of ``disable_log_stats``, which turns off its
        log lines only.
        """
        if not self.options.metrics:
            return []
        from vllm.v1.metrics.loggers import PrometheusStatLogger

        return [stat_logger_type(self.registry, PrometheusStatLogger)]


@cache
def _engine_type() -> type[AsyncLLM]:
    from vllm.v1.engine.async_llm import AsyncLLM

    class OwnedAsyncLLM(AsyncLLM):
        """An ``AsyncLLM`` that its host shuts down at once, and that does nothing more when it is destroyed.

        vLLM's own destructor shuts the engine down once more. At the end of the program, when modules
        have been cleared, that call fails and prints a traceback.
        """

        was_shut_down = False

        def shutdown(self, timeout: float | None = None) -> None:
            # An engine that failed to start may lack its client.
            quick = not self.was_shut_down and hasattr(self, "engine_core")
            with killed_if_safe(self) if quick else nullcontext():
                super().shutdown(timeout)
            self.was_shut_down = True

        def __del__(self) -> None:
            if not self.was_shut_down:
                super().__del__()

    return OwnedAsyncLLM


def _end_unwanted(building: asyncio.Future[AsyncLLM]) -> None:
    """Shut down an engine whose start was cancelled."""
    if not building.cancelled() and building.exception() is None:
        # The event loop's executor accepts no more work while the process ends, so use a thread.
        threading.Thread(target=building.result().shutdown, name="end-unwanted-engine").start()


def _fail_unfinished(llm: AsyncLLM) -> None:
    """Fail the requests that still wait for tokens; vLLM's task that would do so has been cancelled."""
    if llm.output_processor.get_num_unfinished_requests():
        from vllm.v1.engine.exceptions import EngineDeadError

        llm.output_processor.propagate_error(EngineDeadError())


def _release(llm: AsyncLLM) -> None:
    """Free what vLLM keeps until the process ends: nine file descriptors per engine."""
    resources = llm.engine_core.resources
    resources.ctx.destroy(linger=0)
    if resources.engine_manager is not None:
        for process in resources.engine_manager.processes:
            with suppress(ValueError):  # still running, or already closed
                process.close()
