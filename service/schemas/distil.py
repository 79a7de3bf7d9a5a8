"""``/distil``: what a server has collected for training."""

from __future__ import annotations

from pydantic import BaseModel, Field

from vbon.distil.progress import LoopProgress


class CollectedIdentity(BaseModel):
    """Answers of one reference policy, reward model and sampling, of which one reward cache can be made."""

    identity: str = Field(description="its name, for `vbon distil cache --identity`")
    policy: str
    policy_revision: str
    reward: str
    reward_revision: str
    max_tokens: int
    temperature: float
    lines: int = Field(description="answers")
    sealed_lines: int = Field(description="answers that `vbon distil cache` can use now")
    candidates: int
    oldest: float = Field(description="Unix time of the oldest answer, seconds")
    newest: float


class DistilStatus(BaseModel):
    """Answers that are kept, and those that were not kept since the server started."""

    directory: str
    lines: int = Field(description="answers that are kept")
    bytes: int
    max_bytes: int
    open_shards: int
    sealed_shards: int
    waiting: int = Field(description="answers that wait to be written")
    collected: int = Field(description="answers collected since the start")
    dropped: dict[str, int] = Field(
        description="answers not kept since the start, by reason (docs/distil.md)"
    )
    removed: dict[str, int] = Field(
        description="answers removed since the start: for room (bytes), age, number of shards (count), or by "
        "their request id (deleted)"
    )
    keys: int = Field(description="API keys with kept answers")
    largest_key_share: float | None = Field(
        None, description="share of the kept answers that belong to one API key; null without keys"
    )
    identities: list[CollectedIdentity] = Field(description="the one with the newest answer first")


class ProgressOut(BaseModel):
    """The phase that the loop of `vbon distil run` is in, as it reported last."""

    progress: LoopProgress | None = Field(
        description="null if no loop has reported since the server started"
    )
    age_s: float | None = Field(description="seconds since that report")
    stale: bool = Field(
        description="true if the loop has been silent for longer than it said, so it may have died"
    )


class DeletionAnswer(BaseModel):
    """The outcome of a deletion."""

    request_id: str
    lines: int = Field(description="answers removed, one for each prompt of the request")
