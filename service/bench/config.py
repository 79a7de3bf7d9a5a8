"""Settings of the bench."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import AliasChoices, Field
from pydantic_settings import SettingsConfigDict

from service.settings import ServiceSettings
from vbon.config import PROMPT_FILE, FileEncoding, OptionGroups, PromptColumn

ROWS = ["http", "bon", "overlap", "vbon", "abort", "memory"]
PEER_SIDES = ["optillm", "optillm-tuned", "its-hub", "its-hub-tuned"]


class BenchSettings(ServiceSettings):
    """Measure the service against the bare engine under it, and modes against each other.

    The bench takes the settings of `serve` (policies, reward, engine) and serves them to itself on a free
    port. Each row measures both of its sides in turns, in one run.

    Examples:
      vbon bench serve --policies ref=DIR --policies vbon=DIR --reward DIR --prompts heldout.jsonl
      vbon bench serve --rows vbon --pairs 3 --json bench.json
    """

    option_groups: ClassVar[OptionGroups] = {
        "Bench": (
            "rows",
            "prompts",
            "prompt_column",
            "encoding",
            "pairs",
            "n",
            "max_tokens",
            "requests",
            "bon_requests",
            "memory_requests",
            "peers_python",
            "peer_sides",
            "json_file",
        ),
        **ServiceSettings.option_groups,
    }

    model_config = SettingsConfigDict(env_prefix="VBON_", title="vbon bench")

    rows: list[str] = Field(
        ROWS,
        description="measurements to make: http, bon, overlap, vbon, abort, memory; and slower ones: "
        "collecting, strategies, workers (front ends on an engine without work), single (against `vllm "
        "serve`, with its front end in Rust where the build has it), client (against `vllm serve` and a "
        "plain client), peers (against optillm and its_hub, see --peers-python)",
    )
    prompts: Path = Field(
        Path("sandbox/prompts/heldout.jsonl"),
        description=f"file of prompts: {PROMPT_FILE}",
    )
    prompt_column: PromptColumn = None
    encoding: FileEncoding = None
    pairs: int = Field(5, ge=1, description="times that each side is measured")
    n: int = Field(16, ge=2, description="N of best-of-N")
    max_tokens: int = Field(48, ge=1, description="new tokens of a candidate, at most")
    requests: int = Field(2048, ge=1, description="single-sample requests of one measurement")
    bon_requests: int = Field(128, ge=1, description="best-of-N requests of one measurement")
    memory_requests: int = Field(10_000, ge=100, description="requests of the row memory")
    peers_python: Path = Field(
        Path(".peers/bin/python"),
        description="Python of an environment with optillm and its_hub, which scripts/peers makes",
    )
    peer_sides: list[str] = Field(
        PEER_SIDES, description="sides that the row peers measures: " + ", ".join(PEER_SIDES)
    )
    json_file: Path | None = Field(
        None,
        validation_alias=AliasChoices("json", "json_file"),
        description="file for every figure, with provenance",
    )
