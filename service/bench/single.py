"""The row ``single``: single samples through the service beside ``vllm serve`` with its fastest front end.

vLLM has a front end in Rust, ``VLLM_USE_RUST_FRONTEND=1``, which some of its builds bring as a program. Where
this build has none, the side is ``vllm serve`` with its front end in Python, and the row says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from service.bench.candidates_client import CandidatesJob, client_in_child
from service.bench.contest import prompts_of
from service.bench.figures import Figure, in_turns, ratios, with_unit
from service.bench.harness import Bench
from service.bench.vllm_serve import MODEL, vllm_serve

USE_RUST = {"VLLM_USE_RUST_FRONTEND": "1"}


def rust_front_end() -> Path | None:
    """vLLM's front end in Rust; ``None`` if the installed build has none."""
    given = os.environ.get("VLLM_RUST_FRONTEND_PATH", "auto")
    if given.lower() not in ("auto", "1", "true"):
        return Path(given)
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        return None
    program = Path(spec.origin).parent / "vllm-rs"
    return program if os.access(program, os.X_OK) else None


async def single(bench: Bench) -> Figure:
    """Requests a second of ``ref`` over those of ``vllm serve`` with the same engine, both saturated."""
    rust = rust_front_end()
    environment: Mapping[str, str] | None = None if rust is None else os.environ | USE_RUST
    async with vllm_serve(bench.engine, chats=False, environment=environment) as server:
        return await beside_vllm_serve(bench, server, rust=rust is not None)


async def beside_vllm_serve(bench: Bench, server: str, *, rust: bool) -> Figure:
    """The row ``single`` with a ``vllm serve`` that already runs.

    Args:
        server: address of its ``/v1``.
        rust: whether its front end is the one in Rust.
    """
    settings, width = bench.settings, bench.width(1)
    prompts = prompts_of(bench, settings.requests)

    async def ours() -> float:
        found = await bench.over_http("ref", settings.requests, width, score=False)
        return found.requests_per_second

    async def theirs() -> float:
        url, most = f"{server}/completions", settings.max_tokens
        found = await client_in_child(CandidatesJob(url, MODEL, None, prompts, 1, most, width))
        return found.requests_per_second

    a, b = await in_turns(settings.pairs, ours, theirs)
    front_end = "Rust" if rust else "Python"
    detail = f"{with_unit(a, 'requests/s')} against {with_unit(b, 'requests/s')}, {width} in flight"
    if not rust:
        detail += "; this build of vLLM has no front end in Rust (no program vllm-rs)"
    name = f"ref over HTTP / vllm serve ({front_end} front end), requests/s"
    return Figure(name, ratios(a, b), None, True, detail)
