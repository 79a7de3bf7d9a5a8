"""Room for as many connections as the limits let in: shells and systemd allow 1,024 open files by default."""

from __future__ import annotations

import logging
import resource

from service.settings import LimitSettings

logger = logging.getLogger(__name__)

WANTED = 65_536
OWN = 200  # models, engines' sockets, stores, logs


def allow_connections(limits: LimitSettings) -> int:
    """Raise this process's soft limit of open files as far as it may, and warn if that is too little.

    Past the limit connections are reset without a word: nobody is left to say 429.

    Returns:
        the limit from here on.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft == resource.RLIM_INFINITY:
        return WANTED
    if soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    allowed = max(soft, allowed)
    # One sample is the smallest request, so these are the most that can be let in at once.
    needed = limits.running_sequences + limits.waiting_sequences + OWN
    if allowed < needed:
        logger.warning(
            "%d open files are allowed and up to %d requests may be let in; connections past that are "
            "reset: raise the limit (ulimit -Hn, LimitNOFILE=) or lower limits.waiting_sequences",
            allowed,
            needed - OWN,
        )
    return allowed
