"""``scripts/fuzz``: bad input on a server, a running one by its URL or one with a fake engine.

scripts/fuzz                                      the real application around a fake engine
scripts/fuzz --url http://127.0.0.1:8000          a running server
scripts/fuzz --examples 2000 --mutants 200000 --seed 1
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.fuzz.run import mutants, schemathesis
from tests.fuzz.server import fuzzed


def main() -> int:
    """Exit status: 0 if every answer was one that may be given."""
    parser = argparse.ArgumentParser(
        "scripts/fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="server; its key in VBON_REMOTE_API_KEY")
    parser.add_argument("--examples", type=int, default=500, help="of schemathesis, each operation")
    parser.add_argument("--mutants", type=int, default=20_000, help="of valid requests")
    parser.add_argument("--seed", type=int, help="to repeat a run (default: a new one)")
    arguments = parser.parse_args()
    seed = random.randrange(2**31) if arguments.seed is None else arguments.seed
    return asyncio.run(fuzz(arguments.url, arguments.examples, arguments.mutants, seed))


async def fuzz(url: str | None, examples: int, count: int, seed: int) -> int:
    """Both in turn."""
    async with _server(url) as (base, key):
        status, output = await schemathesis(base, examples=examples, seed=seed, key=key)
        print(output)
        statuses, wrong = await mutants(base, count=count, seed=seed, key=key)
    print(f"mutants, seed {seed}: {dict(sorted(statuses.items()))}; wrong: {len(wrong)}")
    for line in wrong[:20]:
        print(f"  {line}")
    return int(status != 0 or bool(wrong))


@asynccontextmanager
async def _server(url: str | None) -> AsyncGenerator[tuple[str, str | None], None]:
    if url is not None:
        yield url.rstrip("/"), os.environ.get("VBON_REMOTE_API_KEY")
        return
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        async with fuzzed(Path(scratch)) as own:
            yield own


if __name__ == "__main__":
    raise SystemExit(main())
