"""Allows one search per storage of trials: two would each take the other's running trials for cut ones.

The file of SQLite is locked, and the system releases the lock of a process that died. Other storages keep a
lease in a study of its own, which its holder renews; that of a holder that died runs out.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vbon.errors import ExportError
from vbon.storage.database_urls import without_password
from vbon.storage.locks import sole_writer
from vbon.tuning.studies import opened_storage

if TYPE_CHECKING:
    import optuna

LEASE_S, _RENEW_S, _SETTLE_S = 90.0, 20.0, 0.5
_HOLDER = "vbon_holder"
_REMEDY = "wait for it to end, or give another --storage"


@contextmanager
def sole_search(storage: str, name: str) -> Iterator[None]:
    """Hold a storage of trials while the block runs.

    Args:
        name: of the search; searches of other names may use a database at the same time.

    Raises:
        ExportError: another search uses it.
        DataError: the storage cannot be used.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(storage)
        sqlite, file = url.get_backend_name() == "sqlite", url.database
    except ArgumentError:
        sqlite, file = False, None  # Optuna says what is wrong with it
    if sqlite and (not file or file.startswith((":memory:", "file:"))):
        yield  # its own, or one whose file cannot be told
    elif sqlite:
        assert file
        with sole_writer(Path(file).resolve(), remedy=_REMEDY):
            yield
    else:
        with leased(storage, name):
            yield


@contextmanager
def leased(storage: str, name: str) -> Iterator[None]:
    """Hold the lease of a search while the block runs."""
    lease = opened_storage(f"{name}/lease", storage, None)
    token = uuid.uuid4().hex
    who = f"pid {os.getpid()} of {socket.gethostname()}"
    _refuse_other(lease, token, storage)
    _renew(lease, token, who)
    time.sleep(_SETTLE_S)  # of two that found no holder, the one that wrote last stays
    _refuse_other(lease, token, storage)
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(_RENEW_S):
            with suppress(Exception):  # the database is away, as the trials will say
                _renew(lease, token, who)

    keeper = threading.Thread(target=keep, name="renew-lease", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
        with suppress(Exception):  # it runs out by itself
            lease.set_user_attr(_HOLDER, None)


def _renew(lease: optuna.Study, token: str, who: str) -> None:
    lease.set_user_attr(_HOLDER, {"token": token, "who": who, "until": time.time() + LEASE_S})


def _refuse_other(lease: optuna.Study, token: str, storage: str) -> None:
    holder = lease.user_attrs.get(_HOLDER)
    if holder is None or holder["token"] == token:
        return
    left = holder["until"] - time.time()
    if 0 < left <= LEASE_S:
        raise ExportError(
            f"another search uses the storage {without_password(storage)} ({holder['who']}); {_REMEDY}; if "
            f"that process died, its hold ends in {left:.0f} s"
        )
