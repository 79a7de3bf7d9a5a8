"""Decision on a candidate checkpoint by its figures on held-out prompts.

Figures are means over prompts with 95% bootstrap intervals. Differences are of the same prompts, so they have
intervals of their own, which are narrower than those of the two figures suggest. A limit is kept if the whole
interval is on its good side, broken if none of it is, and open otherwise. One broken limit refuses the
candidate; without one, an open limit leaves it undecided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vbon.distil.decision import (
    ComparedFigures,
    Decision,
    Estimate,
    PolicyFigures,
    Spent,
    Verdict,
)
from vbon.errors import DataError
from vbon.maths.statistics import bootstrap_mean
from vbon.storage.evaluation_record import PER_PROMPT
from vbon.storage.json_files import read_json_file

CANDIDATE, LIVE, BON, REFERENCE = "candidate", "live", "best-of-n", "reference"
# Figures of a policy, by their names in per-prompt.json.
_FIGURES = {
    "win_rate": "win_rate",
    "reward": "reward",
    "gold": "gold",
    "kl_nats": "kl_nats",
    "length": "tokens",
    "truncated_share": "truncated",
}
# Estimates of equal quantities differ by rounding.
_ROUNDING = 1e-9

ByPrompt = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits that a candidate must keep.

    Attributes:
        n: N of best-of-N.
        margin: win rate that may be lost against the live checkpoint.
        bon_margin: win rate that may be lost against best-of-N.
        max_kl: KL from the reference policy, nats.
        max_length_ratio: mean length relative to the reference policy's.
        max_truncated: share of answers cut off beyond the reference policy's.
        least_prompts: held-out prompts with fewer of which nothing is decided.
    """

    n: int
    margin: float
    bon_margin: float
    max_kl: float
    max_length_ratio: float
    max_truncated: float
    least_prompts: int


@dataclass(frozen=True, slots=True)
class _Finding:
    verdict: Verdict
    sentence: str


def read_by_prompt(directory: Path) -> dict[str, dict[str, list[float]]]:
    """The figures of each prompt that ``vbon evaluate --per-prompt`` wrote.

    Raises:
        DataError: they are missing or damaged.
    """
    file = directory / PER_PROMPT
    try:
        found = read_json_file(file)
        return {
            str(method): {str(name): [float(v) for v in values] for name, values in figures.items()}
            for method, figures in found.items()
        }
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}; evaluate again") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is damaged ({error}); remove it, and evaluate again") from error


def decide(by_prompt: ByPrompt, limits: Limits, spent: Spent) -> Decision:
    """The decision on the method ``candidate`` of an evaluation.

    Args:
        by_prompt: figures of each prompt by method: ``candidate``, ``live`` if there is a live checkpoint,
            ``best-of-n`` and ``reference``.
    """
    figures = {method: _figures(values) for method, values in by_prompt.items()}
    live = figures.get(LIVE)
    against = LIVE if live is not None else BON
    compared = ComparedFigures(
        candidate=figures[CANDIDATE],
        live=live,
        bon=figures[BON],
        reference=figures[REFERENCE],
        difference=differences(by_prompt, against),
    )
    prompts = len(by_prompt[CANDIDATE]["win_rate"])
    findings = list(_findings(by_prompt, limits, prompts))
    verdict: Verdict = "promote"
    for worst in ("refuse", "undecided"):
        if any(one.verdict == worst for one in findings):
            verdict = worst
            break
    # Reasons of the verdict first.
    ordered = sorted(findings, key=lambda one: one.verdict != verdict)
    reasons = [one.sentence for one in ordered]
    return Decision(verdict=verdict, reasons=reasons, figures=compared, spent=spent)


def differences(by_prompt: ByPrompt, against: str) -> dict[str, Estimate]:
    """Figures of the candidate less those of another method, on the same prompts."""
    ours, theirs = by_prompt[CANDIDATE], by_prompt[against]
    return {
        name: _estimate(_minus(ours[key], theirs[key]))
        for name, key in _FIGURES.items()
        if key in ours and key in theirs
    }


def _findings(by_prompt: ByPrompt, limits: Limits, prompts: int) -> list[_Finding]:
    candidate, reference = by_prompt[CANDIDATE], by_prompt[REFERENCE]
    found = []
    if prompts < limits.least_prompts:
        found.append(
            _Finding(
                "undecided",
                f"There are only {prompts} held-out prompts; a decision needs {limits.least_prompts}.",
            )
        )
    if LIVE in by_prompt:
        lost = _estimate(_minus(by_prompt[LIVE]["win_rate"], candidate["win_rate"]))
        found.append(_kept(lost, limits.margin, "Its win rate is {} below the live checkpoint's"))
    lost = _estimate(_minus(by_prompt[BON]["win_rate"], candidate["win_rate"]))
    what = f"Its win rate is {{}} below that of best-of-{limits.n}"
    found.append(_kept(lost, limits.bon_margin, what))
    kl = _estimate(candidate["kl_nats"])
    found.append(_kept(kl, limits.max_kl, "Its KL from the reference policy is {} nats"))
    ratio = _ratio(candidate["tokens"], reference["tokens"])
    what = "Its answers have {} times the length of the reference policy's"
    found.append(_kept(ratio, limits.max_length_ratio, what))
    cut_off = _estimate(_minus(candidate["truncated"], reference["truncated"]))
    what = "The share of its answers that are cut off is {} above the reference policy's"
    found.append(_kept(cut_off, limits.max_truncated, what))
    return found


def _kept(value: Estimate, limit: float, what: str) -> _Finding:
    """The finding on a figure that must be at most ``limit``."""
    said = what.format(f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]")
    if value.high <= limit + _ROUNDING:
        return _Finding("promote", f"{said}, within the limit of {limit:g}.")
    if value.low > limit:
        return _Finding("refuse", f"{said}, and {limit:g} is the limit.")
    return _Finding(
        "undecided",
        f"{said}; whether it keeps the limit of {limit:g} cannot be told with so few prompts.",
    )


def _figures(values: Mapping[str, Sequence[float]]) -> PolicyFigures:
    return PolicyFigures(
        **{name: _estimate(values[key]) for name, key in _FIGURES.items() if key in values}
    )


def _estimate(values: Sequence[float]) -> Estimate:
    found = bootstrap_mean(values)
    # Rounding may put the mean of equal values beside them.
    return Estimate(
        mean=found.mean, low=min(found.low, found.mean), high=max(found.high, found.mean)
    )


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """The ratio of two means over the same prompts, which are resampled together."""
    import numpy as np

    above, below = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    picks = np.random.default_rng(0).integers(len(above), size=(4000, len(above)))
    drawn = above[picks].mean(axis=1) / below[picks].mean(axis=1)
    mean = float(above.mean() / below.mean())
    low, high = (float(end) for end in np.quantile(drawn, [0.025, 0.975]))
    return Estimate(mean=mean, low=min(low, mean), high=max(high, mean))


def _minus(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(ours, theirs, strict=True)]
