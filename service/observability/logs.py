"""How log records look, text or JSON, each with the id of the request it was made in."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from service.context.request_context import current_request
from service.settings import ServiceSettings

_encode = json.JSONEncoder(default=str).encode  # json.dumps would make one for each record
_VLLM_CONFIG = Path(__file__).with_name("vllm_logging.json")


class TextFormatter(logging.Formatter):
    """``TIME LEVEL LOGGER: [REQUEST ID] MESSAGE``; no brackets outside of requests."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, before any traceback."""
        if request_id := _request_id():
            record.message = f"[{request_id}] {record.message}"
        words = [f"{name}={value}" for name, value in _fields(record).items() if value is not None]
        return " ".join([super().formatMessage(record), *words])


class JsonFormatter(logging.Formatter):
    """One JSON object a line.

    Only what is named here is written: libraries that hang things of their own on a record, which a
    formatter of all attributes would print, cannot bring a prompt into the log.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Without ``request_id`` outside of requests and ``exception`` where there is none."""
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
    """``extra`` of a record that has more to say than a sentence: members of the JSON, words of a text."""
    return {"fields": fields}


def set_up_logs(settings: ServiceSettings) -> None:
    """Send this process's records, uvicorn's and vLLM's too, to standard error in the format asked for."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if settings.log_format == "json":
        _set_up_workers()


def _set_up_workers() -> None:
    """Engines and reward workers are processes of their own, which know only the environment."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars are no JSON
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
