"""One prompt's request to the runtime, its progress record and its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

from service.context.request_context import PromptProgress, record_prompt
from service.runtime.modes import Mode
from service.runtime.routing import PriceRouting, Routing
from service.runtime.served_scorer import ServedScorer
from service.strategies import UNOBSERVED, Observer, Outcome
from vbon.engine import ModelInfo, Sampling
from vbon.prompts import Prompt


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """One prompt to answer in a mode.

    Attributes:
        num_samples: N; single-sample modes draw one candidate whatever it is.
        score: whether a single-sample mode should report a reward.
        timeout_s: a time limit shorter than the server's.
        answers: how many candidates are returned; single-sample modes draw as many.
        clip: whether ``max_tokens`` is a default, which is lowered to the room left in the context.
        observer: receives the events of this request as they happen.
        collected_as: the id under which the answer may be collected for training; ``None`` forbids it.
        routing: how mode ``auto`` answers; ``None`` in other modes.
        spent_s: the part of the time limit that an earlier attempt has taken.
    """

    mode: Mode
    prompt: Prompt
    sampling: Sampling
    num_samples: int
    request_id: str
    score: bool = True
    timeout_s: float | None = None
    clip: bool = False
    answers: int = 1
    observer: Observer = UNOBSERVED
    collected_as: str | None = None
    routing: Routing | PriceRouting | None = None
    spent_s: float = 0.0

    @property
    def drawn(self) -> int:
        """The N the answer reports: that of its answers for single-sample modes, usually 1."""
        return self.num_samples if self.mode.strategy.reranks else self.answers

    @property
    def sequences(self) -> int:
        """The most sequences that are decoded at once."""
        return max(self.mode.strategy.sequences(self.num_samples), self.answers)

    @property
    def wants_rewards(self) -> bool:
        """True if candidates are to be scored, given a reward model."""
        return self.score or self.mode.strategy.needs_reward

    def fitted(self) -> PromptRequest:
        """This request with the strategy settings and log-probabilities that its strategy will use."""
        strategy = self.mode.strategy.with_answers(self.answers)
        strategy = strategy.fitted(self.num_samples, self.sampling.max_tokens)
        sampling = self.sampling
        if strategy.top_logprobs:
            sampling = replace(sampling, logprobs=True, top_logprobs=strategy.top_logprobs)
        elif strategy.uses_logprobs and not sampling.logprobs:
            sampling = replace(sampling, logprobs=True)
        return replace(self, mode=replace(self.mode, strategy=strategy), sampling=sampling)


@dataclass(frozen=True, slots=True)
class PromptResult:
    """One prompt's outcome, with the time it took from arrival.

    Attributes:
        policy: the model that decoded it; a reload may have replaced it since.
        scorer: the scorer in use at the time; ``None`` if none was available.
        sampling: the parameters used; a default ``max_tokens`` may have been lowered to what fits.
        num_samples: N; 1 for single-sample modes.
        reward_revision: revision of the reward model that scored, if the scorer tells it, and else when the
            prompt arrived.
        routing: as that of the request.
        earlier_revisions: revisions of the policy before, since the request began: some tokens may be theirs.
    """

    mode: Mode
    sampling: Sampling
    policy: ModelInfo
    scorer: ServedScorer | None
    prompt_tokens: int
    num_samples: int
    outcome: Outcome
    queue_ms: float
    scoring_ms: float
    total_ms: float
    reward_revision: str | None = None
    routing: Routing | PriceRouting | None = None
    earlier_revisions: tuple[str, ...] = ()


# Receives every answer that may be collected, with its request, in the task of the request.
AnswerSink = Callable[[PromptRequest, PromptResult], None]


def begin_progress(request: PromptRequest, *, scored: bool) -> PromptProgress:
    """Open the request's record for the access log and its trace."""
    return record_prompt(
        PromptProgress(
            answer_id=request.request_id,
            mode=request.mode.name,
            policy=request.mode.policy,
            num_samples=request.drawn,
            max_tokens=request.sampling.max_tokens,
            temperature=request.sampling.temperature,
            scored=scored,
            arrived_s=perf_counter(),
        )
    )


def note_outcome(progress: PromptProgress, outcome: Outcome) -> None:
    """Add the outcome to the request's record."""
    progress.decode_ms, progress.rerank_ms = outcome.decode_ms, outcome.rerank_ms
    progress.candidates = len(outcome.candidates)
    progress.generated_tokens = outcome.generated_tokens
    progress.returned_tokens = outcome.returned_tokens
    progress.finish_reason = outcome.selected.candidate.finish_reason
