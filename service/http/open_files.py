"""Raises the limit of open files: many shells and systemd allow 1,024, and each connection needs one."""

from __future__ import annotations

import logging
import resource

from service.settings import LimitSettings

logger = logging.getLogger(__name__)

WANTED_FILES = 65_536
OTHER_FILES = (
    200  # open files that are not connections: models, sockets to engines, the store, logs
)


def raise_open_files_limit(limits: LimitSettings) -> int:
    """Raise this process's soft limit of open files as far as allowed; warn if it stays too low.

    At the limit, the operating system resets new connections, and the service cannot answer them with 429.

    Returns:
        The limit that now applies.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
    if soft == resource.RLIM_INFINITY:
        return WANTED_FILES
    if soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    allowed = max(soft, allowed)
    # A request has at least one sequence, so this is the largest number of requests admitted or waiting.
    requests = limits.running_sequences + limits.waiting_sequences
    if allowed < requests + OTHER_FILES:
        logger.warning(
            "this process may open %d files, but up to %d requests may run or wait; connections over the "
            "limit are reset. Raise the limit (ulimit -Hn, LimitNOFILE=) or lower "
            "limits.waiting_sequences",
            allowed,
            requests,
        )
    return allowed
