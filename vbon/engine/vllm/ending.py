"""The quick end of a vLLM engine process that leaves nothing behind when it is killed.

After SIGTERM the process spends seconds of CPU time on collecting garbage, which the system frees anyway, and
is killed by vLLM after 5 s.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any


@contextmanager
def killed_if_safe(llm: Any) -> Iterator[None]:
    """Kill the engine process first if it has nothing to put in order, so that the shutdown need not wait.

    Args:
        llm: the ``AsyncLLM`` of the process. The body of the ``with`` statement shuts it down, for which it
            waits until the process has ended.
    """
    manager = llm.engine_core.resources.engine_manager
    if manager is None or not can_be_killed(llm.vllm_config):
        yield
        return
    # Otherwise vLLM's monitor would log the end as unexpected.
    llm.engine_core.resources.engine_dead = True
    semaphores: set[int] = set()
    for process in manager.processes:
        with suppress(ValueError):  # ended and closed already
            semaphores |= _semaphores(str(process.pid))
            process.kill()
    yield
    _forget(semaphores - _semaphores("self"))


def can_be_killed(config: Any) -> bool:
    """True if the engine process has no workers and no data that must outlive it.

    Workers notice the end of their engine later and would still hold memory when the shutdown returns.
    Connectors of the KV cache, profilers and traces are flushed by an orderly end.

    Args:
        config: the ``VllmConfig`` of the engine.
    """
    parallel = config.parallel_config
    alone = parallel.world_size_across_dp == 1 and parallel.distributed_executor_backend == "uni"
    to_flush = (
        config.kv_transfer_config,
        config.kv_events_config,
        config.ec_transfer_config,
        config.profiler_config.profiler,
        config.observability_config.otlp_traces_endpoint,
    )
    return bool(alone) and all(part is None for part in to_flush)


def _semaphores(pid: str) -> set[int]:
    """The inodes of the semaphores that a process uses; progress bars make one. Empty without /proc.

    The name that the process shows for a semaphore that it made itself is a temporary one.
    """
    try:
        lines = Path("/proc", pid, "maps").read_text().splitlines()
    except OSError:
        return set()
    return {int(line.split()[4]) for line in lines if "/dev/shm/sem." in line}


def _forget(inodes: set[int]) -> None:
    """Remove the semaphores of a dead process, of which Python's resource tracker would warn at the end."""
    # Names differ: joblib changes those that Python gives.
    for path in Path("/dev/shm").glob("sem.*"):
        # A process that ended by itself has removed its own; another may remove another one now.
        with suppress(FileNotFoundError):
            if path.stat().st_ino in inodes:
                path.unlink()
                resource_tracker.unregister("/" + path.name.removeprefix("sem."), "semaphore")
