"""The trials of a run as Optuna studies: one for drawings, and one for each mode that is measured live.

Modes that change what is drawn have settings of their own. Studies of their own keep every study free of
conditional parameters, which the default sampler would draw at random.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.tune.drawing import Drawing
from service.tune.setting import Setting, setting_of
from service.tune.space import Space
from vbon.tuning.axes import Range, Values, is_fixed, suggest
from vbon.tuning.studies import ended_trials, opened_study, restart_interrupted, storage_url

if TYPE_CHECKING:
    import optuna

DRAWINGS = "drawings"
_RUN_ID, _PLACE = "vbon_run_id", "vbon_run_directory"


@dataclass(frozen=True, slots=True)
class Proposal:
    """One trial that was asked for: what to draw, or a live setting to measure."""

    study: optuna.Study
    trial: optuna.Trial
    drawing: Drawing | None = None
    setting: Setting | None = None

    @property
    def label(self) -> str:
        """The proposal for people."""
        if self.setting is not None:
            return self.setting.label
        assert self.drawing is not None
        return self.drawing.label


class Trials:
    """The studies of a run in one storage.

    Attributes:
        run_id: 12 hexadecimal digits that stay those of the run when it goes on. A copy of a run has others,
            so that the two do not take each other's place on the server's page.

    Args:
        asked: all that decides the figures; a storage that holds other trials is refused.
        directory: that of the results. If it holds the storage, a copy of the run is told by it; a run whose
            storage is elsewhere goes on from any directory.

    Raises:
        DataError: the storage is of another version or of another question, or cannot be opened.
        ModuleNotFoundError: Optuna or torch is not installed.
    """

    def __init__(
        self,
        space: Space,
        storage: str,
        sampler: str,
        seed: int,
        startup: int,
        asked: Mapping[str, Any],
        directory: Path | None = None,
    ) -> None:
        self.space = space
        self.studies = {
            name: opened_study(f"vbon-tune/{name}", storage, sampler, seed + place, startup, asked)
            for place, name in enumerate([DRAWINGS, *space.live])
        }
        self.interrupted = sum(restart_interrupted(study) for study in self.studies.values())
        holds_it = directory is not None and storage == storage_url(None, directory)
        self.run_id = _run_id(self.studies[DRAWINGS], directory if holds_it else None)

    @property
    def done(self) -> int:
        """The number of trials that have ended, those that failed included."""
        return sum(len(ended_trials(study)) for study in self.studies.values())

    def ended(self) -> list[optuna.trial.FrozenTrial]:
        """The trials that have ended, those that failed included, in the order in which they did."""
        found = [trial for study in self.studies.values() for trial in ended_trials(study)]
        return sorted(found, key=lambda trial: trial.datetime_complete)

    def failed(self) -> list[dict[str, Any]]:
        """The failed trials, with their parameters and reasons."""
        import optuna

        found = []
        for name, study in self.studies.items():
            for trial in study.get_trials(states=(optuna.trial.TrialState.FAIL,)):
                if trial.user_attrs.get("interrupted"):
                    continue  # it was cut, and is tried again
                error = trial.user_attrs.get("error", "unknown")
                found.append({"study": name, "parameters": trial.params, "error": error})
        return found

    def begin_with(self, drawing: Drawing) -> None:
        """Try this drawing first, unless it has been tried."""
        axes = self.space.drawing
        params = {
            name: value
            for name, value in {
                "policy": drawing.policy,
                "temperature": drawing.temperature,
                "top_p": drawing.top_p,
                "top_k": drawing.top_k,
            }.items()
            if _varies(axes[name]) and _holds(axes[name], value)
        }
        partly = len(params) < sum(map(_varies, axes.values()))
        if partly and self.space.drawings < float("inf"):
            return  # the rest would be drawn at random, and a drawing be tried twice in the place of another
        if params and not self.studies[DRAWINGS].trials:
            self.studies[DRAWINGS].enqueue_trial(params, skip_if_exists=True)

    def try_all(self) -> None:
        """Try every drawing once, where their number is finite; none is then proposed twice."""
        study = self.studies[DRAWINGS]
        axes = {name: axis for name, axis in self.space.drawing.items() if _varies(axis)}
        lists = [_all_values(axis) for axis in axes.values()]
        for chosen in itertools.product(*lists):
            study.enqueue_trial(dict(zip(axes, chosen, strict=True)), skip_if_exists=True)

    def ask(self, number: int) -> Proposal:
        """The next proposal: drawings and live modes take turns, since a drawing gives many settings."""
        live = list(self.space.live)
        turns = [DRAWINGS] if not live else [turn for mode in live for turn in (DRAWINGS, mode)]
        name = turns[number % len(turns)]
        if name == DRAWINGS and self.space.one_drawing and number and live:
            name = live[number % len(live)]
        study = self.studies[name]
        trial = study.ask()
        if name == DRAWINGS:
            return Proposal(study, trial, drawing=self._drawing(trial))
        mode = name
        drawing = self._drawing(trial, _guide(self.space.live[mode]))
        n_axis = Range(low=2, high=self.space.n_max, integer=True) if self.space.n_max > 2 else None
        n = suggest(trial, "n", n_axis) if n_axis is not None else self.space.n_max
        axes = self.space.live[mode]
        settings = {one: suggest(trial, f"{mode}.{one}", axis) for one, axis in axes.items()}
        return Proposal(
            study, trial, setting=setting_of(mode, drawing, int(n), settings, live=True)
        )

    def _drawing(self, trial: optuna.Trial, guide: str = "") -> Drawing:
        """The drawing that a trial proposes, of another policy than the guide if there is one."""
        axes = self.space.drawing
        policy = axes["policy"]
        if isinstance(policy, Values):
            others = tuple(one for one in policy.values if one != guide)
            policy = Values(values=others) if others else policy
        return Drawing(
            str(suggest(trial, "policy", policy)),
            float(suggest(trial, "temperature", axes["temperature"])),
            float(suggest(trial, "top_p", axes["top_p"])),
            self.space.max_tokens,
            int(suggest(trial, "top_k", axes["top_k"])),
        )

    def tell(
        self,
        proposal: Proposal,
        value: float,
        constraints: Mapping[str, float],
        found: Mapping[str, Any],
    ) -> None:
        """Report a trial.

        Args:
            constraints: met where at most 0.
            found: facts to keep beside it.
        """
        for name, violation in constraints.items():
            proposal.trial.set_constraint(name, violation)
        for name, fact in found.items():
            proposal.trial.set_user_attr(name, fact)
        proposal.study.tell(proposal.trial, value)

    def tell_failure(self, proposal: Proposal, reason: str) -> None:
        """Report a trial that failed; it has no value, and samplers leave it out."""
        import optuna

        proposal.trial.set_user_attr("error", reason)
        proposal.study.tell(proposal.trial, state=optuna.trial.TrialState.FAIL)


def _run_id(study: optuna.Study, directory: Path | None) -> str:
    """The id of the run in a directory; a copy has the inode of another directory, and gets an id of its own.

    A directory that was moved keeps its inode, and one of another machine has hardly ever the same.
    """
    known, place = study.user_attrs.get(_RUN_ID), study.user_attrs.get(_PLACE)
    here = None if directory is None else directory.stat().st_ino
    if known is None or (here is not None and place is not None and here != place):
        known = uuid.uuid4().hex[:12]
        study.set_user_attr(_RUN_ID, known)
    if here is not None and here != place:
        study.set_user_attr(_PLACE, here)
    return str(known)


def _guide(axes: Mapping[str, Range | Values]) -> str:
    """The policy that guides a mode's search if it is fixed: the mode cannot draw from it."""
    axis = axes.get("guide")
    return str(axis.values[0]) if isinstance(axis, Values) and is_fixed(axis) else ""


def _all_values(axis: Range | Values) -> list[Any]:
    if isinstance(axis, Values):
        return list(axis.values)
    return list(range(int(axis.low), int(axis.high) + 1))


def _varies(axis: Range | Values) -> bool:
    return not is_fixed(axis)


def _holds(axis: Range | Values, value: Any) -> bool:
    if isinstance(axis, Range):
        return bool(axis.low <= float(value) <= axis.high)
    return value in axis.values
