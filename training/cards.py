"""Model cards: a README.md beside the weights that says where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bestofn.files import write_text


def write_card(directory: Path, *, title: str, summary: str, facts: dict[str, Any]) -> None:
    """Write README.md with a table of facts; values are shown as they are."""
    rows = "\n".join(f"| {name} | {_shown(value)} |" for name, value in facts.items())
    write_text(
        directory / "README.md",
        f"---\nlibrary_name: transformers\ntags:\n- best-of-n\n---\n# {title}\n\n{summary}\n\n"
        f"| what | value |\n| --- | --- |\n{rows}\n",
    )


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
