"""The metrics of the rollout, read at each scrape from its state."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from service.distil.live_rollout import LiveRollout

# Older checkpoints than these have no series, unless requests reach them.
MOST_CHECKPOINTS = 20


class RolloutMetrics:
    """Metrics with the prefix ``vbon_distil_`` of mode ``auto``, its checkpoints and its comparisons."""

    def __init__(self, rollout: LiveRollout) -> None:
        self._rollout = rollout

    def register(self, registry: CollectorRegistry) -> None:
        """Show them with the metrics of a registry."""
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """The present values."""
        totals, shadows = self._rollout.keeper.totals, self._rollout.shadows
        yield self._checkpoints()
        shares = {arm.arm: arm.share for arm in self._rollout.arms()}
        yield _gauges("share", "Share of the requests of mode auto.", "arm", shares.items())
        yield _counters(
            "auto_requests", "Prompts of mode auto answered.", "arm", totals.requests.items()
        )
        tokens = [*totals.tokens.items(), ("shadow", totals.compared_tokens)]
        yield _counters("tokens", "Tokens generated for mode auto.", "arm", tokens)
        yield GaugeMetricFamily(
            "vbon_distil_tokens_saved_total",
            "Tokens saved against always best-of-N, those of shadows subtracted; it may fall.",
            totals.saved,
        )
        yield CounterMetricFamily(
            "vbon_distil_training_tokens",
            "Tokens generated to train the submitted checkpoints.",
            self._rollout.spent.tokens,
        )
        yield _counters(
            "shadows", "Answers compared with best-of-N.", "arm", totals.shadows.items()
        )
        yield _counters(
            "shadows_skipped", "Answers not compared, by reason.", "reason", shadows.skipped.items()
        )
        yield CounterMetricFamily(
            "vbon_distil_shadows_flat",
            "Comparisons in which all rewards were equal; if most are, check the reward model.",
            shadows.flat,
        )
        yield from self._evidence()
        yield _counters(
            "rollbacks",
            "Checkpoints that lost their requests, by reason.",
            "reason",
            self._rollout.rollbacks.items(),
        )
        yield CounterMetricFamily(
            "vbon_distil_fallbacks",
            "Prompts answered by another arm because the engine of theirs had died or failed.",
            totals.fallbacks,
        )
        failed = {arm: count for arm, count in totals.failures.items() if arm != "bon"}
        yield _counters(
            "failures", "Answers that a checkpoint's engine failed to give.", "arm", failed.items()
        )
        yield GaugeMetricFamily(
            "vbon_distil_stored", "1 if every decision is in the store.", self._rollout.stored
        )

    def _checkpoints(self) -> Metric:
        family = GaugeMetricFamily(
            "vbon_distil_checkpoint_info", "1 for each checkpoint.", labels=["checkpoint", "status"]
        )
        found = self._rollout.keeper.rollout.checkpoints
        for place, one in enumerate(reversed(found)):
            if place < MOST_CHECKPOINTS or one.status in ("live", "rolling"):
                family.add_metric([one.id, one.status], 1)
        return family

    def _evidence(self) -> Iterable[Metric]:
        win_rates = GaugeMetricFamily(
            "vbon_distil_shadow_win_rate",
            "Mean win rate of a checkpoint's answers over the reference policy.",
            labels=["arm"],
        )
        evidence = GaugeMetricFamily(
            "vbon_distil_evidence",
            "Natural logarithm of the e-value: good, bad and fall (docs/distil.md).",
            labels=["arm", "side"],
        )
        rollout = self._rollout.keeper.rollout
        for arm, one in (("live", rollout.live), ("next", rollout.rolling)):
            if one is None:
                continue
            found = rollout.evidence(one.id)
            if found.win_rate is not None:
                win_rates.add_metric([arm], found.win_rate)
            for side, value in (("good", found.good), ("bad", found.bad), ("fall", found.fall)):
                if value is not None:
                    evidence.add_metric([arm, side], value)
        yield win_rates
        yield evidence
        if rollout.live is not None:
            yield GaugeMetricFamily(
                "vbon_distil_verified",
                "0 if the live checkpoint has not been tested enough since the models have changed.",
                float(rollout.evidence(rollout.live.id).verified or 0),
            )


def _labelled(
    family: type[CounterMetricFamily] | type[GaugeMetricFamily],
    name: str,
    text: str,
    label: str,
    values: Iterable[tuple[str, float]],
) -> Metric:
    found = family(f"vbon_distil_{name}", text, labels=[label])
    for value, count in values:
        found.add_metric([value], count)
    return found


_counters = partial(_labelled, CounterMetricFamily)
_gauges = partial(_labelled, GaugeMetricFamily)
