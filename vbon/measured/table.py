"""The table of measured settings: what an answer gains and costs with each mode, policy, N and sampling.

``vbon tune`` and ``vbon loadtest table`` write it, and mode ``auto`` of the service chooses by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from vbon.errors import DataError
from vbon.maths.intervals import MeanInterval
from vbon.measured.part import Part, no_boolean
from vbon.storage.atomic import read_errors, write_json
from vbon.storage.json_files import read_json_file
from vbon.storage.validation import first_problem

VERSION = 1
MOST_ROWS = 1_000
_ROUNDING = 1e-9  # relative: the mean of resampled means may miss that of equal values by so much

Gain = Literal["reward", "gold", "win_rate"]
Maker = Literal["vbon tune", "vbon loadtest", "reward curve"]
SettingValue = bool | int | float | str | None


def _encloses(found: MeanInterval) -> MeanInterval:
    room = _ROUNDING * max(1.0, abs(found.low), abs(found.high))
    if not found.low - room <= found.mean <= found.high + room:
        raise ValueError(f"the interval [{found.low}, {found.high}] excludes its mean {found.mean}")
    if found.count < 0:
        raise ValueError(f"the count is {found.count}, and it must be 0 or more")
    return found


def _not_negative(found: MeanInterval) -> MeanInterval:
    if found.low < 0:
        raise ValueError(f"the interval begins at {found.low}, and it must begin at 0 or above")
    return found


def _no_number(found: Any) -> Any:
    if not isinstance(found, str | datetime):
        raise ValueError("a time must be a text such as 2026-01-31T12:00:00Z")
    return found


def _in_utc(found: datetime) -> datetime:
    try:
        return found.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("in UTC, the time lies outside the years 1 to 9999") from error


def _of_numbers(found: Any) -> Any:
    if not isinstance(found, Mapping):
        return found
    return {name: no_boolean(value) for name, value in found.items()}


Time = Annotated[AwareDatetime, BeforeValidator(_no_number), AfterValidator(_in_utc)]
Estimate = Annotated[MeanInterval, BeforeValidator(_of_numbers), AfterValidator(_encloses)]
Amount = Annotated[Estimate, AfterValidator(_not_negative)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Revision = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class MeasuredSetting(Part):
    """One way to answer, with what an answer gains and costs.

    Attributes:
        mode: as requests name it: a strategy such as ``bon``, or a policy for one sample of it.
        policy: the policy that candidates are drawn from.
        n: candidates per answer; 1 for one sample.
        settings: the strategy settings that requests sent; absent ones had their defaults.
        reward: mean reward of an answer by the serving reward model.
        gold: mean reward of an answer by a reward model that chose nothing.
        win_rate: against one sample of the reference policy, ties counted 1/2.
        generated_tokens: tokens decoded for an answer, those of all candidates together.
        latency_mean_s: mean time of an answer, at the table's concurrency.
        latency_p95_s: its 95th percentile, in the field ``mean``, with its interval.
        failed: requests that failed; all figures leave them out.
        unscored: answers without a reward; the rewards leave them out.
    """

    mode: Name
    policy: Name
    n: int = Field(ge=1, le=2**31 - 1)
    settings: dict[Name, SettingValue] = Field(default={})
    temperature: float = Field(ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, le=2**31 - 1)
    max_tokens: int = Field(ge=1, le=2**31 - 1)
    reward: Estimate | None = None
    gold: Estimate | None = None
    win_rate: Estimate | None = None
    generated_tokens: Amount
    latency_mean_s: Amount | None = None
    latency_p95_s: Amount | None = None
    failed: int = Field(0, ge=0)
    unscored: int = Field(0, ge=0)

    @property
    def label(self) -> str:
        """The setting in a few words, such as ``bon@vbon n=4 temperature=0.7``."""
        parts = [self.mode if self.policy in (self.mode, "ref") else f"{self.mode}@{self.policy}"]
        parts += [f"n={self.n}"] if self.n > 1 else []
        parts += [f"{name}={value}" for name, value in sorted(self.settings.items())]
        parts += [f"temperature={self.temperature:g}"] if self.temperature != 1 else []
        parts += [f"top_p={self.top_p:g}"] if self.top_p != 1 else []
        parts += [f"top_k={self.top_k}"] if self.top_k > 0 else []
        return " ".join(parts)

    @property
    def key(self) -> str:
        """All that tells this setting from others, as text."""
        return f"{self.label} max_tokens={self.max_tokens} policy={self.policy}"

    def gain(self, by: Gain = "reward") -> MeanInterval | None:
        """The mean reward, gold reward or win rate; ``None`` if it was not measured."""
        if by == "gold":
            return self.gold
        return self.reward if by == "reward" else self.win_rate


class MeasuredPrompts(Part):
    """The prompts that were asked: how many, and a hash of their texts."""

    count: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{8,64}$")


class MeasuredTable(Part):
    """Measured settings with all that they depend on.

    Attributes:
        version: the version of this form; tables of other versions are refused.
        hardware: the machine that the service ran on, as its ``/modes`` says it.
        policies: the revision of each policy that any row uses.
        reward_revision: revision of the serving reward model; ``None`` if there was none.
        gold_revision: revision of the gold reward model; ``None`` if there was none.
        concurrency: requests in flight while latency was measured; ``None`` if none was.
    """

    version: int = VERSION
    made_at: Time = Field(default_factory=lambda: datetime.now(UTC))
    made_by: Maker
    prompts: MeasuredPrompts
    hardware: str = Field(min_length=1, max_length=512)
    policies: dict[Name, Revision] = Field(min_length=1)
    reward_revision: Revision | None
    gold_revision: Revision | None = None
    concurrency: int | None = Field(None, ge=1)
    rows: list[MeasuredSetting] = Field(min_length=1, max_length=MOST_ROWS)

    @model_validator(mode="before")
    @classmethod
    def _is_of_this_version(cls, data: Any) -> Any:
        found = data.get("version", VERSION) if isinstance(data, Mapping) else VERSION
        if found != VERSION:
            raise ValueError(
                f"the table has version {str(found)[:20]}, and this program reads version {VERSION}; measure "
                "it again with this program"
            )
        return data

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        seen: set[str] = set()
        for number, row in enumerate(self.rows):
            if row.policy not in self.policies:
                raise ValueError(
                    f"row {number} uses policy {row.policy!r}, whose revision is missing in policies"
                )
            if row.key in seen:
                raise ValueError(
                    f"row {number} repeats the setting {row.label!r}; keep one of the two"
                )
            seen.add(row.key)
            if self.concurrency is None and (row.latency_mean_s or row.latency_p95_s):
                raise ValueError(
                    f"row {number} has a latency, so the table must say at which concurrency it was measured"
                )
        return self

    def stale_reasons(
        self, policies: Mapping[str, str], reward: str | None, hardware: str
    ) -> list[str]:
        """Sentences that say why the table does not describe a service; empty if it does.

        A changed policy only concerns the rows that use it, anything else concerns all rows.

        Args:
            policies: the revision of each policy that the service has now.
            reward: the revision of its reward model; ``None`` if it has none.
            hardware: its machine, as its ``/modes`` says it.
        """
        found = self.stale_everywhere(reward, hardware)
        return [*found, *self.stale_policies(policies).values()]

    def stale_everywhere(self, reward: str | None, hardware: str) -> list[str]:
        """Sentences that concern all rows; see :meth:`stale_reasons`."""
        found = []
        if self.reward_revision != reward:
            found.append(
                f"The table was measured with {_reward_text(self.reward_revision)}, and this service has "
                f"{_reward_text(reward)}."
            )
        if self.hardware != hardware:
            found.append(
                f"The table was measured on {self.hardware!r}, and this service runs on {hardware!r}."
            )
        return found

    def stale_policies(self, policies: Mapping[str, str]) -> dict[str, str]:
        """A sentence for each policy whose rows are stale, by policy name."""
        found = {}
        for name, revision in self.policies.items():
            served = policies.get(name)
            if served is None:
                found[name] = f"Policy {name!r} of the table is not served."
            elif served != revision:
                found[name] = (
                    f"Policy {name!r} was measured at revision {revision}, and revision {served} is served."
                )
        return found


def _reward_text(revision: str | None) -> str:
    return "no reward model" if revision is None else f"revision {revision} of the reward model"


def write_table(path: Path, table: MeasuredTable) -> None:
    """Replace a file by a table.

    Raises:
        ExportError: the file cannot be written.
    """
    write_json(path, table.model_dump(mode="json"))


def read_table(path: Path) -> MeasuredTable:
    """Read the table in a file.

    Raises:
        DataError: the file cannot be read, or is not a table of this version.
    """
    with read_errors(path):
        try:
            return MeasuredTable.model_validate(read_json_file(path))
        except ValidationError as error:
            problem = first_problem(error).removeprefix("Value error, ")
        except ValueError as error:
            problem = str(error)
    raise DataError(f"{path} is not a table of measured settings: {problem}")
