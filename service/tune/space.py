"""The search space of decoding: a TOML file, whose defaults come from the modes that the server has."""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.strategies import STRATEGIES
from service.tune.replay import Rule, can_replay, rule_of
from service.tune.server import Served
from service.tune.setting import BON
from vbon.engine.protocol import MOST_TEMPERATURE
from vbon.errors import DataError, InvalidInputError
from vbon.storage.atomic import read_errors
from vbon.storage.validation import first_problem
from vbon.tuning.axes import Axis, Range, Values, count_of, is_fixed

# Modes that are not searched: they choose another mode, or are a setting of an earlier search.
_OWN_CHOICES = {"auto", "tuned"}
# The defaults of settings whose values are strengths: quarter, one and four times the mode's own default.
_STRENGTHS = {"reg_strength", "reward_temperature", "candidate_cost"}
# The values with which engines sample, in words and as a test.
_SAMPLING: dict[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": (
        f"a number from 0 to {MOST_TEMPERATURE:g}",
        lambda value: 0 <= value <= MOST_TEMPERATURE,
    ),
    "top_p": ("a number above 0 and at most 1", lambda value: 0 < value <= 1),
    "top_k": (
        "a whole number from -1 to 1,000,000",
        lambda value: value.is_integer() and -1 <= value <= 1_000_000,
    ),
}
_COUNTS: dict[str, list[int]] = {"effective_n": [2, 4, 8], "children": [2, 4]}


class SpaceFile(BaseModel):
    """The content of a space file; everything is optional.

    Attributes:
        policies: policies to draw from; default: all.
        modes: modes to search; default: all that choose among candidates.
        n_max: the largest N; every smaller one is replayed.
        settings: values of the settings of modes, by mode and name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    policies: list[str] | None = None
    modes: list[str] | None = None
    n_max: int | None = Field(None, ge=1)
    temperature: Axis | None = None
    top_p: Axis | None = None
    top_k: Axis | None = None
    max_tokens: int | None = Field(None, ge=1)
    settings: dict[str, dict[str, Axis]] = {}


@dataclass(frozen=True, slots=True)
class Space:
    """A resolved space.

    Attributes:
        drawing: axes of what is drawn, by name: policy, temperature, top_p and top_k.
        rules: modes that are replayed, each with the values of its settings.
        live: modes that change what is drawn, with the axes of their settings.
    """

    n_max: int
    max_tokens: int
    drawing: Mapping[str, Range | Values]
    rules: Sequence[tuple[str, Mapping[str, Any]]]
    live: Mapping[str, Mapping[str, Range | Values]]

    @property
    def one_drawing(self) -> bool:
        """True if only one drawing is possible, so that nothing has to be searched."""
        return all(is_fixed(axis) for axis in self.drawing.values())

    @property
    def drawings(self) -> float:
        """The number of different drawings; infinite with a range of real numbers."""
        total = 1.0
        for axis in self.drawing.values():
            total *= count_of(axis)
        return total

    @property
    def counts(self) -> list[int]:
        """The n at which rules are replayed: all up to 8, then steps of about a quarter."""
        found, n = [], 2
        while n <= self.n_max:
            found.append(n)
            n = n + 1 if n < 8 else max(n + 1, round(n * 1.25))
        return found if not found or found[-1] == self.n_max else [*found, self.n_max]

    @property
    def replayed(self) -> int:
        """The number of settings that each drawing gives."""
        return self.n_max + len(self.rules) * len(self.counts)

    def describe(self) -> str:
        """The space in a sentence or two."""
        axes = ", ".join(f"{name} {axis}" for name, axis in self.drawing.items())
        rules = len({mode for mode, _ in self.rules})
        said = (
            f"Space: {axes}. Each drawing of {self.n_max} candidates a prompt gives {self.replayed} settings "
            f"without further engine time: every n up to {self.n_max}, and {rules} rules with "
            f"{len(self.rules)} values of their settings."
        )
        if self.live:
            said += f" Measured live, because they change the candidates: {', '.join(self.live)}."
        return said

    def rules_for(self, *, reshaped: bool, tells: str) -> list[Rule]:
        """The rules that are replayed from a drawing."""
        return [
            rule_of(mode, dict(settings), reshaped=reshaped, tells=tells)
            for mode, settings in self.rules
        ]


def read_space_file(path: Path) -> SpaceFile:
    """Read a space file.

    Raises:
        DataError: it cannot be read, is not TOML, or has a key or a value that is not allowed.
    """
    try:
        with read_errors(path):
            return SpaceFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path} is not valid TOML: {error}") from error
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(error)}") from error


def resolve_space(file: SpaceFile, served: Served, best_of: int = 1) -> Space:
    """The space with what the file leaves out taken from the server.

    Args:
        best_of: the K of the target, up to which must be drawn.

    Raises:
        InvalidInputError: the server lacks a policy, mode or setting that the file names, or a value is
            out of range.
    """
    policies = file.policies or list(served.policies)
    for name in policies:
        if name not in served.policies:
            raise InvalidInputError(
                f"the space names policy {name!r}, and the server has {', '.join(served.policies)}",
                field="policies",
            )
    n_max = file.n_max or max(16, best_of)
    if n_max > served.max_n:
        raise InvalidInputError(
            f"n_max is {n_max}, over the server's limits.max_n {served.max_n}; lower it, or raise the limit",
            field="n_max",
        )
    if n_max < best_of:
        raise InvalidInputError(
            f"n_max is {n_max}, below the K of the target, which is {best_of}; raise n_max",
            field="n_max",
        )
    known = [name for name in served.modes if name not in _OWN_CHOICES | set(served.policies)]
    modes = known if file.modes is None else file.modes
    for name in [*modes, *file.settings]:
        if name not in known:
            raise InvalidInputError(
                f"the space names mode {name!r}; modes of this server that choose among candidates are "
                f"{', '.join(known) or 'none, because it has no reward model'}",
                field="modes",
            )
    rules: list[tuple[str, Mapping[str, Any]]] = []
    live: dict[str, Mapping[str, Range | Values]] = {}
    for mode in modes:
        if mode == BON or n_max < 2:  # best-of-n of every n is replayed anyway
            continue
        given = file.settings.get(mode, {})
        axes = {**_default_axes(mode, served, given), **given}
        if can_replay(mode, embedder=served.embedder):
            rules += [(mode, values) for values in _products(mode, axes, n_max)]
        elif _can_be_asked(mode, axes, served):
            live[mode] = axes
    sampling: dict[str, Range | Values] = {
        "temperature": file.temperature or _around(served.temperature),
        "top_p": file.top_p or Range(low=0.8, high=1.0),
        "top_k": file.top_k or Values(values=(0,)),
    }
    for name, axis in sampling.items():
        _check_sampling(name, axis)
    return Space(
        n_max,
        file.max_tokens or served.max_tokens,
        {"policy": Values(values=tuple(policies)), **sampling},
        rules,
        live,
    )


def _around(temperature: float) -> Range | Values:
    """Temperatures from half of the server's to one and a half times; a greedy server's is kept."""
    if temperature <= 0:
        return Values(values=(temperature,))
    high = min(temperature * 1.5, MOST_TEMPERATURE)
    return Range(low=round(temperature / 2, 4), high=round(high, 4))


def _check_sampling(name: str, axis: Range | Values) -> None:
    """Refuse values with which no engine samples; every request with them would fail.

    Raises:
        InvalidInputError: a value, or an end of a range, is such a one.
    """
    words, is_allowed = _SAMPLING[name]
    for value in _values(axis):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not is_allowed(float(value)):
            raise InvalidInputError(f"{name} is {value!r}, and it must be {words}", field=name)


def _default_axes(mode: str, served: Served, given: Mapping[str, Any]) -> dict[str, Range | Values]:
    """The axes of a mode's settings that the file leaves out, from their defaults at the server."""
    found: dict[str, Range | Values] = {}
    for name, default in served.modes[mode].items():
        if name in given:
            continue
        if name in _STRENGTHS and isinstance(default, float) and default > 0:
            found[name] = Values(values=tuple(float(f"{default * f:.4g}") for f in (0.25, 1, 4)))
        elif name in _COUNTS:
            found[name] = Values(values=tuple(_COUNTS[name]))
        elif name == "reject_fraction":
            found[name] = Range(low=0.2, high=0.8)
        elif name == "guide":
            others = [policy for policy in served.policies if policy != served.reference]
            found[name] = Values(values=(default if default in others else next(iter(others), ""),))
    return found


def _can_be_asked(mode: str, axes: Mapping[str, Any], served: Served) -> bool:
    """True unless the mode needs a second policy, or log-probabilities, that the server does not have."""
    known = mode in STRATEGIES
    needs: frozenset[str] = (
        getattr(STRATEGIES[mode], "needs", frozenset()) if known else frozenset()
    )
    if "log_ratios" in needs and served.tells != "sampled":
        return (
            False  # the engines tell no log-probabilities of what they sample at other temperatures
        )
    guide = axes.get("guide")
    return not (isinstance(guide, Values) and guide.values == ("",))


def _products(mode: str, axes: Mapping[str, Range | Values], n_max: int) -> list[Mapping[str, Any]]:
    """All combinations of the values of a mode that is replayed, checked by the mode itself.

    Raises:
        InvalidInputError: an axis is a range, the mode does not take a value, or it draws more than n_max.
    """
    for name, axis in axes.items():
        if isinstance(axis, Range):
            raise InvalidInputError(
                f"{name} of {mode} is a range; the mode is replayed, so give a list of values, of which all "
                "are tried",
                field="settings",
            )
    lists = {name: axis.values for name, axis in axes.items() if isinstance(axis, Values)}
    found: list[Mapping[str, Any]] = []
    for chosen in itertools.product(*lists.values()):
        values = dict(zip(lists, chosen, strict=True))
        rule = rule_of(mode, values, reshaped=False, tells="policy")
        most = rule.strategy.most_candidates(n_max)
        if most > n_max:
            raise InvalidInputError(
                f"{mode} would draw up to {most} candidates, and it is replayed from n_max, which is "
                f"{n_max}; raise n_max, or lower max_n of the mode",
                field="settings",
            )
        found.append(values)
    return found


def space_text(space: Space) -> str:
    """The space as the TOML file that gives it again, to be edited."""
    lines = [
        "# The space of `vbon tune --space FILE`. A value is fixed, a list is tried value by value, and",
        "# { low = ..., high = ... } is a range. Every n up to n_max is replayed from one drawing.",
        f"policies = {toml_value(list(_values(space.drawing['policy'])))}",
        f"n_max = {space.n_max}",
        f"max_tokens = {space.max_tokens}",
        *(
            f"{name} = {_axis_text(space.drawing[name])}"
            for name in ("temperature", "top_p", "top_k")
        ),
        f"modes = {toml_value(list(dict.fromkeys([BON, *(mode for mode, _ in space.rules), *space.live])))}",
    ]
    by_mode: dict[str, dict[str, Range | Values]] = {}
    for mode, settings in space.rules:
        for name, value in settings.items():
            before = by_mode.setdefault(mode, {}).get(name)
            values = (*_values(before), value) if before is not None else (value,)
            by_mode[mode][name] = Values(values=tuple(dict.fromkeys(values)))
    by_mode |= {mode: dict(axes) for mode, axes in space.live.items()}
    for mode, axes in by_mode.items():
        if axes:
            lines += ["", f"[settings.{mode}]"]
            lines += [f"{name} = {_axis_text(axis)}" for name, axis in axes.items()]
    return "\n".join(lines) + "\n"


def _values(axis: Range | Values) -> tuple[Any, ...]:
    return axis.values if isinstance(axis, Values) else (axis.low, axis.high)


def _axis_text(axis: Range | Values) -> str:
    if isinstance(axis, Values):
        return toml_value(axis.values[0] if is_fixed(axis) else list(axis.values))
    extra = (", log = true" if axis.log else "") + (", integer = true" if axis.integer else "")
    return f"{{ low = {axis.low:g}, high = {axis.high:g}{extra} }}"


def toml_value(value: Any) -> str:
    """A value in TOML, whose scalars and lists of them are written as in JSON.

    Only the escapes of JSON for what lies beyond the first 65,536 characters are not TOML.
    """
    return json.dumps(value, ensure_ascii=False)
