"""Keeps the random generators of seeded requests where they are while a prompt is still being read, on CPUs.

vLLM samples a token for every request of a step and discards those of prompts that are not read to their end,
because a step had no room for all of it. It takes a discarded draw back by moving the offset of the request's
generator, which generators on a CPU do not have: the engine dies of ``CPU Generator does not use offset``.
Here the state is put back instead. This module is imported in the worker processes only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from vllm.platforms import current_platform


def take_back_by_state(runner_type: Any) -> None:
    """Let a model runner put back the states of generators whose draws are discarded.

    Args:
        runner_type: vLLM's class, whose methods are replaced.
    """
    sample, bookkeep = runner_type._sample, runner_type._bookkeeping_sync

    def discarded(runner: Any) -> list[int]:
        mask = runner.discard_request_mask.np[: runner.input_batch.num_reqs]
        generators = runner.input_batch.generators
        return [int(i) for i in np.nonzero(mask)[0] if int(i) in generators]

    def _sample(self: Any, *args: Any, **options: Any) -> Any:
        generators = self.input_batch.generators
        states = {i: generators[i].get_state() for i in discarded(self)}
        drawn = sample(self, *args, **options)
        for i, state in states.items():
            generators[i].set_state(state)
        return drawn

    def _bookkeeping_sync(self: Any, *args: Any, **options: Any) -> Any:
        generators = self.input_batch.generators
        hidden = {i: generators.pop(i) for i in discarded(self)}
        try:
            return bookkeep(self, *args, **options)
        finally:
            generators.update(hidden)

    runner_type._sample, runner_type._bookkeeping_sync = _sample, _bookkeeping_sync


if current_platform.is_cpu():
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    take_back_by_state(CPUModelRunner)
