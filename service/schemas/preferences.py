"""``/preferences``: blind verdicts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from service.schemas.wire import Text, Wire
from vbon.maths.intervals import MeanInterval


class PairSide(Wire):
    """One of the two ways to answer."""

    mode: Annotated[str, Field(min_length=1, max_length=128)]
    n: int | None = Field(None, ge=1, description="candidates, for modes that draw several")


class PairRequest(Wire):
    """One prompt, two ways to answer it."""

    prompt: Text
    sides: Annotated[list[PairSide], Field(fail_fast=True, min_length=2, max_length=2)]
    chat: bool = Field(False, description="send the prompt as a chat's first message")
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=10, allow_inf_nan=False)
    seed: int | None = Field(None, ge=0, lt=2**63)


class PairShown(BaseModel):
    """Both answers, shuffled and without their modes."""

    pair: str = Field(description="id for the verdict")
    prompt: str
    left: str
    right: str


class Verdict(Wire):
    """Which answer of a pair is better."""

    pair: Annotated[str, Field(min_length=1, max_length=64)]
    winner: Literal["left", "right", "tie"]


class Revealed(BaseModel):
    """Whose an answer was."""

    mode: str
    n: int
    reward: float | None


class VerdictKept(BaseModel):
    """A verdict that is in the store, and what it was about."""

    id: int
    winner: Literal["left", "right", "tie"]
    left: Revealed
    right: Revealed


class Standing(BaseModel):
    """One mode and N against another, over all verdicts."""

    mode: str
    n: int
    against: str
    against_n: int
    wins: int
    losses: int
    ties: int
    human_win_rate: MeanInterval = Field(
        description="share of verdicts won, ties 1/2, with its Wilson interval over verdicts"
    )
    reward_win_rate: MeanInterval | None = Field(
        description="of the same pairs by the reward model; null where it scored none of them"
    )


class Standings(BaseModel):
    """People's verdicts beside the reward model's, the most judged pair of modes first."""

    standings: list[Standing]
