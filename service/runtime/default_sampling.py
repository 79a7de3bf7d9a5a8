"""The sampling of requests that set none: from the server's settings, or from the checkpoints' cards."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from service.settings import ServiceSettings
from vbon.engine.protocol import MOST_TEMPERATURE
from vbon.storage.training_record import TrainingRecord

logger = logging.getLogger(__name__)

BUILT_IN = "built in"
BUILT_IN_MAX_TOKENS, BUILT_IN_TEMPERATURE = 64, 1.0


@dataclass(frozen=True, slots=True)
class DefaultSampling:
    """The values that a request gets for fields that it leaves out.

    They are the same for every mode, because modes that are compared must sample alike.

    Attributes:
        chat_max_tokens: ``max_tokens`` of a chat. Its answer ends by itself, so unless a setting or a card
            says otherwise it may be as long as any.
        sources: where each value comes from, in words.
    """

    max_tokens: int
    chat_max_tokens: int
    temperature: float
    sources: Mapping[str, str]


def default_sampling(
    settings: ServiceSettings, records: Mapping[str, TrainingRecord | None]
) -> DefaultSampling:
    """The default of each field: the server's setting, else the cards', else the built-in value.

    A checkpoint's KL and rewards are those of its own sampling, so its card counts. Where the cards of
    several checkpoints differ, none does: it would be right for one mode and wrong for the others.

    Args:
        records: training records by policy name; ``None`` for a policy without one.
    """
    cards = {name: record.sampled_with for name, record in records.items() if record is not None}
    max_tokens, tokens_from = _chosen(
        "max_tokens", settings.default_max_tokens, cards, BUILT_IN_MAX_TOKENS
    )
    most = settings.limits.max_tokens
    if max_tokens > most:
        max_tokens, tokens_from = most, f"limits.max_tokens, which is below {tokens_from}"
    temperature, temperature_from = _chosen(
        "temperature", settings.default_temperature, cards, BUILT_IN_TEMPERATURE
    )
    if temperature > MOST_TEMPERATURE:  # training on transformers allows more
        temperature = MOST_TEMPERATURE
        temperature_from = f"the highest of the engines, which is below {temperature_from}"
    chat, chat_from = settings.default_chat_max_tokens, "setting default_chat_max_tokens"
    if chat is None:
        chat, chat_from = int(max_tokens), tokens_from
        if tokens_from.startswith(BUILT_IN):
            chat, chat_from = most, "limits.max_tokens"
    return DefaultSampling(
        int(max_tokens),
        chat,
        temperature,
        {"max_tokens": tokens_from, "chat_max_tokens": chat_from, "temperature": temperature_from},
    )


def log_default_sampling(default: DefaultSampling) -> None:
    """Log the default of each field with its source."""
    logger.info(
        "requests that set none get max_tokens %d (%s), chats %d (%s), and temperature %g (%s)",
        default.max_tokens,
        default.sources["max_tokens"],
        default.chat_max_tokens,
        default.sources["chat_max_tokens"],
        default.temperature,
        default.sources["temperature"],
    )


def _chosen(
    field: str,
    setting: float | None,
    cards: Mapping[str, Mapping[str, float]],
    built_in: float,
) -> tuple[float, str]:
    if setting is not None:
        return setting, f"setting default_{field}"
    found = {name: card[field] for name, card in cards.items() if field in card}
    values = set(found.values())
    if len(values) == 1:
        return values.pop(), f"card of {', '.join(found)}"
    if not values:
        return built_in, BUILT_IN
    differing = ", ".join(f"{name}: {value:g}" for name, value in found.items())
    return built_in, f"{BUILT_IN}, because the cards differ ({differing}); set default_{field}"
