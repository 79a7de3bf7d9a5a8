"""Fills in the settings whose defaults depend on the server."""

from __future__ import annotations

from collections.abc import Sequence

from service.loadtest.config import BLOCK_S, WARMUP_S, LoadTestSettings
from service.loadtest.plan import Variant
from service.loadtest.schema import ServerDescription


def settled(
    settings: LoadTestSettings, server: ServerDescription | None, variants: Sequence[Variant]
) -> LoadTestSettings:
    """The settings with the server's sampling, streaming for this set of modes, and given levels' lengths.

    The same sampling for every mode is that of the server, which takes it from its checkpoints' cards.
    """
    told = {} if server is None else server.default_sampling
    asked = settings.model_copy(
        update={name: value for name, value in told.items() if getattr(settings, name) is None}
    )
    max_tokens, temperature = asked.sampling
    values: dict[str, object] = {"max_tokens": int(max_tokens), "temperature": temperature}
    if settings.stream is None:
        values["stream"] = not any(variant.reranks for variant in variants)
    if not settings.chooses_levels:
        values["duration_s"] = settings.duration_s or BLOCK_S
        values["warmup_s"] = WARMUP_S if settings.warmup_s is None else settings.warmup_s
    return settings.model_copy(update=values)
