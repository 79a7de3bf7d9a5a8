"""Puts the rewards of a pair into words, as far as the data allow.

An interval across 0 does not mean that there is no difference: its ends are stated.
"""

from __future__ import annotations

from typing import Literal

from service.loadtest.analysis.text import interval_text
from service.loadtest.schema import BreakEven
from vbon.maths.intervals import MeanInterval

RewardSide = Literal["better", "worse", "unclear"]


def reward_side(given_up: MeanInterval | None) -> RewardSide:
    """The side on which giving up this much reward leaves one; unclear if the interval holds 0."""
    if given_up is None or given_up.low <= 0 <= given_up.high:
        return "unclear"
    return "worse" if given_up.low > 0 else "better"


def reward_words(pair: BreakEven) -> str:
    """The difference in reward with its interval, the win rates, and the equal N."""
    given_up = pair.reward_given_up
    if given_up is None:
        return "Reward was not measured, so nothing is known about quality."
    kind = "Gold reward" if pair.judged_by == "gold" else "Reward"
    return (
        f"{kind} of {pair.tuned}: {difference_words(pair.sampled, given_up)}{_win_rates(pair)}."
        f"{_equal_n(pair)}"
    )


def difference_words(other: str, given_up: MeanInterval) -> str:
    """The words for reward given up against another variant, with its interval."""
    side, prompts = reward_side(given_up), given_up.count
    if prompts == 1:
        size = f"{'less' if given_up.mean > 0 else 'more'} by {abs(given_up.mean):.2f}"
        found = size if given_up.mean else "equal"
        return f"{found} on the one prompt that was scored, which decides nothing"
    if given_up.low == given_up.high == 0:
        return f"equal to that of {other} on all {prompts} prompts"
    if side == "unclear":
        return (
            f"between {max(0.0, given_up.high):.2f} worse and {max(0.0, -given_up.low):.2f} better than "
            f"{other} ({prompts} prompts): too close to call"
        )
    low, high = sorted((abs(given_up.low), abs(given_up.high)))
    return (
        f"{side} by {abs(given_up.mean):.2f} [{low:.2f}, {high:.2f}] than {other} (95% interval, "
        f"{prompts} prompts)"
    )


def _win_rates(pair: BreakEven) -> str:
    tuned, sampled = pair.win_rate_tuned, pair.win_rate_sampled
    if tuned is None or sampled is None or tuned.count == 1 or sampled.count == 1:
        return ""
    text = f"; win rate {interval_text(tuned)} instead of {interval_text(sampled)}"
    if reward_side(pair.reward_given_up) == "unclear" and (
        tuned.high < sampled.low or sampled.high < tuned.low
    ):
        text += f", by which {pair.tuned} is {'worse' if tuned.mean < sampled.mean else 'better'}"
    return text


def _equal_n(pair: BreakEven) -> str:
    if pair.equal_n is None or (pair.reward_given_up and pair.reward_given_up.count == 1):
        return ""
    if pair.equal_n_beyond:
        return f" It is {equal_n_text(pair)}."
    return f" It equals best-of-{equal_n_text(pair)}."


def equal_n_text(pair: BreakEven) -> str:
    """The equal N with its interval; an end that the curve does not reach is told as such."""
    if pair.equal_n is None or pair.equal_n_low is None or pair.equal_n_high is None:
        return "unknown"
    if pair.equal_n_beyond:
        return "below one sample" if pair.equal_n == 1 else f"above best-of-{pair.equal_n:.0f}"
    low = "below 1" if pair.equal_n_low_open else f"{pair.equal_n_low:.1f}"
    high = f"{'above ' if pair.equal_n_high_open else ''}{pair.equal_n_high:.1f}"
    return f"{pair.equal_n:.1f} [{low}, {high}]"
