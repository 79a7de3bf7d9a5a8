"""The figures of a comparison, computed from every mode's answers and rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from service.generation.references import policy_ref, sampling_differences
from service.runtime.modes import Mode
from service.runtime.prompt import PromptResult
from service.runtime.runtime import Runtime
from service.schemas import ComparedAnswer, HeadToHead, LatencySummary, ModeReport, PromptRow
from vbon.engine import Sampling
from vbon.maths.curves import pairwise_win_rate
from vbon.maths.intervals import MeanInterval
from vbon.maths.statistics import bootstrap_mean, median_range

Rewards = list[list[float | None]]  # [repeat][prompt]; None for answers that could not be scored


@dataclass(slots=True)
class ModeRuns:
    """One mode's results and rewards, each ``[repeat][prompt]``, and every repeat's wall time."""

    mode: Mode
    results: list[list[PromptResult]] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    rewards: Rewards = field(default_factory=list)
    gold: Rewards = field(default_factory=list)

    def tokens(self, *, returned: bool) -> list[int]:
        """Tokens of each repeat: those of the answers if ``returned``, else all that were decoded."""
        return [
            sum(
                result.outcome.returned_tokens if returned else result.outcome.generated_tokens
                for result in results
            )
            for results in self.results
        ]

    def mean_e2e_ms(self) -> list[float]:
        """Mean E2E latency of each repeat, milliseconds."""
        return [float(np.mean([one.total_ms for one in results])) for results in self.results]

    def per_second(self, amounts: Sequence[int]) -> list[float]:
        """The rate of each repeat, from an amount per repeat."""
        return [amount / wall for amount, wall in zip(amounts, self.wall_s, strict=True)]


def mode_report(runtime: Runtime, run: ModeRuns, base: ModeRuns, sampling: Sampling) -> ModeReport:
    """One mode's figures, with win rates and ratios against the baseline."""
    latencies = np.array([result.total_ms for results in run.results for result in results])
    generated, returned = run.tokens(returned=False), run.tokens(returned=True)
    answered = [len(results) for results in run.results]
    first = run.results[0][0]
    is_baseline = run is base
    return ModeReport(
        mode=run.mode.name,
        policy=policy_ref(runtime, run.mode),
        n=first.num_samples,
        sampling_differences=sampling_differences(runtime, run.mode.policy, sampling),
        strategy=first.mode.strategy.model_dump(mode="json"),
        reward=_mean_reward(run.rewards),
        gold_reward=_mean_reward(run.gold),
        unscored_answers=sum(reward is None for row in run.rewards for reward in row),
        win_rate=None if is_baseline else _win_rate(run.rewards, base.rewards),
        gold_win_rate=None if is_baseline else _win_rate(run.gold, base.gold),
        e2e_ms=LatencySummary(
            mean=float(latencies.mean()),
            p50=float(np.quantile(latencies, 0.5)),
            p95=float(np.quantile(latencies, 0.95)),
        ),
        requests_per_s=median_range(run.per_second(answered)),
        generated_tokens_per_s=median_range(run.per_second(generated)),
        returned_tokens_per_s=median_range(run.per_second(returned)),
        generated_tokens=sum(generated),
        returned_tokens=sum(returned),
        ratio_requests_per_s=median_range(_ratios(base.wall_s, run.wall_s)),
        ratio_e2e=median_range(_ratios(run.mean_e2e_ms(), base.mean_e2e_ms())),
        ratio_generated_tokens=sum(generated) / max(1, sum(base.tokens(returned=False))),
    )


def head_to_head(first: ModeRuns, second: ModeRuns) -> HeadToHead:
    """Wins, losses and ties of one mode against another, over all pairs of answers to a prompt."""
    wins = losses = ties = 0
    for ours, theirs in zip(_by_prompt(first.rewards), _by_prompt(second.rewards), strict=True):
        difference = np.sign(np.subtract.outer(ours, theirs))
        wins += int((difference > 0).sum())
        losses += int((difference < 0).sum())
        ties += int((difference == 0).sum())
    return HeadToHead(
        mode=first.mode.name,
        against=second.mode.name,
        wins=wins,
        losses=losses,
        ties=ties,
        reward_difference=_difference(first.rewards, second.rewards),
        gold_difference=_difference(first.gold, second.gold),
    )


def prompt_row(prompt: str, index: int, runs: Sequence[ModeRuns]) -> PromptRow:
    """One prompt, with each mode's answer from the first repeat."""
    return PromptRow(
        prompt=prompt,
        answers={
            run.mode.name: ComparedAnswer(
                text=run.results[0][index].outcome.selected.candidate.text,
                reward=run.rewards[0][index],
                gold_reward=run.gold[0][index],
            )
            for run in runs
        },
    )


def _by_prompt(rewards: Rewards) -> list[list[float]]:
    """The rewards regrouped as ``[prompt][answer]``, without answers that could not be scored."""
    return [
        [reward for reward in column if reward is not None] for column in zip(*rewards, strict=True)
    ]


def _interval(values: list[float]) -> MeanInterval | None:
    return bootstrap_mean(values) if values else None


def _mean_reward(rewards: Rewards) -> MeanInterval | None:
    return _interval([float(np.mean(values)) for values in _by_prompt(rewards) if values])


def _win_rate(challengers: Rewards, references: Rewards) -> MeanInterval | None:
    pairs = zip(_by_prompt(challengers), _by_prompt(references), strict=True)
    return _interval([pairwise_win_rate(np.array(a), np.array(b)) for a, b in pairs if a and b])


def _difference(ours: Rewards, theirs: Rewards) -> MeanInterval | None:
    pairs = zip(_by_prompt(ours), _by_prompt(theirs), strict=True)
    return _interval([float(np.mean(a) - np.mean(b)) for a, b in pairs if a and b])


def _ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(numerators, denominators, strict=True)]
