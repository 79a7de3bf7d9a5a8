"""Allows one search per storage of trials: two would each take the other's running trials for cut ones.

The file of SQLite is locked, and the system releases the lock of a process that died. Other storages keep a
lease in a study of its own, which its holder renews; that of a holder that died runs out.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbon.errors import ExportError
from vbon.storage.database_urls import without_password
from vbon.storage.locks import sole_writer
from vbon.tuning.studies import opened_storage

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

LEASE_S, _RENEW_S, _SETTLE_S = 90.0, 20.0, 0.5
_CLOCKS_S = 60.0  # by which the clocks of two machines may differ
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
    shown = without_password(storage)
    _refuse_other(lease, token, shown)
    ended = threading.Event()
    keeper = threading.Thread(
        target=_keep, args=(lease, token, who, shown, ended), name="renew-lease", daemon=True
    )
    try:
        _renew(lease, token, who)
        time.sleep(_SETTLE_S)  # of two that found no holder, the one that wrote last stays
        _refuse_other(lease, token, shown)
        keeper.start()
        yield
    finally:
        ended.set()
        if keeper.is_alive():
            keeper.join()
        with suppress(Exception):  # it runs out by itself
            if (lease.user_attrs.get(_HOLDER) or {}).get("token") == token:
                lease.set_user_attr(_HOLDER, None)


def _keep(lease: optuna.Study, token: str, who: str, storage: str, ended: threading.Event) -> None:
    """Renew a lease until the search has ended, but not one that another search has taken meanwhile."""
    told = False
    while not ended.wait(_RENEW_S):
        with suppress(Exception):  # the database is away, as the trials will say
            holder = _other_holder(lease, token)
            if holder is None:
                _renew(lease, token, who)
            elif not told:
                told = True
                logger.warning(
                    "another search (%s) has taken the storage %s, because this process did not renew its "
                    "hold for %.0f s; stop one of the two, because each repeats the other's trials",
                    holder["who"],
                    storage,
                    LEASE_S,
                )


def _renew(lease: optuna.Study, token: str, who: str) -> None:
    lease.set_user_attr(_HOLDER, {"token": token, "who": who, "until": time.time() + LEASE_S})


def _other_holder(lease: optuna.Study, token: str) -> dict[str, Any] | None:
    """The holder of a lease, if that is another search and the lease has not run out."""
    holder: dict[str, Any] | None = lease.user_attrs.get(_HOLDER)
    if holder is None or holder["token"] == token:
        return None
    # The clock of its machine may be ahead of ours; one that is ahead by hours must not hold for hours.
    return holder if 0 < holder["until"] - time.time() <= LEASE_S + _CLOCKS_S else None


def _refuse_other(lease: optuna.Study, token: str, storage: str) -> None:
    holder = _other_holder(lease, token)
    if holder is not None:
        left = holder["until"] - time.time()
        raise ExportError(
            f"another search uses the storage {storage} ({holder['who']}); {_REMEDY}; if that process died, "
            f"its hold ends in {left:.0f} s"
        )
