"""Settings of the bench."""

from __future__ import annotations

from pathlib import Path

from pydantic import AliasChoices, Field
from pydantic_settings import SettingsConfigDict

from service.settings import ServiceSettings

ROWS = ["http", "bon", "overlap", "vbon", "abort", "memory"]
PEER_SIDES = ["optillm", "optillm-tuned", "its-hub", "its-hub-tuned"]


class BenchSettings(ServiceSettings):
    """The service against the bare engine it runs on, and its modes against each other.

    Takes the settings of `serve` (policies, reward, engine) and serves them to itself on a free port. Each
    row measures both its sides in turns, in one run.
    """

    model_config = SettingsConfigDict(env_prefix="VBON_", title="vbon bench")

    rows: list[str] = Field(
        ROWS,
        description="what to measure; repeat: http, bon, overlap, vbon, abort, memory; and, slower: "
        "strategies, client (against `vllm serve` and a plain client), peers (against optillm and "
        "its_hub, see --peers-python)",
    )
    prompts: Path = Field(
        Path("sandbox/prompts/heldout.jsonl"), description="JSONL with `prompt`, or one a line"
    )
    pairs: int = Field(5, ge=1, description="times each side is measured")
    n: int = Field(16, ge=2, description="N of best-of-N")
    max_tokens: int = Field(48, ge=1, description="most new tokens of a candidate")
    requests: int = Field(2048, ge=1, description="single-sample requests of one measurement")
    bon_requests: int = Field(128, ge=1, description="best-of-N requests of one measurement")
    memory_requests: int = Field(10_000, ge=100, description="requests of the memory row")
    peers_python: Path = Field(
        Path(".peers/bin/python"),
        description="Python of an environment with optillm and its_hub; scripts/peers makes one",
    )
    peer_sides: list[str] = Field(
        PEER_SIDES, description="what the row peers measures; repeat: " + ", ".join(PEER_SIDES)
    )
    json_file: Path | None = Field(
        None,
        validation_alias=AliasChoices("json", "json_file"),
        description="write every figure, with provenance",
    )
