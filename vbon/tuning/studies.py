"""Studies that can be interrupted: opened again only for the same question, by the same version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbon.errors import DataError
from vbon.storage.database_urls import without_password
from vbon.tuning.registry import make_sampler, startup_options

if TYPE_CHECKING:
    import optuna

VERSION = 1
_MARK = "vbon_tune"
_OTHER_QUESTION = "use another --out or --storage, or repeat the command of that run"


def opened_study(
    name: str, storage: str, sampler: str, seed: int, startup: int, asked: Mapping[str, Any]
) -> optuna.Study:
    """A new study, or the one of that name in the storage if it asks the same.

    Raises:
        DataError: the storage is of another version or question, or cannot be opened.
        InvalidInputError: the sampler is unknown.
        ModuleNotFoundError: Optuna or a package that the sampler needs is not installed.
    """
    shown = without_password(storage)
    made = make_sampler(sampler, seed=seed, **startup_options(sampler, startup))
    study = opened_storage(name, storage, made)
    mark = study.user_attrs.get(_MARK)
    wanted = {"version": VERSION, "asked": dict(asked)}
    if mark is None and not study.trials:
        study.set_user_attr(_MARK, wanted)
        return study
    if mark is None:
        raise DataError(
            f"the study {name!r} in {shown} was not made by this command; {_OTHER_QUESTION}"
        )
    if mark.get("version") != VERSION:
        raise DataError(
            f"the trials in {shown} are of version {mark.get('version')}, and this program goes on with "
            f"version {VERSION}; use another --out or --storage"
        )
    differing = differences(mark["asked"], wanted["asked"])  # type: ignore[arg-type]
    if differing:
        raise DataError(
            f"the trials in {shown} answer another question: {'; '.join(differing[:3])}; {_OTHER_QUESTION}"
        )
    return study


def opened_storage(
    name: str, storage: str, sampler: optuna.samplers.BaseSampler | None
) -> optuna.Study:
    """The study of a name in a storage, made if there is none.

    Raises:
        DataError: the storage cannot be opened.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(
            storage=storage, study_name=name, sampler=sampler, load_if_exists=True
        )
        _ = study.user_attrs
    except Exception as error:
        shown = without_password(storage)
        reason = _first_line(error).replace(storage, shown)
        raise DataError(
            f"the storage {shown} cannot be used: {reason}; if another version of Optuna made it, use "
            "another --storage"
        ) from error
    return study


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One phrase for each entry that differs."""
    found = []
    for name in sorted(set(before) | set(now)):
        was, is_now = before.get(name), now.get(name)
        if was == is_now:
            continue
        long = max(len(str(was)), len(str(is_now))) > 80
        found.append(f"another {name}" if long else f"{name} was {was} and is {is_now} now")
    return found


def ended_trials(study: optuna.Study) -> list[Any]:
    """The trials that have a value or have failed for another reason than the end of their process."""
    return [trial for trial in study.get_trials(deepcopy=False) if _counts(trial)]


def _counts(trial: Any) -> bool:
    return trial.state.is_finished() and not trial.user_attrs.get("interrupted")


def restart_interrupted(study: optuna.Study) -> int:
    """Fail the trials of a process that was killed, and have their parameters tried again."""
    import optuna

    running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    for trial in running:
        storage = study._storage
        storage.set_trial_user_attr(trial._trial_id, "interrupted", True)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)
    return len(running)


def storage_url(given: str | None, directory: Path) -> str:
    """The storage of a run: the one given, or a file in its directory."""
    return given or f"sqlite:///{directory / 'study.db'}"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
