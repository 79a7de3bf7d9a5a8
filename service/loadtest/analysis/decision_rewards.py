"""Puts the rewards of a pair into words, as far as the data allow.

An interval across 0 does not mean that there is no difference: its ends are stated.
"""

from __future__ import annotations

from typing import Literal

from service.loadtest.analysis.text import interval_text
from service.loadtest.schema import BreakEven

RewardSide = Literal["better", "worse", "unclear"]


def reward_side(pair: BreakEven) -> RewardSide:
    """The side of the tuned variant in reward against the sampled one; unclear if the interval holds 0."""
    given_up = pair.reward_given_up
    if given_up is None or given_up.low <= 0 <= given_up.high:
        return "unclear"
    return "worse" if given_up.low > 0 else "better"


def reward_words(pair: BreakEven) -> str:
    """The difference in reward with its interval, the win rates, and the equal N."""
    given_up = pair.reward_given_up
    if given_up is None:
        return "Reward was not measured, so nothing is known about quality."
    side, kind = reward_side(pair), "Gold reward" if pair.judged_by == "gold" else "Reward"
    if side == "unclear":
        text = (
            f"{kind} of {pair.tuned}: between {max(0.0, given_up.high):.2f} worse and "
            f"{max(0.0, -given_up.low):.2f} better than {pair.sampled} ({given_up.count} prompts): too close "
            "to call"
        )
    else:
        low, high = sorted((abs(given_up.low), abs(given_up.high)))
        text = (
            f"{kind} of {pair.tuned}: {side} by {abs(given_up.mean):.2f} [{low:.2f}, {high:.2f}] than "
            f"{pair.sampled} (95% interval, {given_up.count} prompts)"
        )
    return f"{text}{_win_rates(pair)}.{_equal_n(pair)}"


def _win_rates(pair: BreakEven) -> str:
    tuned, sampled = pair.win_rate_tuned, pair.win_rate_sampled
    if tuned is None or sampled is None:
        return ""
    text = f"; win rate {interval_text(tuned)} instead of {interval_text(sampled)}"
    if reward_side(pair) == "unclear" and (tuned.high < sampled.low or sampled.high < tuned.low):
        text += f", by which {pair.tuned} is {'worse' if tuned.mean < sampled.mean else 'better'}"
    return text


def _equal_n(pair: BreakEven) -> str:
    if pair.equal_n is None:
        return ""
    if pair.equal_n_beyond:
        side = "below one sample" if pair.equal_n == 1 else f"above best-of-{pair.equal_n:.0f}"
        return f" The reward of {pair.tuned} is {side}."
    return (
        f" The reward of {pair.tuned} equals best-of-{pair.equal_n:.1f} "
        f"[{pair.equal_n_low:.1f}, {pair.equal_n_high:.1f}]."
    )
