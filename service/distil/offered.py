"""Answers on their way to the shards: which of them are kept, and in which form."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from operator import attrgetter
from pathlib import Path
from typing import Literal

from service.runtime.prompt import PromptRequest, PromptResult
from vbon.distil.answer import CollectedAnswer, Identity
from vbon.distil.directory import Refusal
from vbon.engine import UNKNOWN_TOKEN, Sampling
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
_PARTS = attrgetter("candidate", "reward")
_MOST_IDENTITIES = 256  # that are remembered; clients choose max_tokens and temperature


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
        (one.text, one.token_ids, reward, one.finish_reason, one.index)
        for one, reward in map(_PARTS, offered.result.outcome.candidates)
        if reward is not None and isfinite(reward) and one.token_ids
    ]
    if not scored:
        return "no_rewards"
    # Columns at once: this runs for every candidate of every answer, beside the event loop.
    responses, response_ids, rewards, finish_reasons, indices = zip(*scored, strict=True)
    if any(UNKNOWN_TOKEN in ids for ids in response_ids):
        return "token_ids"  # a server told only how many there are
    assert request.collected_as is not None
    return CollectedAnswer(
        prompt=request.prompt.key,
        messages=request.prompt.messages or None,
        responses=responses,
        response_ids=response_ids,
        rewards=rewards,
        finish_reasons=finish_reasons,
        indices=indices,
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
        self._known: dict[tuple[object, ...], Identity] = {}

    def of(self, result: PromptResult) -> Identity:
        """The identity of an answer's samples; the same object for equal ones, as it has its digest already.

        Raises:
            CheckpointError: a file of the policy does not name its stop tokens as ids.
        """
        scorer, policy, sampling = result.scorer, result.policy, result.sampling
        assert scorer is not None
        assert result.reward_revision is not None
        parts = (
            policy.path,
            policy.revision,
            scorer.name,
            result.reward_revision,
            sampling.max_tokens,
            sampling.temperature,
        )
        found = self._known.get(parts)
        if found is None:
            found = Identity(
                policy=policy.path,
                policy_revision=policy.revision,
                reward=scorer.name,
                reward_revision=result.reward_revision,
                max_new_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                eos_token_ids=self._stop_ids(policy.path, policy.revision),
            )
            if len(self._known) >= _MOST_IDENTITIES:
                self._known.clear()
            self._known[parts] = found
        return found

    def _stop_ids(self, path: str, revision: str) -> tuple[int, ...] | None:
        place = path, revision
        if place not in self._stops:
            ids = None
            if revision == _HUB or Path(path).is_dir():  # not a policy on a server
                ids = stop_identity(path).get("eos_token_ids")
            self._stops[place] = None if ids is None else tuple(ids)
        return self._stops[place]
