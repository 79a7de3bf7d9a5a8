"""Imports vLLM and ends: ``python -m vbon.demo.warm_imports``.

The operating system then has its files in memory, and Python their bytecode on the disk.
"""

import contextlib
import importlib

if __name__ == "__main__":
    with contextlib.suppress(ImportError):
        importlib.import_module("vbon.engine.vllm.engine")
        importlib.import_module("vllm.v1.engine.async_llm")
