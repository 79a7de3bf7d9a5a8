"""Decision on a new checkpoint: what the trainer sends to the service, with its figures and reasons."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Verdict = Literal["promote", "refuse", "undecided"]


class _Part(BaseModel):
    """Part of a decision: frozen, finite, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Estimate(_Part):
    """A mean over held-out prompts with its interval."""

    mean: float
    low: float
    high: float

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if not self.low <= self.mean <= self.high:
            raise ValueError(
                f"an interval contains its mean; got {self.mean} in [{self.low}, {self.high}]"
            )
        return self


class PolicyFigures(_Part):
    """Held-out figures of one policy.

    Attributes:
        win_rate: against one sample of the reference policy; ties count 1/2.
        gold: mean of the gold reward, where there is a gold reward model.
        kl_nats: KL to the reference policy; of best-of-N, its bound.
        length: mean number of tokens.
        truncated_share: share of the answers that were cut off at the limit of tokens.
    """

    win_rate: Estimate
    reward: Estimate
    gold: Estimate | None = None
    kl_nats: Estimate
    length: Estimate
    truncated_share: Estimate


class ComparedFigures(_Part):
    """Figures of all compared policies on the same held-out prompts.

    Attributes:
        live: of the checkpoint that is live, if there is one.
        difference: by figure, what the candidate has more than the live checkpoint, or than best-of-N if
            there is none, on the same prompts.
    """

    candidate: PolicyFigures
    live: PolicyFigures | None = None
    bon: PolicyFigures
    reference: PolicyFigures
    difference: dict[str, Estimate] = {}


class Spent(_Part):
    """Cost of a checkpoint: seconds of training, and tokens generated for it beyond those of live answers."""

    training_s: Annotated[float, Field(ge=0)] = 0.0
    tokens: Annotated[int, Field(ge=0)] = 0


class Decision(_Part):
    """Verdict on a candidate checkpoint, as ``decision.json`` has it.

    Attributes:
        verdict: ``undecided``: the held-out prompts are too few to tell; a person may promote it.
        reasons: whole sentences, for people.
    """

    verdict: Verdict
    reasons: list[str]
    figures: ComparedFigures
    spent: Spent = Spent()
