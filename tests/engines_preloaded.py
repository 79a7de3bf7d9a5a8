"""The imports of a service over vLLM and of vLLM's engine processes, done once."""

from __future__ import annotations

import gc

import setproctitle
import vllm.engine.arg_utils
import vllm.model_executor.model_loader
import vllm.model_executor.models.llama
import vllm.v1.engine.async_llm
import vllm.v1.engine.core
import vllm.v1.worker.cpu_worker  # noqa: F401

import service.app
import service.runtime.build
import service.server  # noqa: F401

setproctitle.getproctitle()  # it finds the title's place only before the environment is another
gc.freeze()  # a collection in a fork would copy all that it looks at
