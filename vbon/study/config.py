"""Settings of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vbon.config import NoneWord, OptionGroups, PromptColumn, Settings


class StudyConfig(Settings):
    """Answer for your own models: pay N times at inference, or fine-tune once?

    A study splits the prompts into train, validation and test, samples and scores the reward cache,
    fine-tunes, evaluates on the test prompts, serves the policies, compares and load-tests them, and writes
    one report with the verdict and the command that serves the result. A study that was stopped goes on
    when the same command is given again.

    Without models of your own, --corpus makes a policy, a reward model and a gold reward model from
    labelled text.

    Examples:
      vbon study --policy DIR --reward DIR --gold DIR --prompts prompts.jsonl --out runs/study
      vbon study --corpus liked.txt=1 --corpus disliked.txt=0 --n 8 --objectives vbon --objectives kl-rl
      vbon study --policy DIR --reward DIR --prompts p.jsonl --training '{"lora_rank": 16, "steps": 100}'
    """

    option_groups: ClassVar[OptionGroups] = {
        "Models and prompts": (
            "policy",
            "reward",
            "gold",
            "prompts",
            "prompt_column",
            "corpus",
            "encoding",
            "trust_remote_code",
        ),
        "Question": (
            "n",
            "objectives",
            "max_new_tokens",
            "temperature",
            "price_per_hour",
            "currency",
        ),
        "Split": ("validation_share", "test_share"),
        "Steps": (
            "num_samples",
            "backend",
            "sampling",
            "training",
            "evaluation",
            "service",
            "loadtest",
        ),
        "Run": ("out", "seed", "replace", "full"),
    }

    policy: str | None = Field(
        None, description="reference policy: a directory, or hf://org/name; needed without --corpus"
    )
    reward: str | None = Field(
        None,
        description="reward model: the directory of a one-logit classifier, python:module:function "
        "or python:./file.py:function, or a "
        "URL; needed without --corpus",
    )
    gold: Annotated[str | None, NoneWord] = Field(
        None, description="held-out gold reward model; it never selects or trains, only reports"
    )
    prompts: list[Path] = Field(
        default=[],
        description="files of prompts, in the forms of `vbon sample`; needed without --corpus",
    )
    prompt_column: PromptColumn = None
    corpus: list[str] = Field(
        default=[],
        description="labelled text to make models and prompts from, in the forms of `vbon sandbox`",
    )
    encoding: Annotated[
        str | None,
        NoneWord,
        Field(
            exclude_if=lambda encoding: encoding is None,
            description="encoding of --prompts or --corpus; default: that of the byte order mark, or UTF-8",
        ),
    ] = None
    trust_remote_code: bool = Field(False, description="let checkpoints run their own code")

    n: int = Field(16, ge=2, le=128, description="N of best-of-N")
    objectives: list[str] = Field(
        ["vbon"], min_length=1, description="objectives to train, one checkpoint each"
    )
    max_new_tokens: int = Field(
        40, ge=1, description="new tokens of an answer, at most; the same in every step"
    )
    temperature: float = Field(
        1.0, gt=0, le=2, description="sampling temperature, the same in every step"
    )
    price_per_hour: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="price of the machine that serves, per hour"
    )
    currency: str = Field("USD", max_length=8, description="currency of the price")

    validation_share: float = Field(
        0.2, gt=0, lt=1, description="share of the prompts for the metrics of training runs"
    )
    test_share: float = Field(
        0.2, gt=0, lt=1, description="share of the prompts for the report, which nothing else sees"
    )

    num_samples: int = Field(256, ge=4, description="M, reference samples per training prompt")
    backend: Literal["vllm", "transformers"] = Field(
        "vllm", description="engine that samples the reward cache"
    )
    sampling: dict[str, Any] = Field(
        default={},
        # Left out of records where it is not given, so that studies begun before it existed go on.
        exclude_if=lambda settings: not settings,
        description="further settings of `vbon sample`",
    )
    training: dict[str, Any] = Field(
        default={},
        description="further settings of `vbon train`, for every objective; a table with the name of an "
        "objective holds settings of this one alone",
    )
    evaluation: dict[str, Any] = Field(
        default={}, description="further settings of `vbon evaluate`"
    )
    service: dict[str, Any] = Field(default={}, description="further settings of `vbon serve`")
    loadtest: dict[str, Any] = Field(default={}, description="further settings of `vbon loadtest`")

    out: Path = Field(Path("runs/study"), description="directory of the study")
    seed: int = Field(0, ge=0, description="seed of the split and of every step")
    replace: bool = Field(
        False,
        description="start again if the directory holds a study with other settings, instead of refusing",
    )
    full: bool = Field(
        False, description="print every sentence of the verdict and both tables at the end"
    )

    @model_validator(mode="after")
    def _models_or_corpus(self) -> StudyConfig:
        given = {"policy": self.policy, "reward": self.reward, "prompts": self.prompts}
        missing = [f"--{name}" for name, value in given.items() if not value]
        if self.corpus and len(missing) < len(given):
            raise ValueError("give --corpus, or --policy, --reward and --prompts, not both")
        if not self.corpus and missing:
            raise ValueError(
                f"{' and '.join(missing)} missing: a study needs --policy, --reward and --prompts, or "
                "--corpus, which makes all three from labelled text"
            )
        return self

    @model_validator(mode="after")
    def _prompts_stay(self) -> StudyConfig:
        if Path("-") in self.prompts:
            raise ValueError(
                "a study that goes on needs its prompts again, so they cannot come from standard input; save "
                "them to a file"
            )
        return self

    @model_validator(mode="after")
    def _shares_leave_some_to_train(self) -> StudyConfig:
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                f"validation_share {self.validation_share:g} and test_share {self.test_share:g} leave no "
                "prompts to train on; their sum must be below 1"
            )
        return self

    @model_validator(mode="after")
    def _tables_of_objectives_that_are_trained(self) -> StudyConfig:
        # `vbon train` has one shared setting that is a table; one of a plug-in's own belongs in its table.
        others = [
            name
            for name, value in self.training.items()
            if isinstance(value, dict) and name not in (*self.objectives, "engine_args")
        ]
        if others:
            raise ValueError(
                f"training has settings of {', '.join(others)}, which is not trained; add it to objectives "
                f"({', '.join(self.objectives)}) or leave the table out"
            )
        return self

    @model_validator(mode="after")
    def _one_checkpoint_an_objective(self) -> StudyConfig:
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError("an objective is named twice; each is trained once")
        return self
