"""Runs a module of this project and writes its time and peak memory, also if it fails.

python -m training.gpu_check.measured RECORD.json MODULE [ARGUMENT ...]
"""

from __future__ import annotations

import os
import resource
import runpy
import sys
import time
from pathlib import Path
from typing import Any

from vbon.storage.atomic import write_json


def main(arguments: list[str]) -> None:
    """Run the module as ``python -m`` would, then write the record."""
    record, module, *rest = arguments
    sys.argv = [module, *rest]
    begun = time.perf_counter()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        # Of several processes, the first one writes.
        if os.environ.get("RANK", "0") == "0":
            write_json(Path(record), {"seconds": time.perf_counter() - begun, **memory()})


def memory() -> dict[str, Any]:
    """The most memory this process has held: of the GPU if it used one, and of the machine."""
    found: dict[str, Any] = {
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
        found["gpu"] = torch.cuda.get_device_name()
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
