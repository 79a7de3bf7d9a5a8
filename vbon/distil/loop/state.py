"""Rounds so far and the step that each is at, in ``rounds/state.json``, which is written whole."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vbon.distil.decision import Verdict
from vbon.errors import DataError
from vbon.storage.atomic import read_errors, write_text
from vbon.storage.validation import first_problem

ROUNDS, STATE = "rounds", "state.json"
VERSION = 1

# Steps of a round in their order; "done" follows the last one.
Step = Literal["collect", "seal", "cache", "train", "compare", "decide", "submit", "done"]
STEPS: tuple[Step, ...] = ("collect", "seal", "cache", "train", "compare", "decide", "submit")
TITLES: dict[Step, str] = {
    "collect": "wait for prompts",
    "seal": "seal the answers",
    "cache": "make the reward cache",
    "train": "train",
    "compare": "compare on held-out prompts",
    "decide": "decide",
    "submit": "submit to the service",
    "done": "done",
}


class Round(BaseModel):
    """One round.

    Attributes:
        step: the one to do next.
        why: why it did not wait longer, such as a drift of the prompts.
        identity: digest of the answers that it uses.
        n: N of best-of-N.
        newest_s: Unix time of the newest answer in its cache; prompts that are first seen later are new.
        prompts, heldout: prompts in its cache, and held-out ones.
        initial: id of the checkpoint that training began with; ``None``: the reference policy.
        compared_with: id of the live checkpoint that it was compared with.
        refused: reasons for which its answers were not trained on.
        status: of its checkpoint in the service, ``None`` before it is submitted.
        seconds: duration of each step, over all starts that worked on it.
        looked: how often the new prompts were tested for a drift.
    """

    model_config = ConfigDict(extra="forbid")

    number: int = Field(ge=1)
    step: Step = "collect"
    why: str | None = None
    identity: str | None = None
    n: int | None = None
    newest_s: float | None = None
    prompts: int = 0
    heldout: int = 0
    initial: str | None = None
    compared_with: str | None = None
    refused: list[str] = []
    verdict: Verdict | None = None
    status: str | None = None
    seconds: dict[str, float] = {}
    looked: int = 0

    @property
    def id(self) -> str:
        """The round's name, which is also that of its checkpoint in the service."""
        return f"{self.number:04d}"

    @property
    def following(self) -> Step:
        """The step after the present one."""
        place = STEPS.index(self.step) + 1
        return STEPS[place] if place < len(STEPS) else "done"


class LoopState(BaseModel):
    """All rounds of a directory, oldest first; all but the last are done."""

    model_config = ConfigDict(extra="forbid")

    version: int = VERSION
    rounds: list[Round] = []

    @classmethod
    def read(cls, directory: Path) -> LoopState:
        """The state in a directory of rounds; empty if there is none.

        Raises:
            DataError: it is damaged, or of another version of this program.
        """
        file = directory / STATE
        if not file.exists():
            return cls()
        with read_errors(file):
            text = file.read_bytes()
        try:
            found = cls.model_validate_json(text)
        except ValidationError as error:
            raise DataError(
                f"{file} cannot be read ({first_problem(error)}); restore it, or move the directory away to "
                "begin with the first round"
            ) from None
        if found.version != VERSION:
            raise DataError(
                f"{file} has version {found.version} of another release, and this one reads {VERSION}; use "
                "that release"
            )
        return found

    def write(self, directory: Path) -> None:
        """Replace the file in one step."""
        write_text(directory / STATE, self.model_dump_json(indent=2) + "\n")

    @property
    def current(self) -> Round | None:
        """The round that is not done."""
        return self.rounds[-1] if self.rounds and self.rounds[-1].step != "done" else None

    @property
    def trained(self) -> list[Round]:
        """Rounds that have trained a checkpoint and decided on it, oldest first."""
        return [one for one in self.rounds if one.verdict is not None]

    @property
    def seen_s(self) -> float | None:
        """Unix time of the newest answer that a round has looked at; ``None`` before the first one."""
        times = [
            one.newest_s
            for one in self.rounds
            if one.newest_s is not None and one.step != "collect"
        ]
        return max(times, default=None)

    def expected_s(self, step: Step) -> float | None:
        """The duration of a step in the last round that had it; ``None`` if there was none."""
        found = [
            one.seconds[step]
            for one in self.rounds
            if step in one.seconds and one is not self.current
        ]
        return found[-1] if found else None
