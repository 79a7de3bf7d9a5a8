"""``/preferences``: pairs of unlabelled answers, and people's verdicts on them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from service.schemas.sampling import Seed, Temperature
from service.schemas.wire import Text, Wire
from vbon.maths.intervals import MeanInterval

Winner = Annotated[
    Literal["left", "right", "tie", "bad"],
    Field(description="the better answer; tie: both are as good; bad: neither is any good"),
]


class PairSide(Wire):
    """One of the two modes to compare, and its N."""

    mode: Annotated[str, Field(min_length=1, max_length=128)]
    n: int | None = Field(None, ge=1, description="N, for modes that draw several candidates")


class PairRequest(Wire):
    """One prompt, and the two modes that answer it."""

    prompt: Text
    sides: Annotated[list[PairSide], Field(fail_fast=True, min_length=2, max_length=2)]
    chat: bool = Field(False, description="send the prompt as the first message of a chat")
    max_tokens: int | None = Field(None, ge=1)
    temperature: Temperature | None = None
    seed: Seed | None = None


class PairShown(BaseModel):
    """Both answers, in random order and without their modes."""

    pair: str = Field(description="id of the pair, to send with the verdict")
    prompt: str
    left: str
    right: str


class Verdict(Wire):
    """The choice between a pair's answers."""

    pair: Annotated[str, Field(min_length=1, max_length=64)]
    winner: Winner


class Revealed(BaseModel):
    """The mode, N and reward behind an answer."""

    mode: str
    n: int
    reward: float | None


class VerdictKept(BaseModel):
    """A stored verdict, with the modes behind both answers."""

    id: int
    winner: Winner
    left: Revealed
    right: Revealed


class Standing(BaseModel):
    """One mode and N against another, over all verdicts on them with the same models."""

    mode: str
    n: int
    against: str
    against_n: int
    wins: int
    losses: int
    ties: int
    both_bad: int = Field(description="verdicts that neither is any good")
    current: bool = Field(
        description="true if the models that gave the answers are those served now; false also for verdicts "
        "of which they are not known"
    )
    human_win_rate: MeanInterval = Field(
        description="share of verdicts won, a tie or both bad counting 1/2, with its Wilson interval"
    )
    reward_win_rate: MeanInterval | None = Field(
        description="the same by the reward model on the same pairs; null if it scored none of them"
    )


class Standings(BaseModel):
    """Win rates by people and by the reward model: those of the models served now first, by verdicts."""

    standings: list[Standing]
