"""Log formats, text and JSON. Each record has the id of the request in which it was made."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from service.context.request_context import current_request
from service.observability.withheld import show_texts, without_text
from service.settings import ServiceSettings

_encode = json.JSONEncoder(default=str).encode  # json.dumps would make an encoder for each record
_VLLM_CONFIG = Path(__file__).with_name("vllm_logging.json")


class _Formatter(logging.Formatter):
    """Formats tracebacks without the texts of exceptions."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        record.exc_text = None  # may hold the text, if another handler has formatted the record
        return super().format(record)

    def formatException(self, ei: Any) -> str:
        """Format an exception."""
        error = ei[1]
        if error is None:
            return super().formatException(ei)
        shown = without_text(error)
        return super().formatException((type(shown), shown, ei[2]))


class TextFormatter(_Formatter):
    """``TIME LEVEL LOGGER: [REQUEST ID] MESSAGE FIELDS``; without brackets outside of requests."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Format the first line, before any traceback."""
        if request_id := _request_id():
            record.message = f"[{request_id}] {record.message}"
        words = [f"{name}={value}" for name, value in _fields(record).items() if value is not None]
        return " ".join([super().formatMessage(record), *words])


class JsonFormatter(_Formatter):
    """One JSON object a line.

    Only the members named here are written. Some libraries attach attributes to log records, which could hold
    a prompt, so attributes are not written unless they come from :func:`with_fields`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; ``request_id`` and ``exception`` are left out if there is none."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := _request_id():
            line["request_id"] = request_id
        line |= _fields(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line)


def with_fields(
    **fields: str | int | float | None,
) -> dict[str, dict[str, str | int | float | None]]:
    """Argument ``extra`` of a log call, for values beside the message.

    They become members of a JSON line, or ``name=value`` at the end of a text line.
    """
    return {"fields": fields}


def set_up_logs(settings: ServiceSettings) -> None:
    """Send all log records, uvicorn's and vLLM's too, to standard error in the configured format."""
    show_texts(settings.log_user_errors)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if settings.log_format == "json":
        _set_up_workers()


def _set_up_workers() -> None:
    """Configure engines and reward workers through the environment: they are other processes."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars are not JSON
    if os.environ.get("VLLM_CONFIGURE_LOGGING", "1") != "0":
        os.environ.setdefault("VLLM_LOGGING_CONFIG_PATH", str(_VLLM_CONFIG))


def _time(record: logging.LogRecord) -> str:
    return f"{_second(int(record.created))}.{int(record.msecs):03d}Z"


@lru_cache(maxsize=4)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _request_id() -> str:
    request = current_request.get()
    return "" if request is None else request.request_id


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    found: dict[str, Any] = vars(record).get("fields", {})
    return found
