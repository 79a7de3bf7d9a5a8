"""One collected answer, and the models and settings that made it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from vbon.errors import DataError
from vbon.storage.validation import first_problem


class Identity(BaseModel):
    """Everything that all samples of one reward cache have in common.

    Training compares the revisions and settings with its own before it uses a cache.

    Attributes:
        policy: path or address of the reference policy, for people.
        reward: the reward model in the form of the setting ``reward``, for people.
        eos_token_ids: the tokens that end a response, where the revision of the policy does not cover them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: str
    policy_revision: str
    reward: str
    reward_revision: str
    max_new_tokens: int = Field(ge=1)
    temperature: float = Field(gt=0)
    eos_token_ids: tuple[int, ...] | None = None

    @cached_property
    def digest(self) -> str:
        """Eight hex digits that name this identity in file names and commands."""
        record = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(record.encode()).hexdigest()[:8]

    def describe(self) -> str:
        """One line for people."""
        return (
            f"{self.policy} ({self.policy_revision}), {self.reward} ({self.reward_revision}), at most "
            f"{self.max_new_tokens} tokens at temperature {self.temperature:g}"
        )


@dataclass(frozen=True, slots=True)
class CollectedAnswer:
    """All scored candidates of one prompt; a line of a shard, which a reader of reward caches can read too.

    Candidates are in the order of their indices. Those without a finite reward or tokens are left out.

    Attributes:
        prompt: the prompt's text, or its chat as one line per message.
        rewards: raw rewards, one per candidate.
        finish_reasons: ``stop``, ``length``, or ``rejected`` for one that was aborted on its way.
        indices: the candidates' places among all that were drawn.
        independent: candidates whose index is below are independent samples of the policy, and their number
            was fixed before any reward was known; 0 if rewards decided which samples were finished.
        request_id: the id of the request, which answers show and by which it can be deleted.
        key: a hash of the API key's name; empty without keys.
        time: Unix time in seconds.
        response_ids: the tokens as drawn; ``None`` if a redaction changed a response.
        seed: the request's seed; the same seed gives the same samples again.
        messages: the chat; ``None`` for a text.
        redacted: whether a redaction changed prompt or responses.
    """

    prompt: str
    responses: tuple[str, ...]
    rewards: tuple[float, ...]
    finish_reasons: tuple[str, ...]
    indices: tuple[int, ...]
    independent: int
    request_id: str
    key: str
    mode: str
    time: float
    response_ids: tuple[tuple[int, ...], ...] | None = None
    seed: int | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    redacted: bool = False

    @property
    def prompt_identity(self) -> str:
        """A text that is the same for equal prompts only: the text itself, or the chat as JSON."""
        if self.messages is None:
            return f"text:{self.prompt}"
        return "chat:" + json.dumps(self.messages, ensure_ascii=False, sort_keys=True)


_ADAPTER = TypeAdapter(CollectedAnswer)


def to_line(answer: CollectedAnswer) -> bytes:
    """The answer as one line of JSON; floats survive exactly.

    Raises:
        ValueError: a text cannot be written as UTF-8.
    """
    return _ADAPTER.dump_json(answer, exclude_none=True) + b"\n"


def parse_line(line: bytes, where: str) -> CollectedAnswer:
    """The answer of a line.

    Args:
        where: the line's position, for error messages.

    Raises:
        DataError: not a complete line of a shard. The message repeats nothing of it.
    """
    try:
        answer = _ADAPTER.validate_json(line)
    except ValidationError as error:
        raise DataError(f"{where} is not a collected answer: {first_problem(error)}") from None
    columns = (answer.responses, answer.finish_reasons, answer.indices)
    lengths = {len(column) for column in columns} | {len(answer.rewards)}
    if answer.response_ids is not None:
        lengths.add(len(answer.response_ids))
    if len(lengths) != 1:
        raise DataError(f"{where} is not a collected answer: its columns differ in length")
    return answer
