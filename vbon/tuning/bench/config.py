"""The settings of ``vbon bench tune``."""

from __future__ import annotations

from pathlib import Path

from pydantic import AliasChoices, Field

from vbon.config import Settings


class TuneBenchConfig(Settings):
    """Compare samplers on the same problems at equal numbers of evaluations.

    Every study begins with the same points, and differences of regrets are paired by seed. The report says
    where sto-bnts and hyper-bo win and lose against random draws and Optuna's Gaussian process, and which
    sampler should be the default. Ctrl-C reports the seeds that are complete, and the same command goes on.
    Needs the packages `optuna` (extra `tune`) and `torch`.

    Examples:
      vbon bench tune --seeds 10 --json bench.json
      vbon bench tune --samplers hp-gp-ts --samplers gp --problems branin
      vbon bench tune --problems none --tables docs/comparison/tables/sandbox-0-search.csv
    """

    samplers: list[str] | None = Field(
        None,
        min_length=1,
        description="samplers to compare; default: all built-in ones whose packages are installed",
    )
    problems: list[str] | None = Field(
        None,
        description="names of the problems that come with the package, or `none`; default: all",
    )
    tables: list[Path] = Field(
        [],
        description="tables to make problems of: search.csv of `vbon report`, settings.csv of `vbon tune`",
    )
    limit_n: int = Field(
        16, ge=2, description="the KL limit of a search.csv is the bound of best-of-this"
    )
    seeds: int = Field(10, ge=1, description="studies of each sampler on each problem")
    first_seed: int = Field(0, ge=0, description="the first seed; others follow it")
    trials: int = Field(30, ge=2, description="evaluations of a study")
    start: int = Field(
        10,
        ge=1,
        description="evaluations that all samplers have in common; models are used from the next one on",
    )
    journal: Path | None = Field(
        None,
        description="file of finished studies, with which a run goes on; default: beside the JSON file",
    )
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

    @property
    def journal_file(self) -> Path | None:
        """The file of finished studies; None if they are kept in memory only."""
        if self.journal is not None or self.json_file is None:
            return self.journal
        return self.json_file.with_suffix(".studies.jsonl")
