"""Computes the rows of an evaluation: reference, best-of-n for each n, and tuned policies.

All means are over prompts, with 95% bootstrap intervals (prompts are resampled).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from training.evaluation.measure import Float, PromptSamples
from vbon.errors import DataError
from vbon.maths.curves import (
    expected_best,
    pairwise_win_rate,
    selection_weights,
    win_rate_of_best,
)
from vbon.maths.distribution import kl_estimate, kl_upper_bound
from vbon.maths.gold_peak import GoldPeak, gold_peak
from vbon.maths.intervals import MeanInterval
from vbon.maths.productive_share import equivalent_n_interval, productive_share_interval
from vbon.maths.statistics import bootstrap_mean
from vbon.storage.evaluation_record import MethodRow


def curve_n_values(num_samples: int, largest: int, every_up_to: int = 1) -> list[int]:
    """The n of the best-of-n curve, ascending: powers of two up to ``largest``, and N itself.

    Args:
        every_up_to: every n from 2 to this one is also included, as far as ``largest``.
    """
    powers = {2**k for k in range(1, 20) if 2**k <= largest}
    return sorted(powers | {num_samples, *range(2, min(every_up_to, largest) + 1)})


def _over_prompts(
    samples: Sequence[PromptSamples], value: Callable[[PromptSamples], float]
) -> MeanInterval:
    return bootstrap_mean([value(sample) for sample in samples])


def _truncated_share(samples: Sequence[PromptSamples]) -> float:
    """The share of all samples, unscored ones included, that the token limit cut off."""
    return sum(s.truncated for s in samples) / sum(len(s.rewards) + s.unscored for s in samples)


def reference_row(reference: Sequence[PromptSamples]) -> MethodRow:
    """The reference policy; it wins half of the comparisons with itself, by symmetry."""
    has_gold = reference[0].gold is not None
    half = MeanInterval(0.5, 0.5, 0.5, len(reference))
    zero = MeanInterval(0.0, 0.0, 0.0, len(reference))
    return MethodRow(
        method="reference",
        n=1,
        reward=_over_prompts(reference, lambda s: float(s.rewards.mean())),
        gold=_over_prompts(reference, lambda s: float(_gold(s).mean())) if has_gold else None,
        win_rate=half,
        gold_win_rate=half if has_gold else None,
        kl_nats=zero,
        kl_kind="zero",
        kl_other={},
        tokens=_over_prompts(reference, lambda s: float(s.tokens.mean())),
        unscored=sum(s.unscored for s in reference),
        truncated_share=_truncated_share(reference),
    )


def best_of_n_row(reference: Sequence[PromptSamples], n: int) -> MethodRow:
    """Best-of-n from the reference, by the unbiased estimators over one batch of M samples.

    Its KL is the upper bound ``log n - (n-1)/n``. The closer estimate from the probability of the
    selected response is in ``kl_other``.
    """
    has_gold = reference[0].gold is not None
    bound = kl_upper_bound(n)

    def estimate(sample: PromptSamples) -> float:
        probability = np.exp(sample.ref_logprob)
        return float(
            selection_weights(sample.rewards, n)
            @ [kl_estimate(min(1.0, p), n) for p in probability]
        )

    return MethodRow(
        method="best-of-n",
        n=n,
        reward=_over_prompts(reference, lambda s: expected_best(s.rewards, n)),
        gold=_over_prompts(reference, lambda s: expected_best(s.rewards, n, _gold(s)))
        if has_gold
        else None,
        win_rate=_over_prompts(reference, lambda s: win_rate_of_best(s.rewards, n)),
        gold_win_rate=_over_prompts(reference, lambda s: _bon_gold_win_rate(s, n))
        if has_gold
        else None,
        kl_nats=MeanInterval(bound, bound, bound, len(reference)),
        kl_kind="upper bound",
        kl_other={"estimate from p(selected)": _over_prompts(reference, estimate)},
    )


def _gold(sample: PromptSamples) -> Float:
    if sample.gold is None:
        raise ValueError("no gold rewards were measured")
    return sample.gold


def _bon_gold_win_rate(sample: PromptSamples, n: int) -> float:
    """The gold win rate of best-of-n, which selects by the reward, against one more reference sample."""
    return win_rate_of_best(sample.rewards, n, _gold(sample))


def _wins(values: Float, opponents: Float) -> Float:
    """The number of opponents that each value beats, ties counted 1/2; same shape as ``values``."""
    ordered = np.sort(opponents)
    below = np.searchsorted(ordered, values, side="left")
    up_to = np.searchsorted(ordered, values, side="right")
    return (below + up_to) / 2


def policy_row(
    method: str, policy: Sequence[PromptSamples], reference: Sequence[PromptSamples]
) -> MethodRow:
    """A tuned policy, which answers with one sample."""
    has_gold = reference[0].gold is not None
    pairs = list(zip(policy, reference, strict=True))
    win_rates = [pairwise_win_rate(q.rewards, p.rewards) for q, p in pairs]
    win_rate = bootstrap_mean(win_rates)
    return MethodRow(
        method=method,
        n=1,
        reward=_over_prompts(policy, lambda s: float(s.rewards.mean())),
        gold=_over_prompts(policy, lambda s: float(_gold(s).mean())) if has_gold else None,
        win_rate=win_rate,
        equivalent_n=equivalent_n_interval(win_rate),
        productive_share=productive_share_interval(
            win_rates, [float(s.kl_rb.mean()) for s in policy]
        ),
        gold_win_rate=bootstrap_mean([pairwise_win_rate(_gold(q), _gold(p)) for q, p in pairs])
        if has_gold
        else None,
        kl_nats=_over_prompts(policy, lambda s: float(s.kl_rb.mean())),
        kl_kind="Rao-Blackwellised",
        kl_other={
            "naive": _over_prompts(policy, lambda s: float(s.kl_naive.mean())),
            "k3": _over_prompts(policy, lambda s: float(s.kl_k3.mean())),
        },
        tokens=_over_prompts(policy, lambda s: float(s.tokens.mean())),
        unscored=sum(s.unscored for s in policy),
        truncated_share=_truncated_share(policy),
    )


def per_prompt_figures(
    policy: Sequence[PromptSamples], reference: Sequence[PromptSamples]
) -> dict[str, list[float]]:
    """The figures of :func:`policy_row` on every prompt, by field, for resampling in reports."""
    pairs = list(zip(policy, reference, strict=True))
    figures = {
        "kl_nats": [float(s.kl_rb.mean()) for s in policy],
        "win_rate": [pairwise_win_rate(q.rewards, p.rewards) for q, p in pairs],
        "reward": [float(s.rewards.mean()) for s in policy],
    }
    if reference[0].gold is not None:
        figures["gold"] = [float(_gold(s).mean()) for s in policy]
        figures["gold_win_rate"] = [pairwise_win_rate(_gold(q), _gold(p)) for q, p in pairs]
    return figures


def figures_by_prompt(
    reference: Sequence[PromptSamples],
    policies: Mapping[str, Sequence[PromptSamples]],
    num_samples: int,
) -> dict[str, dict[str, list[float]]]:
    """Each prompt's figures by method: ``reference``, ``best-of-n`` for N, and each tuned policy by its name.

    They are ``win_rate``, ``reward``, ``kl_nats``, ``tokens``, ``truncated`` (the share that the token limit
    cut off) and, with a gold reward model, ``gold`` and ``gold_win_rate``. Lists are in the order of prompts.
    """

    def lengths(samples: Sequence[PromptSamples]) -> dict[str, list[float]]:
        return {
            "tokens": [float(s.tokens.mean()) for s in samples],
            "truncated": [float(_cut_off(s).mean()) for s in samples],
        }

    count = len(reference)
    own = {"win_rate": [0.5] * count, "kl_nats": [0.0] * count}
    own["reward"] = [float(s.rewards.mean()) for s in reference]
    n = num_samples
    best = {
        "win_rate": [win_rate_of_best(s.rewards, n) for s in reference],
        "kl_nats": [kl_upper_bound(n)] * count,
        "reward": [expected_best(s.rewards, n) for s in reference],
        "tokens": [expected_best(s.rewards, n, s.tokens) for s in reference],
        "truncated": [expected_best(s.rewards, n, _cut_off(s)) for s in reference],
    }
    if reference[0].gold is not None:
        own |= {"gold": [float(_gold(s).mean()) for s in reference], "gold_win_rate": [0.5] * count}
        best |= {
            "gold": [expected_best(s.rewards, n, _gold(s)) for s in reference],
            "gold_win_rate": [_bon_gold_win_rate(s, n) for s in reference],
        }
    found = {"reference": own | lengths(reference), "best-of-n": best}
    for name, samples in policies.items():
        found[name] = per_prompt_figures(samples, reference) | lengths(samples)
    return found


def _cut_off(sample: PromptSamples) -> Float:
    if sample.cut_off is None:
        raise ValueError("no truncation was recorded of each sample")
    return sample.cut_off


def best_of_tuned_policy(
    policy: Sequence[PromptSamples], reference: Sequence[PromptSamples], n: int
) -> tuple[MeanInterval, MeanInterval]:
    """The win rate against one reference sample, and mean reward, of best-of-n *from* a tuned policy."""

    def win_rate(ours: PromptSamples, theirs: PromptSamples) -> float:
        wins = _wins(ours.rewards, theirs.rewards)
        return float(selection_weights(ours.rewards, n) @ wins) / len(theirs.rewards)

    pairs = zip(policy, reference, strict=True)
    return (
        bootstrap_mean([win_rate(ours, theirs) for ours, theirs in pairs]),
        _over_prompts(policy, lambda s: expected_best(s.rewards, n)),
    )


def gold_peak_of(reference: Sequence[PromptSamples]) -> GoldPeak | None:
    """The peak of best-of-n's gold reward over every n of the curve; ``None`` without gold rewards."""
    largest = min(len(sample.rewards) for sample in reference) - 1
    if reference[0].gold is None or largest < 1:
        return None
    return gold_peak([s.rewards for s in reference], [_gold(s) for s in reference], largest)


def evaluation_rows(
    reference: Sequence[PromptSamples],
    policies: Mapping[str, Sequence[PromptSamples]],
    num_samples: int,
    every_n_up_to: int = 1,
) -> list[MethodRow]:
    """All rows: the reference, the best-of-n curve, then each tuned policy.

    Args:
        every_n_up_to: the curve has every n up to this one, not only powers of two.

    Raises:
        DataError: some prompt has too few scored samples for best-of-N.
    """
    fewest = min(len(sample.rewards) for sample in reference)
    largest = fewest - 1
    if largest < num_samples:
        raise DataError(
            f"some prompt has only {fewest} scored reference samples, too few for best-of-"
            f"{num_samples}; raise --reference-samples"
        )
    for name, samples in policies.items():
        if any(len(sample.rewards) == 0 for sample in samples):
            raise DataError(f"{name}: some prompt has no scored sample; raise --policy-samples")
    rows = [reference_row(reference)]
    curve = curve_n_values(num_samples, largest, every_n_up_to)
    rows += [best_of_n_row(reference, n) for n in curve]
    rows += [policy_row(name, samples, reference) for name, samples in policies.items()]
    return rows
