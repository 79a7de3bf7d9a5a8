"""Targets of ``vbon tune``: a gain that a setting must reach, such as ``reward >= best-of-8``.

::

    reward | gold | win-rate   >=   NUMBER | best-of-K

``best-of-K`` is what best-of-K of the reference policy reaches, at the server's default sampling and on the
same prompts.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from vbon.errors import InvalidInputError

Metric = Literal["reward", "gold", "win-rate"]
METRICS: tuple[str, ...] = get_args(Metric)
MOST_BEST_OF = 4096

_FORM = "METRIC >= LEVEL, such as 'reward >= best-of-8', 'gold >= 1.5' or 'win-rate >= 0.8'"
_TARGET = re.compile(r"\s*(?P<metric>[a-z_-]+)\s*>=\s*(?P<level>\S+)\s*")
_BEST_OF = re.compile(r"best-of-(?P<k>\d{1,6})")


@dataclass(frozen=True, slots=True)
class Target:
    """The least gain of a setting.

    Attributes:
        level: the number to reach; ``None`` if it is that of best-of-``best_of``.
        best_of: K of the best-of-K that sets the level; ``None`` if a number does.
    """

    metric: Metric
    level: float | None = None
    best_of: int | None = None

    def __str__(self) -> str:
        level = f"best-of-{self.best_of}" if self.best_of is not None else f"{self.level:g}"
        return f"{self.metric} >= {level}"


def parse_target(text: str) -> Target:
    """The target that a text names.

    Raises:
        InvalidInputError: the text has another form, or no setting can reach the level.
    """
    match = _TARGET.fullmatch(text)
    if match is None:
        raise _refused(text, f"it must have the form {_FORM}")
    metric = match["metric"].replace("_", "-")
    if metric not in METRICS:
        raise _refused(text, f"{match['metric']!r} is not one of {', '.join(METRICS)}")
    best_of = _BEST_OF.fullmatch(match["level"])
    if best_of is not None:
        k = int(best_of["k"])
        if not 1 <= k <= MOST_BEST_OF:
            raise _refused(text, f"K of best-of-K must be between 1 and {MOST_BEST_OF}")
        return Target(metric, best_of=k)  # type: ignore[arg-type]
    try:
        level = float(match["level"])
    except ValueError as error:
        raise _refused(text, f"{match['level']!r} is neither a number nor best-of-K") from error
    if not math.isfinite(level):
        raise _refused(text, "the level must be a finite number")
    if metric == "win-rate" and not 0 <= level < 1:
        raise _refused(text, "a win rate is below 1, so the level must be at least 0 and below 1")
    return Target(metric, level)  # type: ignore[arg-type]


def _refused(text: str, reason: str) -> InvalidInputError:
    return InvalidInputError(f"target {text!r}: {reason}", field="target")
