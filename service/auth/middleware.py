"""Who may come in: API keys as bearer tokens, checked before anything of the body is read."""

from __future__ import annotations

import ipaddress
import logging
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from service.auth.keys import Keyring
from service.context.caller import ANYBODY, Caller, current_caller
from service.context.request_context import record_key
from service.http.responses import refuse
from service.settings import AuthSettings

logger = logging.getLogger(__name__)

# Probes have no keys. A browser cannot send one for a page it opens; what the page asks for, it can.
OPEN = frozenset({"/healthz", "/readyz", "/health", "/", "/docs", "/favicon.ico"})
OPEN_BELOW = ("/page/",)
ADMIN = "/admin"
_HINT = "send `Authorization: Bearer TOKEN`; `python -m service keys add NAME` makes one"


class ApiKeyMiddleware:
    """401 without a known key, 403 for a key that may not; without a keys file all but admin is open."""

    def __init__(self, app: ASGIApp, *, keyring: Keyring | None, open_metrics: bool) -> None:
        self._app = app
        self._keyring = keyring
        self._open = OPEN | {"/metrics"} if open_metrics else OPEN
        self._trouble: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)  # the start and the end: there are no websockets
            return
        path: str = scope["path"]
        caller = ANYBODY
        if self._keyring is not None and not self._is_open(path):
            found = self._find(self._keyring, scope)
            if isinstance(found, str):
                await refuse(
                    scope, send, 401, "unauthorized", found,
                    code="invalid_api_key", headers=[(b"www-authenticate", b'Bearer realm="vbon"')],
                )  # fmt: skip
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

    def _find(self, keyring: Keyring, scope: Scope) -> Caller | str:
        """The caller, or why there is none; nothing of what was sent is repeated."""
        sent = [value for name, value in scope["headers"] if name == b"authorization"]
        if not sent:
            return f"this server asks for an API key: {_HINT}"
        scheme, _, token = sent[0].partition(b" ")
        if len(sent) > 1 or scheme.lower() != b"bearer":
            return f"the Authorization header is not one bearer token: {_HINT}"
        caller = keyring.find(token.strip())
        if keyring.trouble != self._trouble:
            self._trouble = keyring.trouble
            if self._trouble:
                logger.error("the keys of before stay in use: %s", self._trouble)
        return caller or "this API key is not known here, or not any more"

    def _why_not(self, caller: Caller) -> str:
        if self._keyring is None:
            return "admin routes need an admin's key; start the server with --auth.keys-file"
        return f"key {caller.name!r} is no admin's; make one with `keys add NAME --role admin`"


def open_keyring(settings: AuthSettings) -> Keyring | None:
    """The configured keys, if there are any.

    Raises:
        DataError: the file cannot be used.
    """
    return None if settings.keys_file is None else Keyring(Path(settings.keys_file))


def warn_if_open(host: str, settings: AuthSettings) -> None:
    """Log a warning where other machines may reach a server that asks for no key."""
    if settings.keys_file is None and not _is_loopback(host):
        logger.warning(
            "listening on %s without API keys: whoever reaches it may use it (--auth.keys-file)",
            host,
        )


def _is_admin(path: str) -> bool:
    return path == ADMIN or path.startswith(f"{ADMIN}/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
