"""Opens tracing if it is configured. OpenTelemetry is imported only then."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from service.settings import OtelSettings
from vbon.errors import InvalidInputError

if TYPE_CHECKING:
    from service.observability.otel_spans import Tracing

logger = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def open_tracing(
    settings: OtelSettings, environment: Mapping[str, str] = os.environ
) -> Tracing | None:
    """Tracing to the endpoint in the settings or, without one, in the standard variables; else ``None``.

    Raises:
        InvalidInputError: the settings have an endpoint but OpenTelemetry is not installed.
    """
    if not _wanted(settings, environment):
        return None
    try:
        from service.observability.otel_spans import otlp_tracing
    except ImportError as error:
        message = 'traces require OpenTelemetry: pip install -e ".[otel]"'
        if settings.endpoint is None:
            logger.warning("%s; the OTEL_ variables are ignored", message)
            return None
        raise InvalidInputError(message, field="otel.endpoint") from error
    return otlp_tracing(settings.endpoint)


def _wanted(settings: OtelSettings, environment: Mapping[str, str]) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if settings.endpoint is not None:
        return True
    off = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"
    return not off and any(environment.get(name) for name in _ENDPOINTS)
