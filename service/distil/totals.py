"""Counts of mode ``auto`` over the whole rollout: requests, tokens, and what checkpoints have saved."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import TypeAdapter

from service.runtime.routing import Arm

ARMS: tuple[Arm, ...] = ("bon", "live", "next")


def _by_arm() -> dict[Arm, int]:
    return dict.fromkeys(ARMS, 0)


@dataclass(slots=True)
class AutoTotals:
    """Counts that survive restarts.

    Attributes:
        requests: prompts answered, by arm.
        tokens: tokens generated for them, discarded candidates included.
        shadows: comparisons of a checkpoint with best-of-N, by the arm that had answered.
        shadow_tokens: tokens of the reference policy's candidates for the answers of checkpoints.
        mirrored_tokens: tokens of a checkpoint's samples for the answers of best-of-N.
        reference_tokens, reference_samples: of the reference policy's samples, of all of these.
        saved: tokens that always answering with best-of-N would have taken beyond those of checkpoints. Their
            shadows are subtracted, training is not.
        fallbacks: prompts answered by another arm because the engine of theirs had died or failed.
        failures: answers that a checkpoint's engine failed to give, and time limits that it exceeded, by arm.
    """

    requests: dict[Arm, int] = field(default_factory=_by_arm)
    tokens: dict[Arm, int] = field(default_factory=_by_arm)
    shadows: dict[Arm, int] = field(default_factory=_by_arm)
    shadow_tokens: int = 0
    mirrored_tokens: int = 0
    reference_tokens: int = 0
    reference_samples: int = 0
    saved: float = 0.0
    fallbacks: int = 0
    failures: dict[Arm, int] = field(default_factory=_by_arm)

    def answered(self, arm: Arm, tokens: int, num_samples: int) -> None:
        """Count an answer.

        Args:
            num_samples: N of best-of-N for this request, which would have answered it otherwise. Until one of
                its candidates is known, they count as long as this answer.
        """
        self.requests[arm] += 1
        self.tokens[arm] += tokens
        if arm == "bon":
            self.reference_tokens += tokens
            self.reference_samples += num_samples
        else:
            self.saved += num_samples * self._tokens_of_a_sample(tokens) - tokens

    def shadowed(self, arm: Arm, tokens: int, num_samples: int) -> None:
        """Count a comparison, and the tokens generated for it after the answer.

        Args:
            num_samples: N of the reference policy's candidates, if they were generated for it.
        """
        self.shadows[arm] += 1
        self.saved -= tokens
        if arm == "bon":
            self.mirrored_tokens += tokens
        else:
            self.shadow_tokens += tokens
            self.reference_tokens += tokens
            self.reference_samples += num_samples

    @property
    def compared_tokens(self) -> int:
        """Tokens generated for all comparisons."""
        return self.shadow_tokens + self.mirrored_tokens

    def _tokens_of_a_sample(self, unknown: float) -> float:
        """The mean number of tokens of a sample of the reference policy."""
        drawn = self.reference_samples
        return self.reference_tokens / drawn if drawn else unknown


TOTALS = TypeAdapter(AutoTotals)
