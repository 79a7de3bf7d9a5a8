"""A reward model that is scored by vLLM's pooling runner, inside this process."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from vbon.engine.vllm.engine_args import one_line
from vbon.errors import CheckpointError, RewardError
from vbon.rewards import Scorable
from vbon.rewards.classifier import ClassifierReward


def vllm_environment(threads: int) -> dict[str, str]:
    """The environment variables of vLLM on a CPU; a pooling model of an encoder needs no KV cache."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }


class PoolingReward:
    """The classifier of a :class:`~vbon.rewards.classifier.ClassifierReward`, in vLLM instead.

    vLLM gets the token ids that the other one reads, so that both score the same.

    Args:
        arguments: vLLM's engine arguments, with ``model``.
        threads: CPU threads.
    """

    def __init__(
        self, classifier: ClassifierReward, arguments: Mapping[str, Any], threads: int
    ) -> None:
        self.name, self.revision = f"{classifier.name} in vLLM", classifier.revision
        self._classifier, self._arguments, self._threads = classifier, dict(arguments), threads
        self._llm: Any = None

    def load(self) -> None:
        """Start the engine.

        Raises:
            CheckpointError: vLLM cannot serve the model.
        """
        os.environ.update(vllm_environment(self._threads))
        # The engine is part of this process, which may not have children, and answers sooner there.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        self._classifier.load_tokenizer()
        from vllm import LLM

        try:
            self._llm = LLM(**self._arguments, runner="pooling")
        except Exception as error:  # any error means that the checkpoint cannot be served
            raise CheckpointError(f"vLLM cannot serve {self.name}: {one_line(error)}") from error

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        """The raw logits; ``None`` if a text is longer than the context, or its logit is not finite."""
        from vllm import PoolingParams, TokensPrompt

        longest = int(self._llm.model_config.max_model_len)
        scores: list[float | None] = [None] * len(items)
        encoded = self._classifier.encode(items)
        places = [i for i, ids in enumerate(encoded) if 0 < len(ids) <= longest]
        if not places:  # vLLM refuses an empty batch
            return scores
        try:
            answers = self._llm.encode(
                [TokensPrompt(prompt_token_ids=encoded[i]) for i in places],
                PoolingParams(use_activation=False),
                pooling_task="classify",
                use_tqdm=False,
            )
        except Exception as error:  # whatever vLLM raises
            raise RewardError(f"{self.name} failed: {one_line(error)}") from error
        for place, answer in zip(places, answers, strict=True):
            (logit,) = answer.outputs.data.float().flatten().tolist()
            scores[place] = logit if math.isfinite(logit) else None
        return scores

    def close(self) -> None:
        """Do nothing: the engine ends with its process."""
