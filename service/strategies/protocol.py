"""The interface of decoding strategies: each turns one prompt into one chosen answer."""

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
    "ranked",
    "tokens_of",
]

Float = NDArray[np.float64]


class Scorer(Protocol):
    """Scores single completions; concurrent calls are batched."""

    name: str
    revision: str

    async def score(self, prompt: Prompt, completion: str) -> float | None:
        """The raw reward, or ``None`` if the reward model cannot score this completion."""


@dataclass(frozen=True, slots=True)
class Task:
    """One prompt to answer.

    Attributes:
        prompt_token_ids: the prompt as the policy encodes it.
        num_samples: N; single-sample strategies draw one candidate whatever it is.
        score: whether a single-sample strategy should report a reward.
        observer: receives the events of this task as they happen.
        answers: how many candidates are returned; single-sample strategies draw as many.
    """

    prompt: Prompt
    prompt_token_ids: list[int]
    sampling: Sampling
    num_samples: int
    request_id: str
    score: bool = True
    observer: Observer = UNOBSERVED
    answers: int = 1


@dataclass(frozen=True, slots=True)
class Resources:
    """The models that a strategy can use.

    Attributes:
        engine: the engine of the policy to draw from.
        policies: all engines by policy name, for strategies that need a second one.
        scorer: the reward model; ``None`` if none is available.
        embedder: for strategies that compare texts.
    """

    engine: Engine
    policies: Mapping[str, Engine]
    scorer: Scorer | None
    embedder: Embedder


@dataclass(frozen=True, slots=True)
class Outcome:
    """A strategy's choice, with its costs.

    Attributes:
        selected: the answer.
        candidates: all candidates in the order of their indices; those stopped early have the finish
            reason ``rejected``.
        decode_ms: time until the last candidate was decoded.
        rerank_ms: time from then until the choice, that is, scoring not hidden by decoding.
        generated_tokens: number of all decoded tokens, discarded ones included.
        details: further facts to report; JSON values.
        step_times_s: ``perf_counter`` time of each step of a streamed sample.
        returned: the answers, the selected one first; by default only that.
        judged: the candidates that were to be scored; by default all.
        continued: how often streamed samples went on at another replica, after one had died.
    """

    selected: ScoredCandidate
    candidates: tuple[ScoredCandidate, ...]
    decode_ms: float
    rerank_ms: float
    generated_tokens: int
    details: Mapping[str, Any] = field(default_factory=dict)
    step_times_s: tuple[float, ...] = ()
    returned: tuple[ScoredCandidate, ...] = ()
    judged: tuple[ScoredCandidate, ...] = ()
    continued: int = 0

    def __post_init__(self) -> None:
        """Return the selected candidate unless several are returned, and count all as judged."""
        if not self.judged:
            object.__setattr__(self, "judged", self.candidates)
        if not self.returned:
            object.__setattr__(self, "returned", (self.selected,))

    @property
    def returned_tokens(self) -> int:
        """Number of tokens of the answers."""
        return tokens_of(self.returned)


def tokens_of(candidates: Sequence[ScoredCandidate]) -> int:
    """The total number of tokens; equals the number decoded if no two candidates share tokens."""
    return sum(len(scored.candidate.token_ids) for scored in candidates)


class Strategy(BaseModel, ABC):
    """A decoding strategy; its fields are the settings that a request may send.

    Attributes:
        description: one line for ``GET /modes``.
        reranks: True if it draws several candidates and chooses one.
        needs_reward: True if it needs a reward model, as those that rerank do unless they say otherwise;
            others score answers only to report rewards.
        uses_logprobs: True if it needs log-probabilities; the engine then computes them.
        uses_policies: True if it uses other policies than the one it draws from.
        continues: True if it lets the engine continue partial answers, which parameters that look back at an
            answer's beginning do not survive.
        source: the paper it follows; empty if there is none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: ClassVar[str]
    reranks: ClassVar[bool] = True
    needs_reward: ClassVar[bool] = True
    uses_logprobs: ClassVar[bool] = False
    uses_policies: ClassVar[bool] = False
    continues: ClassVar[bool] = False
    source: ClassVar[str] = ""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Let strategies that do not choose among candidates need no reward model."""
        super().__pydantic_init_subclass__(**kwargs)
        cls.needs_reward = cls.needs_reward and cls.reranks

    @abstractmethod
    async def run(self, task: Task, resources: Resources) -> Outcome:
        """Answer one prompt.

        Raises:
            EngineError, RewardError, InvalidInputError: decoding or scoring failed.
        """

    @property
    def top_logprobs(self) -> int:
        """The number of likeliest tokens at each position whose log-probabilities it reads."""
        return 0

    def fitted(self, num_samples: int, max_tokens: int) -> Strategy:
        """This strategy with the settings that it will actually use; answers report them."""
        return self

    def with_answers(self, answers: int) -> Strategy:
        """This strategy with the settings that it needs to end with at least so many whole candidates.

        Raises:
            InvalidInputError: the request's own settings do not allow so many.
        """
        return self

    def independent(self, num_samples: int) -> int | None:
        """The number of first candidates that are independent samples of the policy.

        Their number must be fixed before any reward is known. It is 0 if rewards decide which candidates are
        finished, and ``None`` if candidates are not samples of the policy; their answers are never collected
        for training.
        """
        return None

    def most_candidates(self, num_samples: int) -> int:
        """The most candidates it may draw for one prompt; the server limits this number."""
        return num_samples

    def sequences(self, num_samples: int) -> int:
        """The most sequences it decodes at once for one prompt; admission counts these."""
        return num_samples if self.reranks else 1


def ranked(outcome: Outcome, sampling: Sampling) -> tuple[ScoredCandidate, ...]:
    """The candidates of a reranked prompt that were not rejected, the selected one first, then by reward.

    Among equal rewards, the lower index comes first. Candidates without a reward come last, and JSON texts
    that are cut come after whole ones.
    """

    def cut(one: ScoredCandidate) -> bool:
        return sampling.json_schema is not None and one.candidate.finish_reason == "length"

    others = [
        one
        for one in outcome.candidates
        if one.candidate.index != outcome.selected.candidate.index
        and one.candidate.finish_reason != "rejected"
    ]
    others.sort(
        key=lambda one: (cut(one), one.reward is None, -(one.reward or 0.0), one.candidate.index)
    )
    return (outcome.selected, *others)
