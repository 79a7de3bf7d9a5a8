"""Bounds of strategy settings, which keep the arithmetic finite and the cost of a request limited."""

from __future__ import annotations

import math

# Bounds of temperatures, strengths and spreads. Their quotients with rewards, and the squares of these, stay
# far from overflow (1e308), and terms of a sum are not lost in rounding.
LEAST_SCALE, MOST_SCALE = 1e-6, 1e6
# Bound of counts that other limits bound more tightly: no request has this many candidates or tokens.
MOST_COUNT = 2**31
# Most checks during decoding; each one reads all partial candidates again.
MOST_STEPS = 32


def step_tokens(asked: int | None, default: int, max_tokens: int) -> int:
    """Tokens between two checks: the setting or the default, raised if it makes over :data:`MOST_STEPS`."""
    return max(asked or default, 1, math.ceil(max_tokens / MOST_STEPS))
