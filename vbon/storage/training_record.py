"""Reads ``training.json``, the record beside a checkpoint's weights of how it was trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    computed_field,
)

from vbon.maths.intervals import MeanInterval
from vbon.storage.json_files import read_json_file

TRAINING_RECORD = "training.json"
# A LoRA is exported merged, and also as an adapter in this subdirectory, for serving on the reference
# engine.
ADAPTER_DIRECTORY = "adapter"
# The objective that imitates cached bests of N; the warm start of the others does the same.
IMITATION = "bon-sft"


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class HeldoutFigures(_Read):
    """The held-out figures of a checkpoint, measured at the end of its training."""

    reward: MeanInterval
    win_rate: MeanInterval = Field(description="against one sample of the reference, ties 1/2")
    kl_nats: MeanInterval = Field(description="from the reference policy")
    kl_kind: str | None = Field(None, description="the estimator, such as Rao-Blackwellised")
    truncated_share: float | None = Field(
        None, description="share of its samples that the token limit cut off; null: not recorded"
    )
    gold: MeanInterval | None = None
    gold_win_rate: MeanInterval | None = None


class TrainingCost(_Read):
    """The time and samples that the training took, without the cached samples of the reference."""

    training_seconds: float
    processes: int = Field(1, description="each with a device of its own")
    steps: int | None = None
    samples_drawn: int | None = None
    tokens_drawn: int | None = None

    @property
    def device_hours(self) -> float:
        """Training time multiplied by the number of processes, in hours."""
        return self.training_seconds * self.processes / 3600


class CachedSamples(_Read):
    """The reference samples that a training used; several trainings may share them."""

    prompts: int
    samples_per_prompt: int = Field(
        validation_alias=AliasChoices("smallest_M", "samples_per_prompt"),
        description="of the prompt with the fewest",
    )
    sampling_seconds: float | None = Field(
        None, description="time to sample and score them, on one device; null: not recorded"
    )
    truncated_share: float | None = Field(
        None, description="share of them that the token limit cut off; null: not recorded"
    )

    @property
    def total(self) -> int:
        """The number of samples, if every prompt has as many as the one with the fewest."""
        return self.prompts * self.samples_per_prompt


class OnPolicyChange(_Read):
    """The change of held-out figures over the on-policy steps, paired by prompt, with 95% intervals."""

    win_rate: MeanInterval
    kl_nats: MeanInterval

    @property
    def is_seen(self) -> bool:
        """True if the interval of either change leaves out 0."""
        return any(one.low > 0 or one.high < 0 for one in (self.win_rate, self.kl_nats))


class TrainingRecord(_Read):
    """The parts of a training record that the service shows."""

    objective: str = "vbon"
    title: str | None = Field(None, description="the objective's name for people")
    on_policy: bool | None = Field(
        None, description="whether the main steps train on samples of the policy itself"
    )
    learning_rate: float | None = Field(
        None, description="highest learning rate of the main steps; null: not recorded"
    )
    created: str | None = None
    git_revision: str | None = None
    settings: dict[str, Any] = Field(
        default={},
        validation_alias=AliasChoices("identity", "settings"),
        description="what makes the run this run",
    )
    cost: TrainingCost | None = None
    cache: CachedSamples | None = None
    heldout: HeldoutFigures | None = None
    after_warm_start: HeldoutFigures | None = Field(
        None,
        description="held-out figures before the on-policy steps, on the same prompts and seeds",
    )
    on_policy_change: OnPolicyChange | None = Field(
        None, description="what the on-policy steps changed; null: not measured, or there were none"
    )

    @property
    def is_imitation(self) -> bool:
        """True if the checkpoint is best-of-N imitation, whatever its objective is called.

        Either no main step was taken on samples of the policy, or such steps changed neither win rate nor
        KL beyond the intervals.
        """
        warm, main = self._steps
        if self.objective == IMITATION or (warm and not main):
            return True
        return bool(warm and self.on_policy_change and not self.on_policy_change.is_seen)

    @computed_field(description="what the checkpoint is, in words, from this record")  # type: ignore[prop-decorator]
    @property
    def description(self) -> str:
        """Plain words for how the checkpoint was made: its steps, and what the on-policy ones changed."""
        warm, main = self._steps
        title = self.title or self.objective
        name = f"best-of-N imitation, trained as {title}" if self.is_imitation else title
        if self.objective == IMITATION:
            name, warm, main = "best-of-N imitation", 0, warm + main
        parts = []
        if warm:
            rate = self.settings.get("warm_start_learning_rate")
            parts.append(f"{_counted(warm, 'imitation')}{_at(rate)}")
        if main:
            kinds = {True: "on-policy", False: "offline", None: ""}
            kind = "imitation" if self.objective == IMITATION else kinds[self._is_on_policy]
            rate = self.learning_rate or self.settings.get("learning_rate")
            parts.append(f"{_counted(main, kind)}{_at(rate)}")
        steps = ", then ".join(parts)
        return f"{name}{self._parameter}" + (
            f": {steps}{self._change(warm, main)}" if steps else ""
        )

    @property
    def _steps(self) -> tuple[int, int]:
        """The steps taken: of the warm start, and after it."""
        planned = [self.settings.get(name) for name in ("warm_start_steps", "steps")]
        warm, main = (one if isinstance(one, int) else 0 for one in planned)
        if self.cost is not None and self.cost.steps is not None:
            warm = min(warm, self.cost.steps)
            main = min(main, self.cost.steps - warm)
        return warm, main

    @property
    def _is_on_policy(self) -> bool | None:
        if self.on_policy is None and self.cost is not None and self.cost.samples_drawn is not None:
            return self.cost.samples_drawn > 0  # offline objectives draw nothing
        return self.on_policy

    @property
    def _parameter(self) -> str:
        for name, symbol in (("num_samples", "N"), ("beta", "beta")):
            value = self.settings.get(name)
            if _is_number(value):
                return f" ({symbol} = {value:g})"
        return ""

    def _change(self, warm: int, main: int) -> str:
        """The change over the on-policy steps, in words; empty if they did not follow an imitation."""
        if not (warm and main and self._is_on_policy):
            return ""
        change = self.on_policy_change
        if change is None:
            return "; whether the on-policy steps changed anything was not measured"
        win_rate, kl = (_signed(one) for one in (change.win_rate, change.kl_nats))
        if change.is_seen:
            return f", which changed the win rate by {win_rate} and the KL by {kl} nats"
        return (
            f", which changed neither the win rate ({win_rate}) nor the KL ({kl} nats) measurably"
        )

    @property
    def sampled_with(self) -> dict[str, float]:
        """The ``max_tokens`` and ``temperature`` of the training, as far as the record has them."""
        names = {"max_tokens": "max_new_tokens", "temperature": "temperature"}
        found = {name: self.settings.get(recorded) for name, recorded in names.items()}
        return {name: value for name, value in found.items() if _is_number(value)}

    def sampling_differences(
        self,
        max_tokens: int,
        temperature: float,
        *,
        top_p: float = 1.0,
        top_k: int = 0,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        others: Sequence[str] = (),
    ) -> list[str]:
        """The differences between this sampling and the one that the checkpoint was trained with, in words.

        Its KL and rewards are those of its own sampling. Training samples the policy itself, without top_p,
        top_k and stop strings. A field that the record lacks is not compared.

        Args:
            others: names of further parameters that change the distribution of answers.
        """
        served = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
        }
        trained = {**self.sampled_with, "top_p": 1.0, "top_k": 0}
        found = [
            f"{name} is {value:g}, but the checkpoint was trained and measured with {own:g}"
            for name, value in served.items()
            if (own := trained.get(name)) is not None and own != value
        ]
        if stop:
            found.append("stop strings end answers, but the checkpoint was trained without them")
        found += [
            f"{name} is set, but the checkpoint was trained and measured without" for name in others
        ]
        if ignore_eos:
            found.append("ignore_eos is on, but the checkpoint was trained to end at EOS")
        return found

    def reward_differences(self) -> list[str]:
        """The differences between the rewards of its own figures and the reward model's, in words."""
        own = self.settings.get("missing_eos_reward")
        if own is None:
            return []
        return [
            "the checkpoint's own figures give an answer that max_tokens cuts off a reward of "
            f"{own:g}; the service scores it like the others"
        ]


def _counted(steps: int, kind: str) -> str:
    words = f"{kind} step" if kind else "step"
    return f"{steps} {words}{'' if steps == 1 else 's'}"


def _at(learning_rate: object) -> str:
    return f" at {learning_rate:.2g}" if _is_number(learning_rate) else ""


def _signed(change: MeanInterval) -> str:
    return f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_training_record(directory: str) -> TrainingRecord | None:
    """The training record of a model directory; an adapter's is in its parent directory.

    ``None`` if the record is missing or unreadable: a policy may come from elsewhere.
    """
    path = Path(directory).expanduser()
    file = (path.parent if path.name == ADAPTER_DIRECTORY else path) / TRAINING_RECORD
    try:
        return TrainingRecord.model_validate(read_json_file(file))
    except (OSError, ValueError, ValidationError):
        return None
