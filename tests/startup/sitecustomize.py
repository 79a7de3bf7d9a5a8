"""Spares processes that tests start most garbage collections of their first seconds, in which they import.

Python imports this module by itself where `PYTHONPATH` names its folder, as in `tests/conftest.py`. What a
process imports lasts, so looking through it again and again finds nothing: a sixth of the CPU time of a
start of vLLM. Python's own thresholds are back once the process has worked for `_START_S` seconds, unless
it has set others.
"""

from __future__ import annotations

import gc
import time

_START_S = 10.0  # of CPU time
_AT_FIRST = (100_000, 20, 100)
_OWN = gc.get_threshold()


def _end_of_start(phase: str, info: dict[str, int]) -> None:
    if phase == "stop" and time.process_time() > _START_S:
        gc.callbacks.remove(_end_of_start)
        if gc.get_threshold() == _AT_FIRST:
            gc.set_threshold(*_OWN)


gc.set_threshold(*_AT_FIRST)
gc.callbacks.append(_end_of_start)
