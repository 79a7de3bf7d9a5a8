"""The real application on a real port around a fake engine, for input to be thrown at."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from service.auth.keys import new_key, write_keys
from service.http.uvicorn_protocol import http_options
from tests.fuzz.mutate import TABLE
from tests.unit.fakes import ChatEngine, FakeReward, make_runtime, on_a_port
from vbon.measured.table import write_table

LIMITS = {"max_n": 16, "max_tokens": 64, "max_prompts": 4, "timeout_s": 20}


@asynccontextmanager
async def fuzzed(scratch: Path) -> AsyncGenerator[tuple[str, str], None]:
    """Its URL, and an admin's key, with which every route is reached."""
    key, token = new_key("fuzz", "admin")
    write_keys(scratch / "keys.jsonl", [key])
    write_table(scratch / "table.json", TABLE)
    engines = {"ref": ChatEngine("fake-ref"), "vbon": ChatEngine("fake-vbon")}
    runtime = make_runtime(
        gold=FakeReward(), engines=engines, limits=LIMITS, store=str(scratch / "runs.db"),
        auto={"table": str(scratch / "table.json"), "token_price": 0.01, "price_per_hour": 2.0},
        auth={"keys_file": str(scratch / "keys.jsonl")},
    )  # fmt: skip
    async with on_a_port(runtime, **http_options(runtime.settings.limits)) as url:
        yield url.removesuffix("/v1"), token
