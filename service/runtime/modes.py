"""Modes: the names a request may ask for, each a strategy over a policy."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from service.settings import AUTO, REFERENCE, TUNED, TunedSettings
from service.strategies import STRATEGIES, Auto, AutoByPrice, Single, Strategy
from service.strategies.request_fields import configured
from vbon.errors import InvalidInputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mode:
    """A strategy over a policy, under the name that requests use.

    Attributes:
        num_samples: N of requests that name none; ``None`` means the server's default.
        sampling: sampling fields of requests that do not send them, by name.
    """

    name: str
    strategy: Strategy
    policy: str
    num_samples: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def drawn(self, num_samples: int) -> int:
        """The N an answer reports: ``num_samples``, or 1 for a single-sample mode."""
        return num_samples if self.strategy.reranks else 1


def configured_modes(
    policies: Iterable[str],
    *,
    has_reward: bool,
    rolls_out: bool = False,
    has_table: bool = False,
    tuned: TunedSettings | None = None,
    expected: Iterable[str] = (),
) -> dict[str, Mode]:
    """Every mode of a server: one per policy, and one per strategy that has the reward model it needs.

    Args:
        rolls_out: whether checkpoints are rolled out, so that there is a mode ``auto``.
        has_table: whether there is a table of measured settings, so that there is a mode ``auto``.
        tuned: the setting of mode ``tuned``; without a mode in it there is none. The mode is left out
            while its policy is not served.
        expected: names of policies that may be served later.

    Raises:
        InvalidInputError: ``tuned`` names an unknown mode or setting.
        InvalidInputError: a policy has the name of a built-in strategy. If it has the name of a
            plug-in's strategy, the policy wins, with a warning.
    """
    modes = {name: Mode(name, Single(), name) for name in policies}
    for name, strategy in STRATEGIES.items():
        if name in modes and name not in STRATEGIES.built_in:
            package = STRATEGIES.entry(name).package
            logger.warning(
                "mode %s is the policy of that name; the strategy from %s is not available",
                name,
                package,
            )
            continue
        if name in modes:
            raise InvalidInputError(
                f"policy name {name!r} is taken by a strategy; rename the policy", field="policies"
            )
        if has_reward or not strategy.needs_reward:
            modes[name] = Mode(name, strategy(), REFERENCE)
    if rolls_out or has_table:
        modes[AUTO] = Mode(AUTO, Auto() if rolls_out else AutoByPrice(), REFERENCE)
    if tuned is None or tuned.mode is None:
        return modes
    missing = {tuned.mode, tuned.policy or REFERENCE} - set(modes)
    unknown = sorted(missing - set(expected))
    if unknown:
        raise InvalidInputError(
            f"tuned names {unknown[0]!r}, which is neither a mode nor a policy of this server; it has "
            f"{', '.join(modes)}",
            field="tuned",
        )
    if not missing:
        own = find_mode(modes, policies, tuned.mode, tuned.settings, tuned.policy)
        modes[TUNED] = replace(own, name=TUNED, num_samples=tuned.n, sampling=tuned.sampling)
    return modes


def find_mode(
    modes: Mapping[str, Mode],
    policies: Iterable[str],
    name: str,
    settings: Mapping[str, Any] | None = None,
    policy: str | None = None,
) -> Mode:
    """The mode called ``name``, with a request's settings and over the policy it asks for.

    Args:
        policies: the names of the server's policies.
        policy: the policy to draw from; ``None`` means the mode's own.

    Raises:
        InvalidInputError: the mode or policy is unknown, lacks its reward model, or does not take
            these settings.
    """
    if name in modes:
        mode = modes[name]
        strategy = configured(name, mode.strategy, settings or {})
        return replace(mode, strategy=strategy, policy=_policy_of(mode, policy, policies))
    if name in STRATEGIES:
        STRATEGIES[name]  # raises the reason if it is an unusable plug-in
        raise InvalidInputError(
            f"mode {name!r} needs a reward model and none is configured; set `reward`",
            field="mode",
        )
    if name == AUTO:
        raise InvalidInputError(
            f"mode {AUTO!r} is not configured; it needs a table of measured settings (--auto.table FILE, or "
            "PUT /auto/table), or a server that rolls out checkpoints, with --distil.dir and --distil.policy",
            field="mode",
        )
    raise InvalidInputError(
        f"mode {name!r} is not configured; this server has {', '.join(modes)}. "
        f"To add it: --policies {name}=DIR",
        field="mode",
    )


def _policy_of(mode: Mode, asked: str | None, policies: Iterable[str]) -> str:
    if asked is not None and mode.name == AUTO:
        raise InvalidInputError(
            f"mode {AUTO!r} chooses the policy itself; leave policy out, or ask for mode 'bon'",
            field="policy",
        )
    if asked is None or asked == mode.policy:
        return mode.policy
    if not mode.strategy.reranks:
        raise InvalidInputError(
            f"mode {mode.name!r} is one sample of policy {mode.policy!r}; ask for mode {asked!r}",
            field="policy",
        )
    known = list(policies)
    if asked not in known:
        raise InvalidInputError(
            f"policy {asked!r} is not configured; this server has {', '.join(known)}",
            field="policy",
        )
    return asked
