"""Follows the keys file while the service runs."""

from __future__ import annotations

import asyncio
import logging

from service.auth.keys import Keyring
from vbon.threads import in_own_thread

logger = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.5


async def follow_keys(keyring: Keyring) -> None:
    """Apply changes of the keys file until cancelled.

    The file is read in a thread of its own, so that neither many keys nor a slow disk delays requests.
    """
    trouble: str | None = None
    while True:
        await asyncio.sleep(LOOK_AGAIN_S)
        try:
            await in_own_thread("keys", keyring.look_again)
        except Exception:  # the next look may succeed, and without one no key could be removed
            logger.exception("could not look at the keys file")
        if keyring.trouble != trouble:
            trouble = keyring.trouble
            if trouble is None:
                logger.info("the keys file can be used again")
            else:
                logger.error("%s", trouble)
