"""Expected policies: configured before their checkpoints exist, and served once they do."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from service.runtime.reload import ModelBuilder, why_not_loaded
from service.runtime.runtime import Runtime
from vbon.concurrency import all_or_first_error
from vbon.threads import in_own_thread

logger = logging.getLogger(__name__)

POLL_S = 1.0
PAUSE_S = 30.0  # after a checkpoint that could not be loaded


async def serve_expected(runtime: Runtime, builder: ModelBuilder) -> None:
    """Load each expected policy when its checkpoint is complete; return once all are served.

    Checkpoints are written beside their place and renamed, so a directory that exists is complete. One
    that cannot be loaded is logged and tried again later; requests for its mode are rejected meanwhile.
    """
    while runtime.expected:
        failed = False
        for name, path in list(runtime.expected.items()):
            if await in_own_thread("look-for-policy", _exists, path):
                failed |= not await _join(runtime, builder, name)
        await asyncio.sleep(PAUSE_S if failed else POLL_S)


def _exists(path: str) -> bool:
    return Path(path).expanduser().exists()


async def _join(runtime: Runtime, builder: ModelBuilder, name: str) -> bool:
    """Load a policy and let requests use it; ``False`` if it could not be loaded."""
    engines = {}
    try:
        engines = await in_own_thread("build-engines", builder.engines, name, runtime.policies)
        await all_or_first_error(engine.start() for engine in engines.values())
    except Exception as error:  # its files, and the code that reads them, may do anything
        logger.error("the expected policy %s cannot be loaded: %s", name, why_not_loaded(error))
        await asyncio.gather(*(engine.stop() for engine in engines.values()))
        return False
    except BaseException:
        await asyncio.gather(*(engine.stop() for engine in engines.values()))
        raise
    for joined, engine in engines.items():
        runtime.join(joined, engine)
    logger.info("the expected policy %s is served now", name)
    return True
