"""Rules for request heads that the parser does not apply: host, framing, and unsupported upgrades."""

from __future__ import annotations

import re
from collections.abc import Sequence

Fields = Sequence[tuple[bytes, bytes]]

_HOST = re.compile(rb"([\w.~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(:\d{0,5})?", re.ASCII)
_AUTHORITY = re.compile(rb"[a-zA-Z][\w+.-]*://([^/?#]*)")


def head_fault(target: bytes, headers: Fields, http_version: str) -> str | None:
    """The reason for which a request with this head cannot be served, or ``None``.

    Args:
        target: the path, or an absolute URL, as clients send it to a proxy.
    """
    if http_version not in ("1.0", "1.1"):  # the parser takes 0.9 and 2.0 too
        return f"HTTP/{http_version} is not supported; send HTTP/1.1"
    hosts = [value for name, value in headers if name == b"host"]
    return (
        _host_fault(hosts, http_version)
        or _target_fault(target, hosts)
        or _framing_fault(headers, http_version)
    )


def _host_fault(hosts: Sequence[bytes], http_version: str) -> str | None:
    """Only HTTP/1.0 may leave the header out."""
    if not hosts:
        return None if http_version == "1.0" else "the Host header is missing"
    if len(hosts) > 1:
        return f"there are {len(hosts)} Host headers; send one"
    return None if _HOST.fullmatch(hosts[0]) else "the Host header is not HOST or HOST:PORT"


def _target_fault(target: bytes, hosts: Sequence[bytes]) -> str | None:
    """The host of an absolute URL counts, so a Host header beside it must not name another."""
    authority = _AUTHORITY.match(target)
    if authority is None or not hosts or authority[1].lower() == hosts[0].lower():
        return None
    return "the request's URL and its Host header name different hosts"


def _framing_fault(headers: Fields, http_version: str) -> str | None:
    """The end of a body in another encoding than chunks cannot be found."""
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    if not codings:
        return None
    if http_version == "1.0":
        return "HTTP/1.0 has no Transfer-Encoding; send Content-Length"
    if codings != [b"chunked"]:
        return "Transfer-Encoding is not `chunked`, which is the only one supported"
    return None


def without_upgrade(method: bytes, url: bytes, http_version: str, headers: Fields) -> bytes:
    """The head of a request as bytes, without the wish to change the protocol.

    The parser hands everything after the head of an upgrade to the new protocol. The server may ignore the
    wish, but the body must then be read as a body, and not as the next request.
    """
    kept = []
    for name, value in headers:
        if name == b"connection":
            options = [option.strip() for option in value.split(b",")]
            value = b", ".join(option for option in options if option.lower() != b"upgrade")
        if name != b"upgrade":
            kept.append(name + b": " + value + b"\r\n")
    start = method + b" " + url + b" HTTP/" + http_version.encode() + b"\r\n"
    return start + b"".join(kept) + b"\r\n"
