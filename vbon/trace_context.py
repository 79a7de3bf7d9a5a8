"""Headers that tell another server which trace its work belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

NO_TRACE: Mapping[str, str] = {}

# W3C's `traceparent` and `tracestate`, for what is asked of other servers; empty where nothing is traced.
trace_headers: ContextVar[Mapping[str, str]] = ContextVar("trace_headers", default=NO_TRACE)
