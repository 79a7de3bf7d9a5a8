"""The interface of a scorer in operation: a reward model here, or one that runs elsewhere."""

from __future__ import annotations

from typing import Protocol

from vbon.prompts import Prompt


class ServedScorer(Protocol):
    """Scores single completions of all requests; concurrent calls are batched.

    Attributes:
        name: the reward model's name, as users see it.
    """

    name: str

    @property
    def revision(self) -> str:
        """The model's revision, which a restart may change."""

    @property
    def alive(self) -> bool:
        """True while the scorer can take requests."""

    @property
    def waiting(self) -> int:
        """The number of completions that wait for their scores."""

    async def start(self) -> None:
        """Load the model and start serving; also restarts a model that has died.

        Raises:
            CheckpointError: the model cannot be used.
            RewardDeadError: the model ended while loading.
        """

    async def check(self) -> None:
        """End the model if it hangs."""

    async def stop(self) -> None:
        """Fail the waiting completions and close the model."""

    async def warm_up(self) -> None:
        """Score one text, so that the first request waits for nothing but its own score."""

    async def score(self, prompt: Prompt, completion: str) -> float | None:
        """The raw reward, or ``None`` if the model cannot score this text.

        Raises:
            RewardError: scoring failed.
        """
