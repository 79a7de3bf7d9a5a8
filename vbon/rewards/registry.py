"""Opens a reward model from the string a user configures.

The string is a classifier's directory or ``SCHEME:ARGUMENT``. :data:`REWARDS` is the registry of the
schemes; installed packages add some by the entry-point group ``vbon.rewards`` (docs/plugins.md).
"""

from __future__ import annotations

import re
from pathlib import Path

from vbon.errors import CheckpointError
from vbon.registry import Registry, built_in_entries
from vbon.rewards.protocol import RewardModel, RewardOpener, RewardOptions

_SCHEME = re.compile(r"([a-z][a-z0-9-]*):")
_HUB = "hf"  # hf://org/name is a classifier, as a directory is
_METHODS = ("load", "score", "close")


def _checked(found: object) -> RewardOpener:
    """The same, if it can be called.

    Raises:
        TypeError: it cannot; the text completes "cannot be used:".
    """
    if not callable(found):
        raise TypeError("it is not a function or class that opens a reward model")
    return found


REWARDS: Registry[RewardOpener] = Registry(
    "vbon.rewards",
    "reward model scheme",
    built_in_entries(
        "vbon.rewards",
        {
            "python": "python_callable:open_callable",
            "http": "remote:open_http",
            "https": "remote:open_https",
        },
    ),
    _checked,
    field="reward",
    reserved=(_HUB,),
)


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
        spec: a Hugging Face sequence-classifier directory with one logit (or ``hf://org/name``);
            ``python:package.module:function``; ``http(s)://host/path`` of a remote scorer; or
            ``SCHEME:ARGUMENT`` of a plug-in.
        trust_remote_code: let the checkpoint bring its own code (ArmoRM needs it).
        batch_size: items per forward pass or remote call.
        timeout_s: limit of one remote call.
        threads: of a classifier on a CPU; ``None`` leaves torch's own number. Sets it for the process.

    Raises:
        CheckpointError: no reward model can be opened from the string.
        InvalidInputError: the plug-in of its scheme cannot be used.
    """
    options = RewardOptions(trust_remote_code, batch_size, timeout_s, threads)
    if is_classifier(spec):
        return _open_classifier(spec, options)
    scheme, _, argument = spec.partition(":")
    if scheme not in REWARDS:
        raise CheckpointError(
            f"reward model {spec!r}: there is no directory of that name, and no scheme {scheme!r}; "
            f"choose one of {', '.join(REWARDS)}"
        )
    model = REWARDS[scheme](argument, options)
    return model if scheme in REWARDS.built_in else _checked_model(model, scheme)


def is_classifier(spec: str) -> bool:
    """Whether the string names a classifier's directory or hub repository, not ``SCHEME:ARGUMENT``."""
    match = _SCHEME.match(spec)
    if match is None or match[1] == _HUB:
        return True
    return match[1] not in REWARDS and Path(spec).exists()


def _open_classifier(path: str, options: RewardOptions) -> RewardModel:
    from vbon.rewards.classifier import ClassifierReward

    return ClassifierReward(
        path,
        trust_remote_code=options.trust_remote_code,
        batch_size=options.batch_size,
        threads=options.threads,
    )


def _checked_model(model: RewardModel, scheme: str) -> RewardModel:
    """The same, if a plug-in opened something that has what a reward model has."""
    missing = [name for name in ("name", "revision") if not hasattr(model, name)]
    missing += [name for name in _METHODS if not callable(getattr(model, name, None))]
    if missing:
        entry = REWARDS.entry(scheme)
        raise CheckpointError(
            f"reward model scheme {scheme!r} of package {entry.package} opened "
            f"{type(model).__name__}, which has no {', '.join(missing)}"
        )
    return model
