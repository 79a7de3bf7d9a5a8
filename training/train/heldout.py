"""Held-out figures of a trained policy, for its model card and record."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from training.configs import TrainConfig
from training.evaluation.captured import (
    Kind,
    ReferenceSamples,
    measure_captured_nats,
    samples_of_cache,
    samples_of_measurement,
)
from training.evaluation.measure import PromptSamples
from training.evaluation.rows import per_prompt_figures, policy_row
from training.rollouts.load_policy import load_policy
from training.train.inputs import TrainingInputs
from vbon.maths.statistics import bootstrap_mean
from vbon.storage.evaluation_record import CapturedNats, MethodRow
from vbon.storage.training_record import OnPolicyChange

# Enough samples for the card. `evaluate` takes more, and measures the whole curve of best-of-n.
CARD_PROMPTS, CARD_REFERENCE_SAMPLES, CARD_POLICY_SAMPLES = 64, 32, 16
# Fewer prompts for captured nats, because the cached samples cost passes of both models.
CAPTURED_PROMPTS = 32

_PATHS = {"policy", "initial", "reward", "cache"}

OnMeasured = Callable[[list[PromptSamples]], object]


def card_inputs(config: TrainConfig) -> TrainingInputs:
    """Inputs of a single run, with as many held-out samples as a model card needs."""
    return TrainingInputs(config, CARD_PROMPTS, CARD_REFERENCE_SAMPLES, CARD_POLICY_SAMPLES)


def measure_heldout(
    name: str,
    policy: Any,
    inputs: TrainingInputs,
    on_measured: OnMeasured | None,
    identity: Mapping[str, Any],
) -> MethodRow:
    """Measure a policy against the reference on the held-out prompts.

    Args:
        name: the objective's name.
        on_measured: receives the policy's samples.
        identity: the run's settings and training seed. The samples depend on it, so that the same run has
            the same ones, and two training seeds do not share the luck of one draw.
    """
    reference = inputs.heldout_reference
    ours = inputs.measurer.measure(
        policy,
        inputs.heldout,
        inputs.policy_samples,
        f"held-out {name}",
        _draw_of(identity),
    )
    if on_measured is not None:
        on_measured(ours)
    return policy_row(name, ours, reference)


def measure_imitation(
    name: str, policy: Any, inputs: TrainingInputs, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Measure a policy after its warm start with the prompts and seeds that its final figures will have.

    Returns:
        JSON values: the ``row``, and the ``per_prompt`` win rate and KL that :func:`on_policy_change` needs.
    """
    samples: list[PromptSamples] = []
    row = measure_heldout(name, policy, inputs, samples.extend, identity)
    figures = per_prompt_figures(samples, inputs.heldout_reference)
    changing = {field: figures[field] for field in OnPolicyChange.model_fields}
    return {"row": row.model_dump(), "per_prompt": changing}


def on_policy_change(
    imitated: Mapping[str, Any],
    policy: list[PromptSamples],
    reference: list[PromptSamples],
) -> OnPolicyChange:
    """The change of win rate and KL since :func:`measure_imitation`, paired by prompt."""
    after = per_prompt_figures(policy, reference)
    return OnPolicyChange(
        **{
            field: bootstrap_mean(np.array(after[field]) - np.array(before))
            for field, before in imitated["per_prompt"].items()
        }
    )


def measure_captured(
    policy: Any, inputs: TrainingInputs, num_samples: int | None
) -> CapturedNats | None:
    """Measure captured nats on cached samples and on the held-out samples of the reference.

    Nothing is sampled for this, so there are no figures of fresh samples of training prompts; ``evaluate``
    has them. ``None`` if the objective has no N, or no prompts have N samples each.
    """
    if num_samples is None:
        return None
    sets: dict[Kind, list[ReferenceSamples]] = {}
    if inputs.cache.has_responses:
        sets["cache"] = samples_of_cache(
            inputs.cache,
            inputs.reference,
            inputs.tokenizer,
            num_samples=num_samples,
            temperature=inputs.config.temperature,
            prompts=CAPTURED_PROMPTS,
            samples=max(CARD_REFERENCE_SAMPLES, 2 * num_samples),
        )
    if inputs.heldout:
        sets["heldout"] = samples_of_measurement(
            inputs.heldout[:CAPTURED_PROMPTS], inputs.heldout_reference[:CAPTURED_PROMPTS]
        )
    enough: dict[Kind, list[ReferenceSamples]] = {
        kind: samples
        for kind, samples in sets.items()
        if min(len(one.rewards) for one in samples) >= num_samples
    }
    if not enough:
        return None
    return measure_captured_nats(
        policy,
        inputs.tokenizer,
        enough,
        num_samples=num_samples,
        temperature=inputs.config.temperature,
    )


def _draw_of(identity: Mapping[str, Any]) -> str:
    """The run's identity as text, without paths: its revisions already say what lies there."""
    return json.dumps({k: v for k, v in identity.items() if k not in _PATHS}, sort_keys=True)


def measure_again(
    name: str,
    config: TrainConfig,
    inputs: TrainingInputs,
    on_measured: OnMeasured,
    identity: Mapping[str, Any],
) -> MethodRow | None:
    """Load an exported checkpoint and measure it with the seeds that its run used."""
    if not inputs.heldout:
        return None
    policy, _, _ = load_policy(
        str(config.out.resolve()), dtype="auto", trust_remote_code=config.trust_remote_code
    )
    return measure_heldout(name, policy, inputs, on_measured, identity)
