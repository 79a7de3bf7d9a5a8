"""Middleware that checks API keys, sent as bearer tokens, before a request's body is read."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from service.auth.keys import Keyring
from service.context.caller import ANYBODY, Caller, current_caller
from service.context.request_context import record_key
from service.http.known_hosts import KnownHosts
from service.http.responses import refuse
from service.settings import AuthSettings

logger = logging.getLogger(__name__)

# Probes send no keys, and a browser cannot send one when it opens a page. Requests that the page makes can.
OPEN = frozenset({"/healthz", "/readyz", "/health", "/", "/docs", "/favicon.ico"})
OPEN_BELOW = ("/page/",)
ADMIN = ("/admin", "/distil")
_HINT = "send `Authorization: Bearer TOKEN`; `vbon keys add NAME` creates one"


class ApiKeyMiddleware:
    """Answers 401 without a known key, and 403 if the key may not use the route.

    Without a keys file, all routes except those of admins are open.
    """

    def __init__(self, app: ASGIApp, *, keyring: Keyring | None, open_metrics: bool) -> None:
        self._app = app
        self._keyring = keyring
        self._open = OPEN | {"/metrics"} if open_metrics else OPEN

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the key, set ``current_caller``, and pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)  # lifespan events; there are no websockets
            return
        path: str = scope["path"]
        caller = ANYBODY
        if self._keyring is not None and not self._is_open(path):
            found = caller_of(self._keyring, scope)
            if isinstance(found, str):
                headers = [(b"www-authenticate", b'Bearer realm="vbon"')]
                await refuse(
                    scope,
                    send,
                    401,
                    "unauthorized",
                    found,
                    code="invalid_api_key",
                    headers=headers,
                )
                return
            caller = found
            record_key(caller.name)
        if _is_admin(path) and not caller.is_admin:
            await refuse(scope, send, 403, "forbidden", self._why_not(caller))
            return
        before = current_caller.set(caller)
        try:
            await self._app(scope, receive, send)
        finally:
            current_caller.reset(before)

    def _is_open(self, path: str) -> bool:
        return path in self._open or path.startswith(OPEN_BELOW)

    def _why_not(self, caller: Caller) -> str:
        if self._keyring is None:
            return (
                "/admin and /distil require an admin's key, and this server has no keys, also on a loopback "
                "address, where every program of the machine could use them: create one with "
                "`vbon keys add root --role admin --file keys.jsonl`, start the server with "
                "--auth.keys-file keys.jsonl, and send the key (VBON_REMOTE_API_KEY, or --key-file of "
                "`vbon distil run`)"
            )
        return (
            f"key {caller.name!r} does not have the admin role; "
            "create one with `vbon keys add NAME --role admin`"
        )


def caller_of(keyring: Keyring, scope: Scope) -> Caller | str:
    """The caller, or the error message, which repeats nothing of what the client sent."""
    sent = [value for name, value in scope["headers"] if name == b"authorization"]
    if not sent:
        return f"this server requires an API key: {_HINT}"
    scheme, _, token = sent[0].partition(b" ")
    if len(sent) > 1 or scheme.lower() != b"bearer":
        return f"the Authorization header is not one bearer token: {_HINT}"
    caller = keyring.find(token.strip())
    return caller or "this API key is unknown or has been removed"


def caller_finder(keyring: Keyring | None, known: KnownHosts) -> Callable[[Scope], Caller | None]:
    """A function that returns a request's caller; ``None`` if it must be answered with 401 or 403."""

    def find(scope: Scope) -> Caller | None:
        if keyring is None:
            return ANYBODY if known.unknown(scope) is None else None
        found = caller_of(keyring, scope)
        return found if isinstance(found, Caller) else None

    return find


def open_keyring(settings: AuthSettings) -> Keyring | None:
    """The keys of the configured file, or ``None`` if none is configured.

    Raises:
        DataError: the file cannot be used.
    """
    return None if settings.keys_file is None else Keyring(Path(settings.keys_file))


def warn_if_open(host: str, settings: AuthSettings) -> None:
    """Log a warning if other machines can reach the server and it requires no keys."""
    if settings.keys_file is None and not _is_loopback(host):
        logger.warning(
            "listening on %s without API keys: everyone who can reach this address may use the service; "
            "set --auth.keys-file to require keys",
            host,
        )


def _is_admin(path: str) -> bool:
    return any(path == route or path.startswith(f"{route}/") for route in ADMIN)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
