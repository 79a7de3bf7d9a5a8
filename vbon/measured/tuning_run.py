"""The report of a ``vbon tune`` run, as it sends it again and again to the service that it measures."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, StrictBool, StringConstraints, model_validator

from vbon.measured.part import Part, no_boolean
from vbon.measured.table import Amount, Estimate, MeasuredSetting, Name, Revision, Time
from vbon.measured.target import Metric

MOST_TRIALS = 500  # of a report; of more, the newest
MOST_SHOWN = 200  # settings of the front, and measurements on other prompts
MOST_LABEL, MOST_TEXT, MOST_FILE = 300, 600, 20_000  # characters

Label = Annotated[str, StringConstraints(min_length=1, max_length=MOST_LABEL)]
Text = Annotated[str, StringConstraints(max_length=MOST_TEXT)]
File = Annotated[str, StringConstraints(max_length=MOST_FILE)]
Positive = Annotated[float, Field(gt=0)]

Status = Literal["running", "recommended", "unmet", "interrupted", "failed"]
Phase = Literal["latency", "trials", "validation", "test", "load", "ended"]


class TunedSetting(Part):
    """A measured setting as its question looks at it.

    Attributes:
        margin: by how much its gain exceeds the target; null without a target.
        price: of an answer, in the unit of the question: tokens, seconds or money; null if it is not known.
            A price of which no interval is known has the same ends as its mean.
        reaches: whether the lower end of the margin meets the target.
        over_limits: the limits that it breaks, a phrase each.
    """

    label: Label
    mode: Name
    policy: Name
    n: int = Field(ge=1, le=2**31 - 1)
    gains: dict[Metric, Estimate] = Field(min_length=1)
    margin: Estimate | None = None
    price: Amount | None = None
    reaches: StrictBool
    over_limits: list[Text] = Field(default=[], max_length=4)


class TuningTrial(Part):
    """A trial that has ended: what was tried, and the best setting that it gave, or why it failed.

    Attributes:
        number: its place among the trials that have ended, from 1.
        settings: how many settings were measured by it.
    """

    number: int = Field(ge=1)
    tried: Label
    settings: int = Field(0, ge=0)
    best: TunedSetting | None = None
    error: Text | None = None

    @model_validator(mode="after")
    def _has_one_outcome(self) -> Self:
        if (self.best is None) == (self.error is None):
            raise ValueError("a trial has either its best setting or the reason why it failed")
        return self


class TuningCheck(Part):
    """A setting measured again with fresh seeds, on prompts that chose nothing before.

    Attributes:
        trial: number of the trial that it came from; null if it is not known.
    """

    stage: Literal["validation", "test"]
    trial: int | None = Field(None, ge=1)
    setting: TunedSetting


class TuningStress(Part):
    """A setting under the stated load."""

    label: Label
    failure: Text | None = Field(None, description="why it did not bear the load; null if it did")
    p95_ms: float | None = Field(None, ge=0)
    answers_per_s: float | None = Field(None, ge=0)
    requests: int = Field(0, ge=0, description="answered")
    failed: int = Field(0, ge=0)


class TuningQuestion(Part):
    """The question of a run, in a sentence and in parts."""

    text: Text
    metric: Metric
    target: Text | None = Field(description="null if the highest gain within the limits is sought")
    level: float | None = Field(
        None, description="the target on the tuning prompts, once it is known"
    )
    price: Literal["tokens", "cost", "latency"]
    price_per_hour: Positive | None = None
    currency: Annotated[str, StringConstraints(max_length=8)] = "USD"
    p95_ms: Positive | None = None
    max_tokens_per_answer: Positive | None = None
    load: Text = Field("", description="the stated load")


class TuningSearch(Part):
    """The optimiser's settings."""

    sampler: Name
    seed: int = Field(ge=0)
    workers: int = Field(ge=1)
    finalists: int = Field(ge=1)
    trials: int | None = Field(None, ge=1, description="planned; null if only the budget ends them")
    budget_s: Positive | None = None
    prompts: dict[Name, Annotated[int, BeforeValidator(no_boolean), Field(ge=0)]] = Field(
        default={}, max_length=8, description="number of prompts by their use"
    )
    space: File = Field("", description="the search space, as TOML")


class TuningReport(Part):
    """Everything that a run shows of itself; the next report of a run takes its place.

    Attributes:
        trials: those that have ended, oldest first; of more than 500, the newest.
        front: measured settings that no other beats in gain and price, on the tuning prompts.
        best: the best setting so far, on the tuning prompts, or the one that comes closest.
        recommended: on the test prompts.
        recommended_setting: the same for a table of measured settings.
        serve: the configuration of ``vbon serve`` that gives requests the recommended setting.
        out: the directory of the results, as the command has it.
    """

    version: Literal[1] = 1
    status: Status
    phase: Phase
    started: Time
    next_within_s: float = Field(
        120.0,
        gt=0,
        le=86_400,
        description="seconds within which the run reports again; after that, this report is stale",
    )
    question: TuningQuestion
    search: TuningSearch
    policies: dict[Name, Revision] = Field(min_length=1, max_length=64)
    reward_revision: Revision | None = None
    gold_revision: Revision | None = None
    hardware: Text = ""
    trials_done: int = Field(0, ge=0, le=2**31 - 1, description="failed ones included")
    trials: list[TuningTrial] = Field(default=[], max_length=MOST_TRIALS)
    settings_measured: int = Field(0, ge=0)
    front: list[TunedSetting] = Field(default=[], max_length=MOST_SHOWN)
    best: TunedSetting | None = None
    checks: list[TuningCheck] = Field(default=[], max_length=MOST_SHOWN)
    stress: list[TuningStress] = Field(default=[], max_length=20)
    recommended: TunedSetting | None = None
    recommended_setting: MeasuredSetting | None = None
    serve: File | None = None
    out: Text = ""
    notes: list[Text] = Field(default=[], max_length=40)
    error: Text | None = Field(None, description="why it failed")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        both = self.recommended is not None and self.recommended_setting is not None
        if self.status == "recommended" and not both:
            raise ValueError(
                "a run of status recommended needs recommended and recommended_setting"
            )
        if self.trials_done < len(self.trials):
            raise ValueError(
                f"trials_done is {self.trials_done}, and {len(self.trials)} trials are listed"
            )
        row = self.recommended_setting
        if row is not None and row.policy not in self.policies:
            raise ValueError(
                f"recommended_setting uses policy {row.policy!r}, whose revision is missing in policies"
            )
        return self
