"""Problems made of measured decoding settings: the table ``settings.csv`` that ``vbon tune`` writes.

A problem asks for the setting of one policy with the fewest tokens that gains as much as best-of-N of the
same policy, with half of the table's largest N and the temperature nearest 1. It searches mode, N, sampling
and the settings of modes, and a point has the figures of the nearest measured setting of its mode.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vbon.errors import DataError
from vbon.storage.atomic import read_errors
from vbon.tuning.bench.problem import Measurement, Params, Problem

if TYPE_CHECKING:
    import optuna

_BON = "bon"
_SAMPLING = ("temperature", "top_p")
_TOLERANCE = 0.05  # of the logarithm of tokens: 5% more than the fewest
SHIPPED = "sandbox_settings.csv.gz"


@dataclass(frozen=True, slots=True)
class Row:
    """One measured setting.

    Attributes:
        settings: those of the mode that are numbers.
        gain: the gold reward if the table has one, otherwise the reward.
    """

    policy: str
    mode: str
    n: int
    sampling: Mapping[str, float]
    settings: Mapping[str, float]
    gain: float
    tokens: float


def shipped_problems() -> list[Problem]:
    """The problems of the table that comes with the package, recorded on the sandbox."""
    data = files(__package__).joinpath(SHIPPED).read_bytes()
    return _problems("decoding", _rows(gzip.decompress(data).decode("utf-8"), SHIPPED))


def settings_problems(file: Path) -> list[Problem]:
    """One problem for each policy of a table, which may be compressed by gzip.

    Raises:
        DataError: the file cannot be read, or is not such a table.
    """
    with read_errors(file):
        data = file.read_bytes()
    try:
        text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as compressed text: {error}") from error
    return _problems(file.name.split(".")[0], _rows(text, str(file)))


def is_settings_table(file: Path) -> bool:
    """True if the first line of a file has the columns of a settings table."""
    with read_errors(file):
        data = file.read_bytes()
    if file.suffix == ".gz":
        return True
    head = data.split(b"\n", 1)[0].decode("utf-8", errors="replace").strip().split(",")
    return {"mode", "policy", "tokens"} <= set(head)


def _rows(text: str, name: str) -> list[Row]:
    found = []
    try:
        for line in csv.DictReader(io.StringIO(text)):
            gain = line["gold"] or line["reward"]
            if not gain:
                continue
            row = Row(
                line["policy"], line["mode"], int(line["n"]),
                {key: float(line[key]) for key in _SAMPLING},
                _numbers(line["settings"]), float(gain), float(line["tokens"]),
            )  # fmt: skip
            _check(row)
            found.append(row)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{name}: not a table of settings ({type(error).__name__}: {error}); give the settings.csv that "
            "`vbon tune` writes"
        ) from error
    if not found:
        raise DataError(f"{name}: the table has no setting with a reward")
    return found


def _check(row: Row) -> None:
    """Refuse figures that have no place in a problem.

    Raises:
        ValueError: one is not finite, or N or the tokens are not above 0.
    """
    figures = {**row.sampling, **row.settings, "gain": row.gain, "tokens": row.tokens}
    for name, value in figures.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value:g}, and it must be finite")
    if row.n < 1 or row.tokens <= 0:
        raise ValueError(
            f"n is {row.n} with {row.tokens:g} tokens; n must be 1 or more, tokens above 0"
        )


def _numbers(text: str) -> dict[str, float]:
    """The numbers of ``"reward_temperature=0.25, log_p=sampled"``."""
    found = {}
    for part in filter(None, text.split(", ")):
        name, _, value = part.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            continue
    return found


def _problems(name: str, rows: Sequence[Row]) -> list[Problem]:
    policies = list(dict.fromkeys(row.policy for row in rows))
    found = []
    for policy in policies:
        own = [row for row in rows if row.policy == policy]
        if any(row.mode == _BON and row.n > 1 for row in own) and len(own) > 1:
            found.append(_problem(f"{name}-{policy}", own))
    if not found:
        raise DataError(
            f"{name}: no policy of the table has settings of mode {_BON} with n of 2 or more"
        )
    return found


def _problem(name: str, rows: list[Row]) -> Problem:
    largest = max(row.n for row in rows if row.mode == _BON)
    asked = max(largest // 2, 2)
    level = min(
        (row for row in rows if row.mode == _BON),
        key=lambda row: (
            abs(row.n - asked), abs(row.sampling["temperature"] - 1), -row.sampling["top_p"],
        ),
    ).gain  # fmt: skip
    modes = list(dict.fromkeys(row.mode for row in rows if row.n > 1))
    # A mode's own settings are those that all its rows have: a few rows may add what was estimated for them.
    names = {
        mode: set.intersection(
            *(set(row.settings) for row in rows if row.mode == mode and row.n > 1)
        )
        for mode in modes
    }
    kept = {
        mode: [
            row
            for row in rows
            if row.mode == mode and row.n > 1 and set(row.settings) == names[mode]
        ]
        for mode in modes
    }
    for mode, own in kept.items():
        if not own:
            raise DataError(
                f"{name}: the settings of mode {mode} have no names in common; leave out those that differ"
            )
    singles = [row for row in rows if row.n == 1]
    parts = {mode: _Part(own + singles, sorted(names[mode])) for mode, own in kept.items()}
    ranges = {key: _spread([row.sampling[key] for row in rows]) for key in _SAMPLING}
    feasible = [row for part in parts.values() for row in part.rows if row.gain >= level]
    best = min(math.log(row.tokens) for row in feasible)
    unmet = max(math.log(row.tokens) for row in rows) - best

    def ask(trial: optuna.Trial) -> Params:
        mode = trial.suggest_categorical("mode", modes)
        params: dict[str, float | str] = {
            "mode": mode,
            "n": trial.suggest_int("n", 1, largest, log=True),
        }
        for key, (low, high) in ranges.items():
            params[key] = trial.suggest_float(key, low, high) if low < high else low
        for key in parts[mode].names:
            low, high = parts[mode].limits[key]
            if low < high:
                params[key] = trial.suggest_float(f"{mode}.{key}", low, high, log=low > 0)
            else:
                params[key] = low
        return params

    def measure(params: Params) -> Measurement:
        row = parts[params["mode"]].nearest(params)
        return Measurement(math.log(row.tokens), {"gain": level - row.gain})

    summary = (
        f"{sum(len(part.rows) for part in parts.values())} measured settings of {len(modes)} modes, the "
        f"fewest tokens for the gain of best-of-{asked}, {level:.3g}; regret in logarithms of tokens"
    )
    has_settings = any(part.names for part in parts.values())
    return Problem(name, summary, ask, measure, best, unmet, _TOLERANCE, conditional=has_settings)


class _Part:
    """The settings of one mode, of which the nearest is looked up."""

    def __init__(self, rows: list[Row], names: list[str]) -> None:
        self.rows, self.names = rows, names
        own = [row for row in rows if row.n > 1]
        self.limits = {name: _spread([row.settings[name] for row in own]) for name in names}
        self._scales = {key: _spread([row.sampling[key] for row in rows]) for key in _SAMPLING}
        self._n = _spread([math.log(row.n) for row in rows])
        # A single sample has no settings of the mode, so they do not tell it from others.
        self._places = np.array([self._place(row.n, row.sampling, row.settings) for row in rows])

    def nearest(self, params: Params) -> Row:
        """The measured setting at the smallest distance; N and settings count on logarithmic scales."""
        sampling = {key: params[key] for key in _SAMPLING}
        own = {name: params[name] for name in self.names} if params["n"] > 1 else {}
        gaps = self._places - np.array(self._place(params["n"], sampling, own))
        known = np.nan_to_num(gaps, nan=0.0)
        wrong_kind = (self._places[:, 0] == 0) != (params["n"] == 1)  # one sample is one sample
        return self.rows[int(((known**2).sum(axis=1) + 1e3 * wrong_kind).argmin())]

    def _place(
        self, n: int, sampling: Mapping[str, float], settings: Mapping[str, float]
    ) -> list[float]:
        found = [math.log(n) / max(self._n[1], 1e-9)]
        for key in _SAMPLING:
            low, high = self._scales[key]
            found.append((sampling[key] - low) / (high - low) if high > low else 0.0)
        for name in self.names:
            low, high = self.limits[name]
            value = settings.get(name, math.nan)
            if low > 0 and high > low:
                found.append(math.log(value / low) / math.log(high / low))
            else:
                found.append((value - low) / (high - low) if high > low else 0.0)
        return found


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)
