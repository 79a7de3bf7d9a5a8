"""The admission that the settings describe."""

from __future__ import annotations

from service.admission.admission import Admission
from service.settings import LimitSettings


def open_admission(limits: LimitSettings, front_ends: int = 1) -> Admission:
    """An admission with one of so many equal shares of the limits; at least one sequence runs."""
    return Admission(
        running=max(1, limits.running_sequences // front_ends),
        waiting=limits.waiting_sequences // front_ends,
        running_tokens=max(1, limits.running_tokens // front_ends),
        max_queue_s=limits.max_queue_s,
    )
