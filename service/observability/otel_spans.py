"""OpenTelemetry spans of a request and of the stages of each of its prompts.

The spans of the stages are made when the request ends, from times that are recorded anyway
(:class:`service.context.request_context.PromptProgress`), so the serving path needs no wrappers. No span
holds prompts or answers.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from time import perf_counter, time_ns
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Receive, Scope, Send

from service.context.request_context import (
    CLIENT_CLOSED_REQUEST,
    PROBES,
    PromptProgress,
    RequestContext,
    current_request,
)
from service.observability.access_log import method_of, route_of
from vbon import __version__
from vbon.trace_context import trace_headers

Attributes = dict[str, str | int | float | list[str]]

_W3C = TraceContextTextMapPropagator()
_PATH = "/v1/traces"


class Tracing:
    """Makes spans and passes them to a processor, with a tracer provider separate from vLLM's."""

    def __init__(self, processor: SpanProcessor) -> None:
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self.tracer = self._provider.get_tracer("vbon", __version__)

    async def stop(self) -> None:
        """Send the remaining spans."""
        await asyncio.to_thread(self._provider.shutdown)


def otlp_tracing(endpoint: str | None) -> Tracing:
    """Send spans in batches to a collector over OTLP/HTTP, configured by the standard variables.

    Args:
        endpoint: URL of the collector; the standard path is added if it has none. ``None`` takes the
            endpoint from the standard variables.
    """
    if endpoint is not None and urlsplit(endpoint).path in ("", "/"):
        endpoint = endpoint.rstrip("/") + _PATH
    return Tracing(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))


class TracingMiddleware:
    """Makes a span for each request except probes.

    It is a child of the client's span if the client sends ``traceparent``.
    """

    def __init__(self, app: ASGIApp, *, tracing: Tracing) -> None:
        self._app = app
        self._tracer = tracing.tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on within a span, and add the spans of its prompts when it ends."""
        request = current_request.get()
        if scope["type"] != "http" or request is None or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        # The span starts before its name is known, because requests to other servers name it as their parent.
        span = self._tracer.start_span(
            "HTTP", context=_parent(scope), kind=SpanKind.SERVER, start_time=time_ns()
        )
        clock = _Clock()
        headers: dict[str, str] = {}
        _W3C.inject(headers, set_span_in_context(span, Context()))
        before = trace_headers.set(headers)
        try:
            await self._app(scope, receive, send)
        finally:
            trace_headers.reset(before)
            if span.is_recording():
                self._children(span, request, clock)
                _describe(span, scope, request)
            span.end(clock.ns(perf_counter()))

    def _children(self, span: Span, request: RequestContext, clock: _Clock) -> None:
        context = set_span_in_context(span, Context())
        for prompt in request.prompts:
            for name, begun_s, ended_s in _stages(prompt):
                child = self._tracer.start_span(
                    name,
                    context=context,
                    attributes=_attributes_of(prompt, name),
                    start_time=clock.ns(begun_s),
                )
                if ended_s is None and request.error:
                    _fail(child, request.error)
                child.end(clock.ns(perf_counter() if ended_s is None else ended_s))


class _Clock:
    """Converts ``perf_counter`` seconds to nanoseconds since 1970, from one reading of both clocks."""

    def __init__(self) -> None:
        self._offset_ns = time_ns() - int(perf_counter() * 1e9)

    def ns(self, seconds: float) -> int:
        return self._offset_ns + int(seconds * 1e9)


def _stages(prompt: PromptProgress) -> Iterator[tuple[str, float, float | None]]:
    """Name, start and end of each stage that a prompt reached; the end is ``None`` if it did not finish it.

    Without an answer the end of decoding is unknown, so an error in reranking appears in ``decode`` too.
    """
    yield "encode", prompt.arrived_s, prompt.encoded_s
    if prompt.encoded_s is None:
        return
    yield "queue", prompt.encoded_s, prompt.admitted_s
    if prompt.admitted_s is None:
        return
    if prompt.decode_ms is None or prompt.rerank_ms is None:
        yield "decode", prompt.admitted_s, None
        return
    decoded_s = prompt.admitted_s + prompt.decode_ms / 1e3
    yield "decode", prompt.admitted_s, decoded_s
    if prompt.scored:
        yield "rerank", decoded_s, decoded_s + prompt.rerank_ms / 1e3


def _attributes_of(prompt: PromptProgress, stage: str) -> Attributes:
    attributes: Attributes = {"vbon.answer_id": prompt.answer_id, "vbon.mode": prompt.mode}
    if stage == "encode":
        attributes["gen_ai.usage.input_tokens"] = prompt.prompt_tokens
    if stage == "decode":
        attributes["gen_ai.response.model"] = prompt.policy
        attributes["vbon.n"] = prompt.num_samples
        attributes["vbon.candidates"] = prompt.candidates
        attributes["vbon.generated_tokens"] = prompt.generated_tokens
    return attributes


def _describe(span: Span, scope: Scope, request: RequestContext) -> None:
    route = route_of(scope)
    method = method_of(scope)
    span.update_name(" ".join(filter(None, (method or "HTTP", route))))
    attributes: Attributes = {
        "http.request.method": method or "_OTHER",
        "http.response.status_code": request.status,
        "vbon.request_id": request.request_id,
    }
    if route:
        attributes["http.route"] = route
    if request.key:
        attributes["vbon.key"] = request.key
    if request.prompts:
        attributes |= _generation(route, request)
    span.set_attributes(attributes)
    if request.error:
        ours = request.status >= 500 or request.status in (200, CLIENT_CLOSED_REQUEST)
        _fail(span, request.error, ours=ours)


def _generation(route: str | None, request: RequestContext) -> Attributes:
    """Attributes by OpenTelemetry's conventions for generative AI, where they exist; sums over prompts."""
    prompts, first = request.prompts, request.prompts[0]
    policies = list(dict.fromkeys(prompt.policy for prompt in prompts))
    return {
        "gen_ai.operation.name": "chat" if route == "/v1/chat/completions" else "text_completion",
        "gen_ai.provider.name": "vbon",
        "gen_ai.request.model": ",".join(request.modes),
        "gen_ai.request.max_tokens": first.max_tokens,
        "gen_ai.request.temperature": first.temperature,
        "gen_ai.response.model": ",".join(policies),
        "gen_ai.response.finish_reasons": [p.finish_reason for p in prompts if p.finish_reason],
        "gen_ai.usage.input_tokens": sum(prompt.prompt_tokens for prompt in prompts),
        "gen_ai.usage.output_tokens": sum(prompt.returned_tokens for prompt in prompts),
        "vbon.mode": ",".join(request.modes),
        "vbon.n": first.num_samples,
        "vbon.prompts": len(prompts),
        "vbon.generated_tokens": sum(prompt.generated_tokens for prompt in prompts),
    }


def _fail(span: Span, error: str, *, ours: bool = True) -> None:
    """Mark a span as failed.

    Args:
        ours: ``False`` if the client caused the error: the conventions then do not set a server's status.
    """
    span.set_attribute("error.type", error)
    if ours:
        span.set_status(Status(StatusCode.ERROR))


def _parent(scope: Scope) -> Context:
    sent = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    return _W3C.extract(sent, Context())


def _resource() -> Resource:
    """The service as a resource; the standard variables take precedence."""
    named = "OTEL_SERVICE_NAME" in os.environ
    named |= SERVICE_NAME in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    attributes = {SERVICE_VERSION: __version__} | ({} if named else {SERVICE_NAME: "vbon"})
    return Resource.create(attributes)
