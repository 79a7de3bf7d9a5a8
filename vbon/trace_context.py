"""Trace headers for requests to other servers, so that their spans join the request's trace."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

NO_TRACE: Mapping[str, str] = {}

# W3C's `traceparent` and `tracestate` of the current request; empty if it is not traced.
trace_headers: ContextVar[Mapping[str, str]] = ContextVar("trace_headers", default=NO_TRACE)
