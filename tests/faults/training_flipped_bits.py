"""One bit flipped in anything that a training run reads or left: it is found, or changes nothing."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.commands import KillAtWrite, flags, run
from tests.faults.stage import Stage
from tests.faults.tally import Tally
from tests.training_faults import checkpoint_difference, copy_cache, flip_bit, quick_config, settle

PROMISE = (
    "One flipped bit in weights, tokenizer, config, card, reward cache, its columns or a resumable "
    "state is named, or is mended, or changes nothing: never another result."
)
KINDS = {
    "newest state": ".vbon.state/step-000002/**/*",
    "policy": "policy/*",
    "columns": "cache.jsonl.columns/*",
    "reward": "reward/*",
    "finished checkpoint": "done/*",
    "cache": "cache.jsonl*",
    "earlier state": ".vbon.state/step-000001/**/*",
}


@dataclass(frozen=True)
class Scene:
    """A folder with all that a run works with, the run killed after its last step."""

    stage: Stage
    folder: Path

    def command(self, out: str) -> list[str]:
        """``done`` is finished, ``vbon`` was killed."""
        config = quick_config(
            self.stage.sandbox, self.folder / out, policy=str(self.folder / "policy"),
            reward=str(self.folder / "reward"), cache=self.folder / "cache.jsonl",
        )  # fmt: skip
        return ["vbon", *flags(config)]

    def make(self, logs: Path) -> None:
        """Run one to its end and kill another."""
        for name in ("policy", "reward"):
            shutil.copytree(self.stage.sandbox / name, self.folder / name)
        copy_cache(self.stage.sandbox, self.folder)
        run(logs, self.command("done"))
        export = KillAtWrite(self.folder / ".vbon.partial", at=1, kinds=frozenset({"os.mkdir"}))
        ended = run(logs, self.command("vbon"), export)
        states = sorted(p.name for p in (self.folder / ".vbon.state").iterdir())
        if ended.code != -9 or states != ["step-000001", "step-000002"]:
            raise RuntimeError(f"{states} after exit {ended.code}: {ended.said[-1000:]}")


async def inject(stage: Stage) -> Tally:
    """Files of each kind in turn, at random bits."""
    return await asyncio.to_thread(_inject, stage)


def _inject(stage: Stage) -> Tally:
    tally, logs = Tally(), stage.scratch / "flipped-bits"
    whole, scene = logs / "whole", Scene(stage, logs / "scene")
    scene.folder.mkdir(parents=True)
    scene.make(logs)
    shutil.copytree(scene.folder, whole, copy_function=shutil.copy2)
    generator = np.random.default_rng(0)
    kinds = list(KINDS)
    for number in range(stage.count(400, least=len(kinds))):
        kind = kinds[number % len(kinds)]
        shutil.rmtree(scene.folder)
        shutil.copytree(whole, scene.folder)
        files = [f for f in sorted(scene.folder.glob(KINDS[kind])) if f.is_file()]
        file = files[generator.integers(len(files))]
        flip_bit(file, int(generator.integers(8 * file.stat().st_size)))
        out = "done" if kind == "finished checkpoint" else "vbon"
        ended = run(logs, scene.command(out))
        apart = (
            checkpoint_difference(scene.folder / out, whole / "done") if not ended.code else None
        )
        if file.name == "README.md" and apart is None:
            tally.notes.append("a card was read by people only")
        settle(tally, ended, apart and f"{file}: {apart}", kind)
    tally.notes = sorted(set(tally.notes))
    return tally
