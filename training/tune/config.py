"""The settings of ``vbon tune training``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from training.configs import CellWorkers, TrainConfig
from vbon.config import NoneWord, OptionGroups
from vbon.maths.distribution import kl_upper_bound
from vbon.tuning.durations import Duration
from vbon.tuning.registry import SAMPLERS
from vbon.tuning.search_fields import SamplerName, Searching, TargetText

Price = Literal["kl", "seconds", "samples"]


class TuneTrainingConfig(Searching, CellWorkers, TrainConfig):
    """Find the objective and the settings of training that reach the most, or a target at the lowest price.

    Every trial trains one cell, as `vbon sweep` does, and measures it on the validation prompts. The best are
    trained again with other seeds, and the one that holds is measured once on the held-out prompts. The same
    --out continues a search that was interrupted. With --backend ray, the workers of a Ray cluster train the
    cells, one trial after the other and the finalists side by side, with the same results.

    Examples:
      vbon tune training --validation sandbox/prompts/validation.jsonl --kl-of-best-of 16 --trials 20
      vbon tune training --target "win-rate >= 0.8" --minimise kl --budget 1h --out runs/tune-training
    """

    option_groups: ClassVar[OptionGroups] = {
        "Question": ("target", "maximise", "minimise", "kl_nats", "kl_of_best_of"),
        "Search": (
            "space",
            "validation",
            "trials",
            "budget",
            "sampler",
            "storage",
            "finalists",
            "repeats",
            "heldout_prompts",
            "reference_samples",
            "policy_samples",
        ),
        "Ray": tuple(CellWorkers.model_fields),
        **TrainConfig.option_groups,
    }

    out: Path = Field(Path("runs/tune-training"), description="directory of the search")
    target: TargetText = Field(
        None,
        description="gain to reach: 'win-rate >= 0.8', or reward or gold >= a number or best-of-K",
    )
    maximise: Literal["reward", "gold", "win-rate"] = Field(
        "win-rate", description="gain to maximise within the KL limit, without a target"
    )
    minimise: Price = Field(
        "kl",
        description="price, with a target: KL from the reference policy, seconds of training, or scored "
        "samples",
    )
    kl_nats: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="KL from the reference policy, nats, at most"
    )
    kl_of_best_of: int | None = Field(
        None,
        ge=2,
        description="the KL limit is the bound of best-of-this, log n - (n - 1) / n; default: 16 without a "
        "target",
    )
    space: Path | None = Field(
        None,
        description="TOML file of the search space; default: that of space.toml in the results",
    )
    validation: Path = Field(
        Path("sandbox/prompts/validation.jsonl"),
        description="prompts to choose on, apart from those to train on and the held-out ones",
    )
    trials: int = Field(20, ge=1, description="cells to train in the search")
    budget: Duration | None = Field(
        None, description="time of the search, such as 1h; trials end in time for the final checks"
    )
    sampler: SamplerName = Field(
        "gp-ts",
        description="optimiser of the trials; the default models conditional settings, which differ between "
        f"objectives: {', '.join(SAMPLERS.built_in)}",
    )
    storage: Annotated[str | None, NoneWord] = Field(
        None, description="Optuna storage of the trials; default: study.db in the results"
    )
    finalists: int = Field(3, ge=1, le=10, description="settings that are trained again")
    repeats: int = Field(
        2, ge=1, le=10, description="fresh seeds with which each of them is trained"
    )
    heldout_prompts: int = Field(64, ge=2, description="validation or held-out prompts, at most")
    reference_samples: int = Field(128, ge=8, description="reference samples per prompt")
    policy_samples: int = Field(32, ge=4, description="samples of each cell per prompt")

    @model_validator(mode="after")
    def _one_question(self) -> TuneTrainingConfig:
        if self.kl_nats is not None and self.kl_of_best_of is not None:
            raise ValueError("give kl_nats or kl_of_best_of, not both")
        metric = self.goal.metric if self.goal is not None else self.maximise
        if metric == "gold" and self.gold is None:
            raise ValueError("the question is about gold rewards; give --gold")
        if self.heldout is None:
            raise ValueError("the choice is tested on held-out prompts; give --heldout")
        return self

    @property
    def kl_limit(self) -> float | None:
        """The KL limit in nats; ``None`` with a target and no limit."""
        if self.kl_nats is not None:
            return self.kl_nats
        if self.kl_of_best_of is not None:
            return kl_upper_bound(self.kl_of_best_of)
        return None if self.target is not None else kl_upper_bound(16)

    @property
    def asked(self) -> dict[str, Any]:
        """The settings that decide the figures; a search with others is another search."""
        left_out = {
            "out", "trials", "budget", "storage", "finalists", "repeats", "space", "replace",
            "checkpoint_every", *CellWorkers.model_fields,
        }  # fmt: skip
        return self.model_dump(mode="json", exclude=left_out)
