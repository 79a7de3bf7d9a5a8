"""Empties vLLM's caches of files, so that each start reads what the files hold then."""

from __future__ import annotations

import sys
from functools import _lru_cache_wrapper

# The parts of vLLM that keep tokenizers, processors, configs and lists of files by the path of a model.
_READERS = ("vllm.tokenizers", "vllm.transformers_utils", "vllm.renderers")


def forget_files() -> None:
    """Empty the caches of those parts. Running engines keep the objects that they hold."""
    for name, module in list(sys.modules.items()):
        if name.startswith(_READERS):
            for value in list(vars(module).values()):
                if isinstance(value, _lru_cache_wrapper):
                    value.cache_clear()
