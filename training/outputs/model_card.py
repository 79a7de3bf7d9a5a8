"""Writes model cards: a README.md beside the weights that documents their origin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.outputs.identity import read_json_record
from vbon.storage.atomic import write_text
from vbon.storage.checksums import CARD, CHECKSUMS


def write_card(directory: Path, *, title: str, summary: str, facts: dict[str, Any]) -> None:
    """Write README.md with a table of the facts, and the checksums if they are already written."""
    rows = "\n".join(f"| {name} | {_formatted(value)} |" for name, value in facts.items())
    write_text(
        directory / CARD,
        f"---\nlibrary_name: transformers\ntags:\n- best-of-n\n---\n# {title}\n\n{summary}\n\n"
        f"| what | value |\n| --- | --- |\n{rows}\n{_checksum_section(directory)}",
    )


def _checksum_section(directory: Path) -> str:
    recorded = read_json_record(directory / CHECKSUMS)
    if recorded is None:
        return ""
    rows = "\n".join(
        f"| {name} | {file['bytes']} | {file['sha256']} |"
        for name, file in recorded["files"].items()
    )
    return f"\n## Files\n\n| file | bytes | SHA-256 |\n| --- | --- | --- |\n{rows}\n"


def _formatted(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
