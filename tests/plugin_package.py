"""An installed package with plug-ins, made in a folder: modules and a ``.dist-info`` with entry points."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

MODULE = '''
from typing import ClassVar

import numpy as np
from pydantic import Field

from service.strategies.rerank import Reranker
from training.objectives.bon_sft import BonSft
from vbon.rewards import Scorable


class Lowest(Reranker):
    """The lowest reward, or the rank that is asked for."""

    description: ClassVar[str] = "N samples, a low reward returned"

    rank: int = Field(0, ge=0, le=127, description="0: the lowest, 1: the next")

    def distribution(self, pool):
        weights = np.zeros(len(pool.rewards))
        weights[np.argsort(pool.rewards)[min(self.rank, len(weights) - 1)]] = 1.0
        return weights


class CountsWord:
    revision = "1"

    def __init__(self, argument, options):
        self.name, self.word = f"words:{argument}", argument

    def load(self):
        pass

    def score(self, items: list[Scorable]):
        return [float(item.completion.split().count(self.word)) for item in items]

    def close(self):
        pass


class HalfSft(BonSft):
    """Half the loss of bon-sft."""

    title: ClassVar[str] = "half SFT"
    source: ClassVar[str] = "arXiv 0000.00000"

    share: float = Field(0.5, gt=0, description="Share of the loss")

    def loss(self, batch):
        return self.share * super().loss(batch)
'''
ENTRY_POINTS = {
    "vbon.strategies": {"lowest": "toy_plugins:Lowest"},
    "vbon.rewards": {"words": "toy_plugins:CountsWord"},
    "vbon.objectives": {"half-sft": "toy_plugins:HalfSft"},
}


def write_package(
    folder: Path,
    entry_points: Mapping[str, Mapping[str, str]],
    *,
    name: str = "toy-plugins",
    modules: Mapping[str, str] | None = None,
) -> Path:
    """Install a package by hand; the folder belongs on ``sys.path``."""
    info = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\nSummary: Toys.\n", encoding="utf-8"
    )
    lines: list[str] = []
    for group, points in entry_points.items():
        lines += [f"[{group}]", *(f"{point} = {target}" for point, target in points.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    for module, text in (modules or {}).items():
        (folder / f"{module}.py").write_text(text, encoding="utf-8")
    return folder


def write_toys(folder: Path) -> Path:
    """A package with one strategy, one reward model and one objective."""
    return write_package(folder, ENTRY_POINTS, modules={"toy_plugins": MODULE})


def environment_with(folder: Path) -> dict[str, str]:
    """The environment of a process in which the package is installed."""
    root = str(Path(__file__).resolve().parents[1])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(folder), root, os.environ.get("PYTHONPATH", ""))),
    }
