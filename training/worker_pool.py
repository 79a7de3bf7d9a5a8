"""Worker processes for independent trainings, which share the cores and end with their parent."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from vbon.errors import DataError


@contextmanager
def worker_pool(jobs: int, log_level: int = logging.WARNING) -> Iterator[ProcessPoolExecutor]:
    """A pool of ``jobs`` processes, each with its share of the cores for torch.

    Raises:
        DataError: a worker died.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _start_worker, (threads, log_level)) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process died (out of memory?); run the same command again to continue"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker(threads: int, log_level: int) -> None:
    import torch

    torch.set_num_threads(threads)
    logging.basicConfig(level=log_level, format="%(levelname)s %(message)s")
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()


def _exit_with_parent(parent: int) -> None:
    """End this worker when its parent is killed; otherwise it would train on unnoticed for hours."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
