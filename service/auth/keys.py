"""The file of API keys: JSON lines with a name, a role, limits and a hash, but never the key itself.

A token is ``bok-ID-SECRET``: a public id, which finds the line, and 256 random bits. A random secret needs no
slow hash, because searching 2^256 values is impossible with SHA-256 too. SHA-256 takes a microsecond, so a
flood of wrong tokens costs the server little.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.context.caller import Caller
from vbon.errors import DataError, ExportError
from vbon.storage.atomic import resolved
from vbon.storage.locks import sole_writer

Role = Literal["user", "admin"]
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")
# The largest limit of a key: up to it, the numbers that rates are computed with are exact.
MOST = 2**53
_TOKEN = re.compile(rb"bok-([0-9a-f]{16})-[A-Za-z0-9_-]{43}")
_NOBODY = "0" * 64
_Stamp = tuple[int, int, int, int]
# A file that is replaced by deleting it first is missing for a moment.
GRACE_S = 10.0
_REMEDY = "wait for it to end, and run the same command again"


class ApiKey(BaseModel):
    """One line of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=NAME.pattern)]
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    role: Role = "user"
    max_sequences: int | None = Field(None, ge=1, le=MOST)
    tokens_per_minute: int | None = Field(None, ge=1, le=MOST)

    @property
    def caller(self) -> Caller:
        """The holder of the key."""
        return Caller(self.name, self.role == "admin", self.max_sequences, self.tokens_per_minute)


def new_key(
    name: str,
    role: Role = "user",
    max_sequences: int | None = None,
    tokens_per_minute: int | None = None,
) -> tuple[ApiKey, str]:
    """Make a key and its token; the token is stored nowhere.

    Raises:
        DataError: the name is invalid.
    """
    if not NAME.fullmatch(name):
        raise DataError(f"key name {name!r} must be 1 to 64 letters, digits, . _ @ -")
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    token = f"bok-{key_id}-{secret}"
    key = ApiKey(
        name=name,
        id=key_id,
        sha256=_digest(token.encode()),
        role=role,
        max_sequences=max_sequences,
        tokens_per_minute=tokens_per_minute,
    )
    return key, token


def read_keys(path: Path) -> list[ApiKey]:
    """Read the keys of a file.

    Raises:
        DataError: the file cannot be read or a line is invalid. The message has the line's number but none
            of its content.
    """
    try:
        # An editor may have written a byte order mark.
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise DataError(f"cannot read the keys file {path}: {why}") from None
    keys: list[ApiKey] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            key = ApiKey.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "the line"
            raise DataError(f"{path}:{number}: {field}: {first['msg']}") from None
        if not seen.isdisjoint(marks := {f"name {key.name}", f"id {key.id}"}):
            raise DataError(f"{path}:{number}: key {key.name!r} appears twice, by name or by id")
        seen |= marks
        keys.append(key)
    return keys


def change_keys(path: Path, change: Callable[[list[ApiKey]], list[ApiKey]]) -> None:
    """Change the keys of a file while no other command does; confirm it by reading the file again.

    Args:
        change: returns the new keys for the present ones, of which there are none if the file is missing.

    Raises:
        DataError: the file cannot be read or written, another command is changing it, or a program that
            takes no lock changed it at the same time.
    """
    try:
        with sole_writer(path, remedy=_REMEDY):
            keys = change(read_keys(path) if path.exists() else [])
            write_keys(path, keys)
            if read_keys(path) != keys:
                raise DataError(
                    f"another program changed the keys file {path} at the same time, so this change may be "
                    "lost; look at it with `vbon keys list`, and run the same command again"
                )
    except ExportError as error:
        raise DataError(str(error)) from error


def write_keys(path: Path, keys: Sequence[ApiKey]) -> None:
    """Replace the file atomically; only its owner may read it. A link stays a link.

    Raises:
        DataError: the file cannot be written; the old one is unchanged.
    """
    text = "".join(key.model_dump_json(exclude_none=True) + "\n" for key in keys)
    path = resolved(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.touch(mode=0o600)
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise DataError(f"cannot write the keys file {path}: {error.strerror}") from error


class Keyring:
    """The keys that a server accepts.

    ``look_again`` follows the file, and blocks; ``find`` uses what was read last, and does not. If the file
    is changed so that it cannot be used, the keys read last stay valid, so that a mistake in it locks nobody
    out. If it is missing for :data:`GRACE_S`, no key is valid until it is there again.

    Attributes:
        trouble: why the keys are not those of the file; ``None`` if they are.

    Raises:
        DataError: the file cannot be used or contains no keys.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        try:
            self._seen: _Stamp | None = self._stamp()
        except OSError as error:
            raise DataError(
                f"cannot read the keys file {path}: {error.strerror}; make one with "
                f"`vbon keys add NAME --file {path}`"
            ) from error
        self._keys = self._read()
        if not self._keys:
            raise DataError(
                f"the keys file {path} contains no keys, so every request would be rejected; "
                f"add one with `vbon keys add NAME --file {path}`"
            )
        self._missing_since_s: float | None = None
        self.trouble: str | None = None

    def find(self, token: bytes) -> Caller | None:
        """The caller with this token, or ``None``."""
        match = _TOKEN.fullmatch(token)
        key = self._keys.get(match[1].decode()) if match else None
        # Unknown ids are compared with a hash too, so the response time does not reveal which ids exist.
        same = hmac.compare_digest(_digest(token), key.sha256 if key else _NOBODY)
        return key.caller if key is not None and same else None

    def look_again(self) -> None:
        """Read the file if it has changed."""
        try:
            stamp = self._stamp()
            self._missing_since_s = None
            if stamp != self._seen:
                self._keys, self._seen = self._read(), stamp
            self.trouble = None
        except (FileNotFoundError, NotADirectoryError):
            self._miss()
        except OSError as error:
            self.trouble = self._kept(f"cannot read the keys file {self._path}: {error.strerror}")
        except DataError as error:
            self.trouble = self._kept(str(error))

    def _miss(self) -> None:
        now_s = self._clock()
        if self._missing_since_s is None:
            self._missing_since_s = now_s
        if now_s - self._missing_since_s < GRACE_S:
            self.trouble = self._kept(f"the keys file {self._path} is missing")
            return
        self._keys, self._seen = {}, None
        self.trouble = (
            f"the keys file {self._path} has been missing for {GRACE_S:g} s, so every key is rejected; "
            f"restore it, or make one with `vbon keys add NAME --file {self._path}`"
        )

    def _kept(self, why: str) -> str:
        return f"{why}; the keys read before stay valid" if self._keys else why

    def _stamp(self) -> _Stamp:
        found = self._path.stat()
        # The time of the change of the inode, because copying programs set the other one back.
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino

    def _read(self) -> dict[str, ApiKey]:
        return {key.id: key for key in read_keys(self._path)}


def _digest(token: bytes) -> str:
    return hashlib.sha256(token).hexdigest()
