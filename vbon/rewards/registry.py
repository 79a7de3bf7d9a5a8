"""Opens a reward model from the string a user configures."""

from __future__ import annotations

from vbon.rewards.protocol import RewardModel

CALLABLE_PREFIX = "python:"


def open_reward_model(
    spec: str,
    *,
    trust_remote_code: bool = False,
    batch_size: int = 64,
    timeout_s: float = 30.0,
    threads: int | None = None,
) -> RewardModel:
    """A reward model, not yet loaded.

    Args:
        spec: a Hugging Face sequence-classifier directory (or hub id) with one logit; or
            ``python:package.module:function``; or ``http(s)://host/path`` of a remote scorer.
        trust_remote_code: let the checkpoint bring its own code (ArmoRM needs it). Off unless asked.
        batch_size: items per forward pass or remote call.
        timeout_s: limit of one remote call.
        threads: of a classifier on a CPU; ``None`` leaves torch's own number. Sets it for the process.
    """
    if spec.startswith(CALLABLE_PREFIX):
        from vbon.rewards.python_callable import CallableReward

        return CallableReward(spec.removeprefix(CALLABLE_PREFIX))
    if spec.startswith(("http://", "https://")):
        from vbon.rewards.remote import RemoteReward

        return RemoteReward(spec, batch_size=batch_size, timeout_s=timeout_s)
    from vbon.rewards.classifier import ClassifierReward

    return ClassifierReward(
        spec, trust_remote_code=trust_remote_code, batch_size=batch_size, threads=threads
    )
