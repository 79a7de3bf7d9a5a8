"""What a decoding strategy is: from one prompt to one chosen answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from bestofn.engine import Candidate, Engine, Sampling
from bestofn.prompts import Prompt


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
    """

    prompt: Prompt
    prompt_token_ids: list[int]
    sampling: Sampling
    num_samples: int
    request_id: str
    score: bool = True


@dataclass(frozen=True, slots=True)
class ScoredCandidate:
    """A candidate and its reward; ``None`` if it was not or could not be scored."""

    candidate: Candidate
    reward: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a strategy chose and what it cost.

    Attributes:
        selected: the answer.
        candidates: everything generated, by index.
        decode_ms: until the last candidate finished.
        rerank_ms: from then until the choice: what scoring adds that decoding did not hide.
    """

    selected: ScoredCandidate
    candidates: tuple[ScoredCandidate, ...]
    decode_ms: float
    rerank_ms: float

    @property
    def generated_tokens(self) -> int:
        """Tokens of every candidate, discarded ones included."""
        return sum(len(scored.candidate.token_ids) for scored in self.candidates)

    @property
    def returned_tokens(self) -> int:
        """Tokens of the answer."""
        return len(self.selected.candidate.token_ids)


class Strategy(Protocol):
    """A decoding strategy; stateless, one instance serves all requests.

    Attributes:
        description: one line for ``GET /modes``.
        reranks: whether it needs a reward model and draws N candidates.
    """

    description: str
    reranks: bool

    async def answer(self, task: Task, engine: Engine, scorer: Scorer | None) -> Outcome:
        """Answer one prompt.

        Raises:
            EngineError, RewardError, InvalidInputError: and then there is no answer.
        """
