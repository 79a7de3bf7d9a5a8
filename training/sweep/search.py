"""Chooses settings on validation prompts, with the same number of tried settings for every method.

The prompts to train on, to choose on and to report on are three sets, so that no figure of the report was
used to choose what it reports. One setting is chosen per method and target N: the highest win rate among
those that spend no more KL than the bound of best-of-N. If every setting spends more, it is the one that
spends least.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from training.configs import SweepConfig
from training.outputs.identity import read_json_record
from training.sweep.cell import CELL_RECORD
from training.sweep.choices import CHOICES, Choice, Choices, TriedSetting, read_choices
from training.sweep.grid import GridCell, grid_cells
from training.sweep.shared_inputs import SharedInputs
from vbon.errors import DataError, InvalidInputError
from vbon.maths.distribution import kl_upper_bound
from vbon.prompt_files import read_prompts
from vbon.storage.atomic import write_json
from vbon.storage.checksums import sha256_of
from vbon.storage.provenance import provenance

SEARCH_DIRECTORY = "search"


def search_config(config: SweepConfig) -> SweepConfig:
    """The sweep that searches: the same grid on the validation prompts, with one seed and without gold."""
    changes = {
        "out": config.out / SEARCH_DIRECTORY,
        "heldout": config.validation,
        "seeds": [config.search_seed],
        "gold": None,
        "keep_checkpoints": False,
        "validation": None,
    }
    given = {name: getattr(config, name) for name in config.model_fields_set}
    return SweepConfig(**(given | changes))


def check_search(config: SweepConfig, cells: Sequence[GridCell], shared: SharedInputs) -> None:
    """Check that the methods try equally many settings, and that no prompt has two roles.

    Raises:
        InvalidInputError: the methods have different numbers of settings.
        DataError: a prompt is in two of the three sets.
    """
    counts = Counter(cell.variant for cell in cells)
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InvalidInputError(
            f"the methods have different numbers of settings to try ({listed}), so a search would favour "
            "those with more; give each of them equally many values",
            field="grid",
        )
    assert config.validation is not None
    assert config.heldout is not None
    cache = shared.training.cache
    roles = {
        "train on": {cache.prompt(row).key for row in range(len(cache))},
        f"choose settings on ({config.validation})": _keys(config, config.validation),
        f"report on ({config.heldout})": _keys(config, config.heldout),
    }
    names = list(roles)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            common = sorted(roles[one] & roles[other])
            if common:
                raise DataError(
                    f"{len(common)} prompts, {common[0][:60]!r} among them, are both to {one} and to "
                    f"{other}; the three sets must have no prompt in common"
                )


def _keys(config: SweepConfig, path: Path) -> set[str]:
    prompts = read_prompts(path, column=config.prompt_column, encoding=config.encoding)
    return {prompt.key for prompt in prompts}


def choose_settings(config: SweepConfig, cells: Iterable[GridCell]) -> Choices:
    """Choose from the records of the search, and write ``choices.json``.

    Raises:
        DataError: the sweep already chose something else, so its held-out prompts have been used.
    """
    assert config.validation is not None
    tried = [_tried(cell) for cell in cells]
    methods = list(dict.fromkeys(one.method for one in tried))
    choices = Choices(
        validation={"sha256": sha256_of(config.validation), "prompts": _prompts(tried)},
        search_seed=config.search_seed,
        tried=tried,
        chosen=[_choice(tried, method, n) for method in methods for n in config.targets],
    )
    _check_first_use(config, choices)
    write_json(
        config.out / CHOICES,
        {**provenance(config.model_dump(mode="json")), **choices.model_dump(mode="json")},
    )
    return choices


def _tried(cell: GridCell) -> TriedSetting:
    record = read_json_record(cell.directory / CELL_RECORD)
    if record is None:
        raise DataError(
            f"{cell.directory / CELL_RECORD} is missing or damaged; run the sweep again"
        )
    row = record["row"] or {}
    return TriedSetting(
        method=cell.variant,
        setting=cell.setting,
        status=record["status"],
        kl_nats=row.get("kl_nats"),
        win_rate=row.get("win_rate"),
        cost=record["cost"],
    )


def _prompts(tried: Sequence[TriedSetting]) -> int:
    return max((one.win_rate.count for one in tried if one.win_rate), default=0)


def _choice(tried: Sequence[TriedSetting], method: str, target: int) -> Choice:
    budget = kl_upper_bound(target)
    places = [
        (one.kl_nats.mean, one.win_rate.mean, one.setting)
        for one in tried
        if one.method == method and one.kl_nats is not None and one.win_rate is not None
    ]
    within = [place for place in places if place[0] <= budget]
    setting = None
    if within:
        setting = max(within, key=lambda place: place[1])[2]
    elif places:
        setting = min(places)[2]
    return Choice(
        method=method,
        target=target,
        kl_budget=budget,
        setting=setting,
        within_budget=bool(within),
    )


def _check_first_use(config: SweepConfig, choices: Choices) -> None:
    """Refuse to choose a second time on the same held-out prompts.

    Raises:
        DataError: ``choices.json`` holds other choices, and ``replace`` is off.
    """
    if config.replace or not (config.out / CHOICES).exists():
        return
    if read_choices(config.out / CHOICES).chosen != choices.chosen:
        raise DataError(
            f"{config.out / CHOICES} holds choices of another search, and their figures on the held-out "
            "prompts may be known by now; choose another --out and other held-out prompts, or pass --replace"
        )


def chosen_cells(config: SweepConfig, choices: Choices) -> list[GridCell]:
    """The cells of the grid whose setting was chosen, for all seeds.

    Raises:
        DataError: a chosen setting is not in the grid.
    """
    wanted = {(c.method, c.setting) for c in choices.chosen if c.setting is not None}
    cells = [cell for cell in grid_cells(config) if (cell.variant, cell.setting) in wanted]
    missing = wanted - {(cell.variant, cell.setting) for cell in cells}
    if missing:
        method, setting = min(missing, key=str)
        raise DataError(
            f"the choices have {method} with {setting}, which is not in the grid; give the grid of the "
            "sweep that made them"
        )
    return cells
