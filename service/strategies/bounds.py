"""How far settings may go: beyond that, arithmetic fails or a request costs what nobody counted."""

from __future__ import annotations

import math

# Temperatures, strengths and spreads. With rewards of any size that a model gives, their quotients and
# squares stay far from where floats end (1e308) and from where one is lost beside another.
LEAST_SCALE, MOST_SCALE = 1e-6, 1e6
# Counts that something else limits already: no request has as many candidates or tokens.
MOST_COUNT = 2**31
# Times that a strategy stops to look while it decodes: each time, all that is there is read again.
MOST_STEPS = 32


def step_tokens(asked: int | None, default: int, max_tokens: int) -> int:
    """Tokens from one look to the next: what was asked for, unless that makes too many looks."""
    return max(asked or default, 1, math.ceil(max_tokens / MOST_STEPS))
