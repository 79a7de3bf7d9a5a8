"""Answers on their way to the shards: which of them are kept, and in which form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service.runtime.prompt import PromptRequest, PromptResult
from vbon.distil.answer import CollectedAnswer, Identity
from vbon.distil.directory import Refusal
from vbon.engine import Sampling
from vbon.prompts import Prompt
from vbon.storage.stop_tokens import stop_identity

# Why an answer was not kept, with the words of docs/distil.md.
DropReason = (
    Refusal
    | Literal[
        "key_excluded",
        "not_sampled",
        "queue_full",
        "sampling",
        "prompt_form",
        "token_ids",
        "no_rewards",
        "reloaded",
        "redacted",
        "redaction_failed",
        "disk",
        "failed",
    ]
)
# The revision of a model of the hub, whose files are not in a directory.
_HUB = "hub"


@dataclass(frozen=True, slots=True)
class OfferedAnswer:
    """One answer that waits to be written.

    Attributes:
        key: name of the API key; empty without keys.
        independent: as :meth:`service.strategies.Strategy.independent`.
        time_s: Unix time of the answer.
    """

    request: PromptRequest
    result: PromptResult
    key: str
    independent: int
    time_s: float


def collected_answer(offered: OfferedAnswer, key_hash: str) -> CollectedAnswer | DropReason:
    """The answer as a shard has it, or the reason why a reward cache could not use it."""
    request, sampling = offered.request, offered.result.sampling
    if not samples_the_policy(sampling):
        return "sampling"
    if not _is_plain(request.prompt):
        return "prompt_form"
    scored = [
        (one.candidate, one.reward)
        for one in offered.result.outcome.candidates
        if one.reward is not None and math.isfinite(one.reward) and one.candidate.token_ids
    ]
    if not scored:
        return "no_rewards"
    if any(min(candidate.token_ids) < 0 for candidate, _ in scored):
        return "token_ids"  # a server told only how many there are
    assert request.collected_as is not None
    return CollectedAnswer(
        prompt=request.prompt.key,
        messages=request.prompt.messages or None,
        responses=tuple(candidate.text for candidate, _ in scored),
        response_ids=tuple(candidate.token_ids for candidate, _ in scored),
        rewards=tuple(reward for _, reward in scored),
        finish_reasons=tuple(candidate.finish_reason for candidate, _ in scored),
        indices=tuple(candidate.index for candidate, _ in scored),
        independent=offered.independent,
        request_id=request.collected_as,
        key=key_hash,
        mode=request.mode.name,
        time=round(offered.time_s, 3),
        seed=sampling.seed,
    )


def samples_the_policy(sampling: Sampling) -> bool:
    """True if candidates are samples of the policy at some temperature, as training draws them."""
    others = set(sampling.steering) - {"temperature"}
    ends = sampling.stop or sampling.stop_token_ids or sampling.ignore_eos
    return not others and not ends and sampling.temperature > 0


def _is_plain(prompt: Prompt) -> bool:
    """True if a reward cache can express the prompt: it has no tools and no variables of the template."""
    special = prompt.special_tokens
    plain = special is None or special == (prompt.text is not None)
    return plain and not prompt.tools and not prompt.template_kwargs


class Identities:
    """The identities of answers; what the files of a policy say is read once for each revision."""

    def __init__(self) -> None:
        self._stops: dict[tuple[str, str], tuple[int, ...] | None] = {}
        self._last: Identity | None = None

    def of(self, result: PromptResult) -> Identity:
        """The identity of an answer's samples.

        Raises:
            CheckpointError: a file of the policy does not name its stop tokens as ids.
        """
        assert result.scorer is not None
        assert result.reward_revision is not None
        policy = result.policy
        found = Identity(
            policy=policy.path,
            policy_revision=policy.revision,
            reward=result.scorer.name,
            reward_revision=result.reward_revision,
            max_new_tokens=result.sampling.max_tokens,
            temperature=result.sampling.temperature,
            eos_token_ids=self._stop_ids(policy.path, policy.revision),
        )
        if found != self._last:  # the same object again has its digest already
            self._last = found
        return self._last

    def _stop_ids(self, path: str, revision: str) -> tuple[int, ...] | None:
        place = path, revision
        if place not in self._stops:
            ids = None
            if revision == _HUB or Path(path).is_dir():  # not a policy on a server
                ids = stop_identity(path).get("eos_token_ids")
            self._stops[place] = None if ids is None else tuple(ids)
        return self._stops[place]
