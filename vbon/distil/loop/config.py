"""Settings of ``vbon distil run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, Field, model_validator

from vbon.config import NoneWord, OptionGroups, Settings
from vbon.distil.cache import Suspicion

# Parts of the settings that the loop gives to the commands itself.
_OWN_TRAINING = {"policy", "reward", "gold", "cache", "heldout", "out", "replace", "initial"}
_OWN_EVALUATION = {"policy", "reward", "gold", "prompts", "out", "checkpoints", "per_prompt"}


class DistilRunConfig(Settings):
    """Train on what a service collects, round after round, and promote what is good enough.

    DIR is the directory of `vbon serve --distil.dir`. A round waits until there are enough new prompts, makes
    a reward cache of them, trains a checkpoint beside the service, compares it on held-out prompts with the
    live checkpoint, best-of-N and the reference policy, decides, and submits it to the service, which moves
    traffic to it step by step. A loop that was stopped or killed goes on when the same command is given
    again.

    Examples:
      vbon distil run collected --url http://localhost:8000
      vbon distil run collected --url https://host --key-file admin.key --every 500 --gold DIR
      vbon distil run collected --once
    """

    positional: ClassVar[str | None] = "dir"
    option_groups: ClassVar[OptionGroups] = {
        "Models": ("policy", "reward", "gold", "trust_remote_code"),
        "Service": ("url", "key", "key_file", "poll_s"),
        "Rounds": (
            "once",
            "min_prompts",
            "every",
            "drift_alpha",
            "accept",
            "keep_caches",
            "keep_rounds",
        ),
        "Training": ("objective", "n", "start", "training", "nice", "seed"),
        "Comparison": (
            "heldout_share",
            "heldout_prompts",
            "reference_samples",
            "policy_samples",
            "evaluation",
        ),
        "Decision": (
            "margin",
            "bon_margin",
            "max_kl",
            "max_length_ratio",
            "max_truncated",
            "least_prompts",
        ),
    }

    dir: Path = Field(description="directory of collected answers (vbon serve --distil.dir)")

    policy: Annotated[str | None, NoneWord] = Field(
        None, description="reference policy; default: the path that the service has collected with"
    )
    reward: Annotated[str | None, NoneWord] = Field(
        None, description="reward model; default: that of the service"
    )
    gold: Annotated[str | None, NoneWord] = Field(
        None, description="held-out gold reward model; it is reported, and decides nothing"
    )
    trust_remote_code: bool = Field(False, description="let checkpoints run their own code")

    url: Annotated[str | None, NoneWord] = Field(
        None,
        pattern=r"^https?://\S+$",
        description="the service; default: none, so answers must be sealed by it, and a person submits",
    )
    key: str | None = Field(
        None, repr=False, description="key of an admin; default: VBON_REMOTE_API_KEY"
    )
    key_file: Path | None = Field(
        None, description="file with that key, which other users of the machine cannot see then"
    )
    poll_s: float = Field(10.0, gt=0, description="seconds between two looks at what has come in")

    once: bool = Field(False, description="stop after one round")
    min_prompts: int = Field(
        200, ge=4, description="distinct prompts to train on that the first round waits for"
    )
    every: int | None = Field(
        None, ge=4, description="new prompts that each later round waits for; default: min_prompts"
    )
    drift_alpha: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="probability of starting a round early although the prompts have not changed",
    )
    accept: list[Suspicion] = Field(
        default=[],
        description="signs of poisoned traffic for which a round is trained all the same",
    )
    keep_caches: bool = Field(
        False, description="keep the reward caches of finished rounds, which contain prompts"
    )

    keep_rounds: Annotated[int | None, NoneWord] = Field(
        3,
        ge=1,
        description="newest rounds whose checkpoints are kept, beside those that answer, wait or are gone "
        "back to; `none` keeps all",
    )

    objective: str = Field("vbon", description="objective of `vbon train`")
    n: int | None = Field(
        None, ge=2, le=128, description="N of best-of-N; default: candidates of most answers"
    )
    start: Literal["reference", "last"] = Field(
        "reference",
        validation_alias=AliasChoices("from", "start"),
        description="weights that training begins with; the KL is to the reference policy always",
    )
    training: dict[str, Any] = Field(default={}, description="further settings of `vbon train`")
    nice: int = Field(10, ge=0, le=19, description="niceness of training and comparison")
    seed: int = Field(0, ge=0, description="seed of the first round; each later one takes the next")

    heldout_share: float = Field(
        0.2, gt=0, le=0.9, description="share of the prompts that never train, chosen by a hash"
    )
    heldout_prompts: int = Field(
        128, ge=2, description="held-out prompts to compare on, at most; the newest are taken"
    )
    reference_samples: int | None = Field(
        None, ge=4, description="reference samples of each of them; default: 4 N"
    )
    policy_samples: int = Field(16, ge=1, description="samples of each checkpoint for each of them")
    evaluation: dict[str, Any] = Field(
        default={}, description="further settings of `vbon evaluate`"
    )

    margin: float = Field(
        0.02, ge=0, lt=1, description="win rate that may be lost against the live checkpoint"
    )
    bon_margin: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="win rate that may be lost against best-of-N; default: --distil.margin of the "
        "service, or 0.05 without one",
    )
    max_kl: float | None = Field(
        None, gt=0, description="KL from the reference, nats; default: twice the bound of best-of-N"
    )
    max_length_ratio: float = Field(
        1.5, gt=0, description="mean length of answers, relative to the reference policy's"
    )
    max_truncated: float = Field(
        0.1, ge=0, le=1, description="share of answers cut off beyond the reference policy's"
    )
    least_prompts: int = Field(
        20, ge=2, description="held-out prompts below which nothing is decided"
    )

    @property
    def later(self) -> int:
        """New prompts that a later round waits for."""
        return self.every or self.min_prompts

    @model_validator(mode="after")
    def _one_key(self) -> DistilRunConfig:
        if self.key is not None and self.key_file is not None:
            raise ValueError("key and key_file are both given; give one of them")
        if (self.key or self.key_file) and self.url is None:
            raise ValueError("a key is for a service; add --url")
        return self

    @model_validator(mode="after")
    def _settings_of_the_loop(self) -> DistilRunConfig:
        for name, given, own in (
            ("training", self.training, _OWN_TRAINING),
            ("evaluation", self.evaluation, _OWN_EVALUATION),
        ):
            if taken := sorted(own & given.keys()):
                raise ValueError(
                    f"{name} has {', '.join(taken)}, which the loop sets itself; leave it out"
                )
        return self
