"""Splits prompts into train, validation and test, so that no figure is reported on training prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vbon.errors import DataError
from vbon.prompt_files import read_prompt_file, write_prompts
from vbon.prompts import Prompt

PARTS = ("train", "validation", "test")
_FEWEST = 2  # an interval over prompts needs two


@dataclass(frozen=True, slots=True)
class Split:
    """Prompts of each part, and how many duplicates were dropped before."""

    parts: dict[str, list[Prompt]]
    duplicates: int

    def __str__(self) -> str:
        counts = ", ".join(f"{len(prompts)} {part}" for part, prompts in self.parts.items())
        dropped = f" ({self.duplicates} duplicates dropped)" if self.duplicates else ""
        return f"{counts} prompts{dropped}"


def split_prompts(
    files: Sequence[Path],
    validation_share: float,
    test_share: float,
    seed: int,
    *,
    column: str | None = None,
    encoding: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Split:
    """Read prompt files and split their prompts.

    The order is by a hash of seed and prompt, so a prompt keeps its place when others are added, and its
    part unless it lies at an edge.

    Args:
        column: as in :func:`vbon.prompt_files.read_prompt_file`, like ``encoding``.
        say: called with a sentence on each file.

    Raises:
        DataError: a file cannot be read, or there are too few prompts for three parts.
    """
    read: list[Prompt] = []
    for path in files:
        file = read_prompt_file(path, column=column, encoding=encoding)
        say(file.describe(keeps_duplicates=False))
        read += file.prompts
    return split_of(read, validation_share, test_share, seed)


def split_of(
    prompts: Sequence[Prompt], validation_share: float, test_share: float, seed: int
) -> Split:
    """Split prompts as :func:`split_prompts` does those of files.

    Raises:
        DataError: there are too few prompts for three parts.
    """
    unique = list({prompt.key: prompt for prompt in prompts}.values())
    unique.sort(key=lambda prompt: hashlib.sha256(f"{seed}:{prompt.key}".encode()).digest())
    sizes = {
        "test": max(_FEWEST, round(len(unique) * test_share)),
        "validation": max(_FEWEST, round(len(unique) * validation_share)),
    }
    if len(unique) < sum(sizes.values()) + _FEWEST:
        raise DataError(
            f"{len(unique)} distinct prompts are too few to split into train, validation and test; give "
            f"at least {3 * _FEWEST}, and rather hundreds"
        )
    test, rest = unique[: sizes["test"]], unique[sizes["test"] :]
    validation, train = rest[: sizes["validation"]], rest[sizes["validation"] :]
    parts = {"train": train, "validation": validation, "test": test}
    return Split(parts, len(prompts) - len(unique))


def write_split(split: Split, directory: Path) -> None:
    """Write ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``."""
    for part, prompts in split.parts.items():
        write_prompts(directory / f"{part}.jsonl", prompts)
