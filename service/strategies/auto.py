"""Mode ``auto`` where its router has nothing else: best-of-N, beside a rollout or measured settings."""

from __future__ import annotations

from typing import ClassVar

from service.strategies.bon import Bon


class Auto(Bon):
    """Best-of-N of the reference policy, which ``auto`` uses where no checkpoint answers."""

    description: ClassVar[str] = (
        "best-of-N, or one sample of the checkpoint that takes its place, in a growing share of requests"
    )


class AutoByPrice(Bon):
    """Best-of-N of the reference policy, which ``auto`` uses where no measured setting can answer."""

    description: ClassVar[str] = (
        "the measured setting with the highest reward less the prices of tokens and time"
    )
