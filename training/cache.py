"""The reward cache: rewards of M reference samples a prompt, from which F is estimated.

Two JSONL forms are read, both those of the official vBoN code: one prompt a line
(``{"prompt", "responses", "rewards"}``, also what ``sample`` writes) and one response a line
(``{"prompt", "text", "reward"}``). Lines of the same prompt are pooled.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestofn.errors import DataError

logger = logging.getLogger(__name__)

Float = NDArray[np.float64]

# log F^ is floored at log(1/(M+1)); below this many samples per candidate of N the floor is felt.
SAMPLES_PER_CANDIDATE = 4


@dataclass(frozen=True, slots=True)
class CachedSamples:
    """The reference samples of one prompt, aligned; only some uses need the texts.

    Attributes:
        truncated: whether each response hit the token limit instead of ending; ``None`` where the
            file does not say (caches made elsewhere).
    """

    prompt: str
    responses: list[str]
    rewards: Float
    truncated: list[bool] | None


class RewardCache:
    """Sorted reference rewards per prompt.

    Args:
        rewards: per prompt key, at least one finite reward, in any order.
    """

    def __init__(self, rewards: Mapping[str, Iterable[float]]) -> None:
        self._sorted: dict[str, Float] = {
            prompt: np.sort(np.asarray(list(values), dtype=np.float64))
            for prompt, values in rewards.items()
        }
        if not self._sorted:
            raise DataError("the reward cache is empty; run `python -m training sample` first")

    def __len__(self) -> int:
        return len(self._sorted)

    @property
    def prompts(self) -> list[str]:
        """Prompt keys in the order of the file."""
        return list(self._sorted)

    @property
    def smallest(self) -> int:
        """M of the prompt with the fewest samples."""
        return min(len(values) for values in self._sorted.values())

    def rewards(self, prompt: str) -> Float:
        """Ascending reference rewards of a prompt, shape ``(M,)``.

        Raises:
            DataError: if the prompt was never sampled.
        """
        try:
            return self._sorted[prompt]
        except KeyError:
            raise DataError(
                f"prompt {prompt[:80]!r} is not in the reward cache ({len(self)} prompts); "
                "sample it with `python -m training sample`"
            ) from None

    def log_cdf(self, prompt: str, rewards: Float) -> Float:
        """``log F^ = log((rank + 1) / (M + 1))``, rank the count of strictly smaller rewards.

        Never ``-inf``; the floor is ``1/(M+1)``. Its mean under the reference tends to -1 as M
        grows (-0.95 at 64, -0.987 at 300), so M should be well above N.
        """
        reference = self.rewards(prompt)
        rank = np.searchsorted(reference, rewards, side="left")
        return np.log((rank + 1) / (len(reference) + 1))

    def warn_about(self, num_samples: int) -> list[str]:
        """What makes this cache a poor teacher for best-of-N; logged and returned."""
        warnings = []
        flat = [prompt for prompt, values in self._sorted.items() if values[0] == values[-1]]
        if flat:
            warnings.append(
                f"{len(flat)} of {len(self)} prompts have all-equal rewards (first: "
                f"{flat[0][:60]!r}): ties carry no signal"
            )
        if self.smallest < SAMPLES_PER_CANDIDATE * num_samples:
            warnings.append(
                f"M = {self.smallest} reference samples a prompt is small for N = {num_samples}: "
                f"F below 1/{self.smallest + 1} cannot be told apart; use at least "
                f"{SAMPLES_PER_CANDIDATE * num_samples}"
            )
        for warning in warnings:
            logger.warning(warning)
        return warnings

    @classmethod
    def load(cls, path: Path) -> RewardCache:
        """Read a cache file in either form.

        Raises:
            DataError: on a missing or empty file, a malformed line, or a reward that is not finite;
                names the line.
        """
        if not path.is_file():
            raise DataError(f"reward cache {path} does not exist; make it with `sample`")
        pooled: dict[str, list[float]] = {}
        for where, line in _lines(path):
            prompt, rewards = _parse(line, where)[:2]
            pooled.setdefault(prompt, []).extend(rewards)
        if not pooled:
            raise DataError(f"reward cache {path} is empty; run `python -m training sample` first")
        return cls(pooled)


def read_samples(path: Path) -> Iterator[CachedSamples]:
    """Responses with their rewards, pooled by prompt.

    Raises:
        DataError: on a line without responses, or as :meth:`RewardCache.load`.
    """
    pooled: dict[str, list[tuple[str, float, bool | None]]] = {}
    for where, line in _lines(path):
        prompt, rewards, record = _parse(line, where)
        responses = record["responses"] if "rewards" in record else [record.get("text")]
        if not isinstance(responses, list) or not all(isinstance(r, str) for r in responses):
            raise DataError(f"{where} has rewards but no responses; imitating needs the texts")
        reasons = record.get("finish_reasons") or [None] * len(rewards)
        truncated = (None if reason is None else reason == "length" for reason in reasons)
        pooled.setdefault(prompt, []).extend(zip(responses, rewards, truncated, strict=True))
    for prompt, samples in pooled.items():
        texts, rewards, truncations = (list(column) for column in zip(*samples, strict=True))
        known = [flag for flag in truncations if flag is not None]
        yield CachedSamples(
            prompt,
            texts,
            np.asarray(rewards, dtype=np.float64),
            known if len(known) == len(texts) else None,
        )


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Non-blank lines with where they stand."""
    with path.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            if line.strip():
                yield f"{path}:{number}", line


def _parse(line: str, where: str) -> tuple[str, list[float], dict[str, Any]]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not valid JSON ({error}); a truncated file?") from error
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise DataError(f'{where} has no string "prompt"')
    if "rewards" in record:
        rewards = record["rewards"]
        responses = record.get("responses")
        if not isinstance(rewards, list) or not rewards:
            raise DataError(f'{where}: "rewards" must be a list with at least one number')
        if isinstance(responses, list) and len(responses) != len(rewards):
            raise DataError(f"{where} has {len(responses)} responses but {len(rewards)} rewards")
    elif "reward" in record:
        rewards = [record["reward"]]
    else:
        raise DataError(f'{where} has neither "rewards" nor "reward"')
    for reward in rewards:
        if isinstance(reward, bool) or not isinstance(reward, int | float):
            raise DataError(f"{where}: reward {reward!r} is not a number")
        if not math.isfinite(reward):
            raise DataError(f"{where}: reward {reward} is not finite; leave such samples out")
    return record["prompt"], [float(reward) for reward in rewards], record
