"""Lines of a reward cache cut short, garbled, doubled or with other line ends, unfinished and finished."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.commands import flags, run
from tests.faults.stage import Stage
from tests.faults.tally import Tally
from tests.tiny import sample_config
from tests.training_faults import (
    cache_difference,
    checkpoint_difference,
    copy_cache,
    quick_config,
    settle,
)

PROMISE = (
    "A torn last line of a killed sampler is drawn again; any other damaged line, and a finished cache "
    "that is not as it was written, is an error that names the file and the line."
)


@dataclass(frozen=True)
class Damage:
    """A change to the third of six lines, or to the end of the file.

    Attributes:
        line: which one the error names, ``None`` where there is to be none.
    """

    name: str
    change: Callable[[list[bytes]], bytes]
    line: int | None = 3


def _third(change: Callable[[bytes], bytes]) -> Callable[[list[bytes]], bytes]:
    return lambda lines: b"".join([*lines[:2], change(lines[2]), *lines[3:]])


DAMAGES = [
    Damage("torn end", lambda lines: b"".join(lines[:4]) + lines[4][:50], None),
    Damage("torn in the middle", _third(lambda line: line[:50] + b"\n")),
    Damage("doubled", lambda lines: b"".join([*lines[:2], lines[1], *lines[3:]])),
    Damage("NUL bytes", _third(lambda line: b"\0" * len(line) + b"\n")),
    Damage("not UTF-8", _third(lambda line: line[:20] + b"\xff" + line[21:])),
    Damage(
        "half a character",
        _third(lambda line: line.replace(b'"prompt": "', b'"prompt": "\\ud83d', 1)),
    ),
    Damage("nested deeply", _third(lambda line: b"[" * 200_000 + b"\n")),
    Damage("NUL bytes at the end", lambda lines: b"".join(lines[:4]) + b"\0" * 4096, None),
    Damage("other line ends", lambda lines: b"".join(lines).replace(b"\n", b"\r\n"), None),
    Damage("a bracket lost", _third(lambda line: line.replace(b"]", b" ", 1))),
    Damage("not a number", _third(lambda line: _with_reward(line, "NaN"))),
    Damage("a reward lost", _third(lambda line: _with_reward(line, None))),
]


def _with_reward(line: bytes, value: str | None) -> bytes:
    record = json.loads(line)
    rest = [json.dumps(reward) for reward in record.pop("rewards")[1:]]
    values = ", ".join([*([] if value is None else [value]), *rest])
    return json.dumps(record).encode()[:-1] + f', "rewards": [{values}]}}\n'.encode()


async def inject(stage: Stage) -> Tally:
    """Each through ``sample``, which goes on with it, and through training, which reads it."""
    return await asyncio.to_thread(_inject, stage)


def _inject(stage: Stage) -> Tally:
    tally = Tally()
    folder = stage.scratch / "damaged-lines"
    folder.mkdir()
    trained = ["vbon", *flags(quick_config(stage.sandbox, folder / "whole"))]
    settle(tally, run(folder, trained), None)
    for damage in DAMAGES[: stage.count(len(DAMAGES), least=3)]:
        place = folder / damage.name
        place.mkdir()
        copy_cache(stage.sandbox, place)
        _sample(stage, tally, damage, place)
        _train(stage, tally, damage, place, folder / "whole")
    return tally


def _sample(stage: Stage, tally: Tally, damage: Damage, folder: Path) -> None:
    """Continue a damaged file that a killed run left; delete a line if the error says so."""
    whole, cache = stage.sandbox / "cache.jsonl", folder / "cache.jsonl"
    lines = whole.read_bytes().splitlines(keepends=True)
    partial = folder / "cache.jsonl.partial"
    cache.unlink()
    partial.write_bytes(damage.change(lines))
    command = ["sample", *flags(sample_config(stage.sandbox, cache))]
    ended = run(folder, command)
    if damage.line is not None:
        said = ended.clear_error or ""
        if f"{partial}:{damage.line}" not in said:
            tally.lost.append(
                f"{damage.name}: line {damage.line} is not named: {ended.said[-300:]}"
            )
            tally.asked += 1
        settle(tally, ended, "a damaged line was taken", "line named")
        left = partial.read_bytes().splitlines(keepends=True)
        partial.write_bytes(b"".join([*left[: damage.line - 1], *left[damage.line :]]))
        ended = run(folder, command)
    settle(tally, ended, cache_difference(cache, whole))


def _train(stage: Stage, tally: Tally, damage: Damage, folder: Path, whole: Path) -> None:
    """A finished cache with its record, then one from elsewhere, which has none."""
    cache, meta = folder / "cache.jsonl", folder / "cache.jsonl.meta.json"
    copy_cache(stage.sandbox, folder)  # sampling took line ends as they were, and wrote that down
    cache.write_bytes(damage.change((stage.sandbox / "cache.jsonl").read_bytes().splitlines(True)))
    config = quick_config(stage.sandbox, folder / "vbon", cache=cache)
    ended = run(folder, ["vbon", *flags(config)])
    settle(tally, ended, "a changed cache was taken", "cache named")
    if f"{cache}: its content is not what" not in (ended.clear_error or ""):
        tally.lost.append(f"{damage.name}: the cache is not named: {ended.said[-300:]}")
        tally.asked += 1
    meta.unlink()
    ended = run(folder, ["vbon", *flags(config)])
    if damage.name == "other line ends":
        settle(tally, ended, checkpoint_difference(folder / "vbon", whole))
    elif damage.name == "doubled":  # further samples of a prompt are what a cache may hold
        settle(tally, ended, None)
    else:
        line = damage.line or 5
        settle(tally, ended, "a damaged line was taken", "line named")
        if f"{cache}:{line}" not in (ended.clear_error or ""):
            tally.lost.append(f"{damage.name}: line {line} is not named: {ended.said[-300:]}")
            tally.asked += 1
