"""The settings of ``vbon bench tune``."""

from __future__ import annotations

from pathlib import Path

from pydantic import AliasChoices, Field

from vbon.config import Settings
from vbon.tuning.registry import SAMPLERS


class TuneBenchConfig(Settings):
    """Compare samplers on the same problems at equal numbers of evaluations.

    Every study begins with the same points, and differences of regrets are paired by seed. The tables say
    where sto-bnts and hyper-bo win and lose against random draws and Optuna's Gaussian process. Needs the
    packages `optuna` (extra `tune`) and `torch`.

    Examples:
      vbon bench tune --seeds 10 --json bench.json
      vbon bench tune --samplers hp-gp-ts --samplers gp --problems branin
      vbon bench tune --tables docs/comparison/tables/sandbox-0-search.csv
    """

    samplers: list[str] = Field(
        list(SAMPLERS.built_in), min_length=1, description="samplers to compare"
    )
    problems: list[str] | None = Field(
        None, description="names of the synthetic problems, or `none`; default: all"
    )
    tables: list[Path] = Field([], description="tables search.csv of `vbon report`, a problem each")
    limit_n: int = Field(
        16, ge=2, description="the KL limit of a table is the bound of best-of-this"
    )
    seeds: int = Field(10, ge=2, description="studies of each sampler on each problem")
    first_seed: int = Field(0, ge=0, description="the first seed; others follow it")
    trials: int = Field(30, ge=2, description="evaluations of a study")
    start: int = Field(10, ge=1, description="evaluations that all samplers have in common")
    json_file: Path | None = Field(
        None,
        validation_alias=AliasChoices("json", "json_file"),
        description="file for all regrets and figures, with provenance",
    )
    markdown_file: Path | None = Field(
        None,
        validation_alias=AliasChoices("markdown", "markdown_file"),
        description="file for the tables",
    )
