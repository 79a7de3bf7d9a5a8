"""Decides, once, whether a run gets more rounds because its ranges are slightly too wide to decide.

To look at the ranges before the last round is optional stopping, so the ranges must cover whatever the look
decides. There are two looks. A range ends at the k-th value from either end. It misses the true median on
one side if fewer than k values lie on that side, so the report misses it at most as often as one of the two
ranges does: the sum of both probabilities, without that of both together, since the second look contains the
rounds of the first. For 5 rounds and then 9, of which one is left out at each end, that is 8.2%, whatever
the rule. :func:`least_coverage` computes it. The rule itself extends wide ranges only, which miss less often
than narrow ones, so the coverage in practice is above this bound (``tests/unit/test_loadtest_coverage.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from math import comb

from service.loadtest.analysis.break_even import left_out
from service.loadtest.analysis.text import duration
from service.loadtest.analysis.verdict import LEAST_ROUNDS, width_reasons, widths
from service.loadtest.config import LoadTestSettings
from service.loadtest.journal import Journal
from service.loadtest.schema import BreakEven, Extension

SLIGHTLY = 1.5  # a range at most this many times wider than allowed is slightly too wide
# All blocks of an extended run may take this many times as long as those of a calibrated one.
MOST_TIMES_LONGER = 2.0


def extended_rounds(rounds: int) -> int:
    """The number of rounds that leaves out one more of them at each end of a range.

    Rounds are added in pairs, because every second one is reversed.
    """
    return next(total for total in count(rounds + 2, 2) if left_out(total) > left_out(rounds))


def least_coverage(rounds: int, total: int) -> float:
    """The lowest probability that the reported range encloses the true median, over all stopping rules."""
    first, second, more = left_out(rounds), left_out(total), total - rounds

    def at_most(k: int, n: int) -> float:
        """The probability that at most k of n rounds lie on one side of the median."""
        return sum(comb(n, i) for i in range(min(k, n) + 1)) / 2**n

    both = sum(comb(rounds, i) / 2**rounds * at_most(second - i, more) for i in range(first + 1))
    return 1 - 2 * (at_most(first, rounds) + at_most(second, total) - both)


def wanted(pairs: Sequence[BreakEven], rounds: int) -> Extension | None:
    """The extension of a complete run of so many rounds; ``None`` if no pair would profit from it.

    A pair profits if the width of its ranges is all that it lacks, and they are slightly too wide.
    """
    if rounds < LEAST_ROUNDS:
        return None
    for pair in pairs:
        reasons = width_reasons(pair)
        near = all(width <= SLIGHTLY * limit for width, limit in widths(pair))
        if reasons and pair.reasons == reasons and near:
            total = extended_rounds(rounds)
            why = reasons[0].partition(":")[0].replace(" differs ", " differed ")
            return Extension(
                rounds=total,
                added=total - rounds,
                because=f"{pair.tuned} and {pair.sampled}: after {rounds} rounds, {why}",
                coverage=round(least_coverage(rounds, total), 3),
            )
    return None


def too_long(settings: LoadTestSettings, extension: Extension, round_s: float) -> str | None:
    """A line that says why there is no time for an extension; ``None`` if there is.

    Args:
        round_s: seconds of the blocks of one round.
    """
    most = MOST_TIMES_LONGER * settings.max_s
    limit = most if settings.limit_s is None else min(most, settings.limit_s)
    needed = extension.rounds * round_s
    if needed <= limit:
        return None
    return (
        f"{extension.because}. {extension.added} more rounds might decide, but all blocks would then take "
        f"{duration(needed)} (at most {duration(limit)}: twice --max-s, or what the server allows); to add "
        f"them, run the same command with --rounds {extension.rounds}."
    )


def extension_of(journal: Journal) -> Extension | None:
    """The extension that a run got, if any."""
    lines = journal.of_kind("extension")
    return Extension.model_validate(lines[-1]) if lines else None


def rounds_of(settings: LoadTestSettings, journal: Journal) -> int:
    """The number of rounds of a run, with those that an extension added."""
    extension = extension_of(journal)
    return settings.rounds if extension is None else max(settings.rounds, extension.rounds)


def extension_words(extension: Extension) -> str:
    """A sentence on why there are more rounds than were asked for, and what that means for the ranges."""
    return (
        f"{extension.added} more rounds were added because, for {extension.because}. With this look before "
        f"the last rounds, the ranges enclose the true medians with a probability of at least "
        f"{extension.coverage:.0%}."
    )
