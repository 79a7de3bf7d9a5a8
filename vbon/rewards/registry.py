"""Opens a reward model from the string that a user configures.

The string is either a classifier's directory or ``SCHEME:ARGUMENT``. :data:`REWARDS` is the registry of
schemes; installed packages add theirs through the entry-point group ``vbon.rewards`` (docs/plugins.md).
"""

from __future__ import annotations

import re
from pathlib import Path

from vbon.errors import CheckpointError
from vbon.registry import Registry, built_in_entries
from vbon.rewards.isolation import IsolatedReward
from vbon.rewards.protocol import RewardModel, RewardOpener, RewardOptions

_SCHEME = re.compile(r"([a-z][a-z0-9-]*):")
_HUB_SCHEME = "hf"  # hf://org/name is a classifier of the Hugging Face hub, not a registered scheme
_EOS_SCHEMES = ("with-eos", "without-eos")
_METHODS = ("load", "score", "close")


def _check_opener(found: object) -> RewardOpener:
    """Return the imported object if it can open reward models.

    Raises:
        TypeError: it cannot be called. The message is written to follow "cannot be used:".
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
            "with-eos": "classifier:open_with_eos",
            "without-eos": "classifier:open_without_eos",
        },
    ),
    _check_opener,
    field="reward",
    reserved=(_HUB_SCHEME,),
)


def open_reward_model(
    spec: str,
    *,
    trust_remote_code: bool = False,
    batch_size: int = 64,
    timeout_s: float = 30.0,
    threads: int | None = None,
    quotes_servers: bool = True,
) -> RewardModel:
    """Open the reward model that a string names, without loading it yet.

    Args:
        spec: a Hugging Face sequence-classifier directory with one logit (or ``hf://org/name``), with
            ``with-eos:`` or ``without-eos:`` before it if its files do not tell whether EOS ends its texts;
            ``python:package.module:function`` or ``python:./file.py:function``;
            ``http(s)://host/path`` of a remote scorer; or ``SCHEME:ARGUMENT`` of a plug-in.
        trust_remote_code: run code that comes with the checkpoint (ArmoRM needs it).
        batch_size: items per forward pass or remote call.
        timeout_s: limit of one remote call.
        threads: CPU threads of a classifier, set for the whole process; ``None`` keeps torch's default.
        quotes_servers: let errors contain what a remote scorer says, which may repeat a text that it scored.

    Raises:
        CheckpointError: the string does not name a usable reward model.
        InvalidInputError: the plug-in for the scheme cannot be used.
    """
    options = RewardOptions(trust_remote_code, batch_size, timeout_s, threads, quotes_servers)
    if is_classifier(spec):
        return _open_classifier(spec, options)
    scheme, _, argument = spec.partition(":")
    if scheme not in REWARDS:
        raise CheckpointError(
            f"reward model {spec!r} does not exist as a directory, and {scheme!r} is not a known scheme; "
            f"known schemes: {', '.join(REWARDS)}"
        )
    model = REWARDS[scheme](argument, options)
    if scheme in REWARDS.built_in:
        return model
    return IsolatedReward(_check_plugin_model(model, scheme))


def classifier_path(spec: str) -> str | None:
    """The directory or hub id of the classifier that the string names; ``None`` if it names another kind."""
    scheme, _, path = spec.partition(":")
    if scheme in _EOS_SCHEMES:
        return path
    return spec if is_classifier(spec) else None


def is_classifier(spec: str) -> bool:
    """Tell whether the string is a classifier's directory or hub id, not ``SCHEME:ARGUMENT``."""
    match = _SCHEME.match(spec)
    if match is None or match[1] == _HUB_SCHEME:
        return True
    return match[1] not in REWARDS and Path(spec).exists()


def _open_classifier(path: str, options: RewardOptions) -> RewardModel:
    from vbon.rewards.classifier import open_classifier

    return open_classifier(path, options)


def _check_plugin_model(model: RewardModel, scheme: str) -> RewardModel:
    """Return what a plug-in opened if it has all attributes and methods of a reward model.

    Raises:
        CheckpointError: some are missing; the message names them and the package.
    """
    missing = [name for name in ("name", "revision") if not hasattr(model, name)]
    missing += [name for name in _METHODS if not callable(getattr(model, name, None))]
    if missing:
        entry = REWARDS.entry(scheme)
        raise CheckpointError(
            f"reward model scheme {scheme!r} of package {entry.package} opened "
            f"{type(model).__name__}, which has no {', '.join(missing)}"
        )
    return model
