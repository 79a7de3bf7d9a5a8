"""What a decoding strategy is: from one prompt to one chosen answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from service.strategies.observer import UNOBSERVED, Observer
from service.strategies.scored import ScoredCandidate
from vbon.embedders import Embedder
from vbon.engine import Engine, Sampling
from vbon.prompts import Prompt

__all__ = [
    "Float",
    "Observer",
    "Outcome",
    "Resources",
    "ScoredCandidate",
    "Scorer",
    "Strategy",
    "Task",
    "tokens_of",
]

Float = NDArray[np.float64]


class Scorer(Protocol):
    """Scores one completion; many calls at once are batched behind it."""

    name: str
    revision: str

    async def score(self, prompt: Prompt, completion: str) -> float | None:
        """Raw reward, or ``None`` if the reward model has none for it."""


@dataclass(frozen=True, slots=True)
class Task:
    """One prompt to answer.

    Attributes:
        prompt_token_ids: the prompt as the policy sees it.
        num_samples: N; single-sample strategies draw one whatever it says.
        score: whether a strategy that needs no reward should report one all the same.
        observer: told of candidates as they are finished and scored, of single samples as they grow.
    """

    prompt: Prompt
    prompt_token_ids: list[int]
    sampling: Sampling
    num_samples: int
    request_id: str
    score: bool = True
    observer: Observer = UNOBSERVED


@dataclass(frozen=True, slots=True)
class Resources:
    """What strategies work with.

    Attributes:
        engine: of the policy that is asked.
        policies: all engines by name, for strategies that need a second one.
        scorer: the reward model; ``None`` where none is configured.
        embedder: for strategies that compare texts.
    """

    engine: Engine
    policies: Mapping[str, Engine]
    scorer: Scorer | None
    embedder: Embedder


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a strategy chose and what it cost.

    Attributes:
        selected: the answer.
        candidates: everything generated, by index; what was given up early is ``rejected``.
        decode_ms: until the last candidate finished.
        rerank_ms: from then until the choice: what scoring adds that decoding did not hide.
        generated_tokens: everything decoded, discarded tokens included.
        details: what else the strategy has to report, as JSON.
        step_times_s: when a sample that was followed grew, ``perf_counter`` seconds, one a step.
    """

    selected: ScoredCandidate
    candidates: tuple[ScoredCandidate, ...]
    decode_ms: float
    rerank_ms: float
    generated_tokens: int
    details: Mapping[str, Any] = field(default_factory=dict)
    step_times_s: tuple[float, ...] = ()

    @property
    def returned_tokens(self) -> int:
        """Tokens of the answer."""
        return len(self.selected.candidate.token_ids)


def tokens_of(candidates: Sequence[ScoredCandidate]) -> int:
    """All their tokens, which is what was decoded where candidates share none."""
    return sum(len(scored.candidate.token_ids) for scored in candidates)


class Strategy(BaseModel, ABC):
    """A decoding strategy; its fields are the settings a request may send along.

    Attributes:
        description: one line for ``GET /modes``.
        reranks: whether it needs a reward model and draws several candidates.
        uses_logprobs: whether it looks at log-probabilities, which the engine then computes.
        uses_policies: whether it asks other policies than the one it draws from.
        source: the paper it follows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: ClassVar[str]
    reranks: ClassVar[bool] = True
    uses_logprobs: ClassVar[bool] = False
    uses_policies: ClassVar[bool] = False
    source: ClassVar[str] = ""

    @abstractmethod
    async def run(self, task: Task, resources: Resources) -> Outcome:
        """Answer one prompt.

        Raises:
            EngineError, RewardError, InvalidInputError: and then there is no answer.
        """

    def fitted(self, num_samples: int, max_tokens: int) -> Strategy:
        """Itself with the settings it will use for such a request, which answers report."""
        return self

    def most_candidates(self, num_samples: int) -> int:
        """Most candidates it may draw for a prompt, which is what the server limits."""
        return num_samples

    def sequences(self, num_samples: int) -> int:
        """Most sequences it decodes at once for a prompt, which is what admission counts."""
        return num_samples if self.reranks else 1
