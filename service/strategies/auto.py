"""Mode ``auto``: best-of-N until a checkpoint takes over; the rollout decides which one answers."""

from __future__ import annotations

from typing import ClassVar

from service.strategies.bon import Bon


class Auto(Bon):
    """Best-of-N of the reference policy, which ``auto`` uses where no checkpoint answers."""

    description: ClassVar[str] = (
        "best-of-N, or one sample of the checkpoint that takes its place, in a growing share of requests"
    )
