"""A load test whose result is decided, with figures that are easy to compute by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from service.loadtest.analysis.break_even import (
    MeasuredVariant,
    TrainingExpense,
    break_even,
    capacity_of,
)
from service.loadtest.analysis.verdict import Side, judged
from service.loadtest.schema import CellResult, Quality
from vbon.maths.intervals import MeanInterval
from vbon.maths.statistics import median_range

PROMPTS = 12
TUNED_RATES = (300.0, 310.0, 290.0, 305.0, 295.0)
SAMPLED_RATES = (30.0, 31.0, 29.0, 30.5, 29.5)
HOURS = 0.1


def cell(variant: str, mode: str, n: int, load: float, rates: tuple[float, ...], p95: float) -> Any:
    """A closed-loop cell with these rates by round, ten generated tokens a candidate."""
    quantiles = dict.fromkeys(("mean", "p50", "p90", "p95", "p99"), p95) | {"count": 500}
    found = median_range(rates)
    rounds = [
        {
            "round": i,
            "requests": 100,
            "requests_per_s": rate,
            "returned_tokens_per_s": 10 * rate,
            "p50_e2e_ms": p95,
            "p95_e2e_ms": p95,
        }
        for i, rate in enumerate(rates)
    ]
    return CellResult.model_validate(
        {
            "variant": variant, "mode": mode, "n": n, "load_kind": "closed", "load": load, "requests": 500,
            "errors": {}, "streamed": False, "requests_per_s": found,
            "generated_tokens_per_s": median_range([10 * n * rate for rate in rates]),
            "returned_tokens_per_s": median_range([10 * rate for rate in rates]), "goodput_per_s": None,
            "goodput_share": None, "e2e_ms": quantiles, "ttft_ms": None, "tpot_ms": None, "itl_ms": None,
            "queue_ms": None, "rerank_ms": None, "scoring_ms": None, "send_lag_ms": None, "client_cpu": 0.1,
            "rounds": rounds,
        }
    )  # fmt: skip


def quality(variant: str, mode: str, n: int, reward: float, gold: float, win: float) -> Quality:
    """Rewards that differ from prompt to prompt by the same steps for every variant."""
    steps = [0.01 * (i - (PROMPTS - 1) / 2) for i in range(PROMPTS)]
    tilt = 2 if n > 1 else 1  # so that differences have an interval
    rewards = {str(i): reward + tilt * step for i, step in enumerate(steps)}
    golds = {str(i): gold + tilt * step for i, step in enumerate(steps)}

    def around(value: float) -> MeanInterval:
        return MeanInterval(value, value - 0.02, value + 0.02, PROMPTS)

    return Quality(
        variant=variant,
        mode=mode,
        n=n,
        reward=around(reward),
        win_rate=around(win),
        gold=around(gold),
        gold_win_rate=around(win - 0.05),
        prompt_golds=golds,
        answers=48,
        unscored=0,
        errors={},
        rewards=[],
        prompt_rewards=rewards,
    )


def decided_run(
    run_id: str = "0000000000aa",
    *,
    rounds: int = 5,
    hours: float | None = HOURS,
    training_price: float | None = None,
    revision: str = "fake",
) -> dict[str, Any]:
    """``vbon`` against best-of-16: it costs a tenth and gives up .2 of reward, .1 of gold reward."""
    own, many = TUNED_RATES[:rounds], SAMPLED_RATES[:rounds]
    cells = {
        "vbon": [
            cell("vbon", "vbon", 1, 32, tuple(0.97 * rate for rate in own), 40),
            cell("vbon", "vbon", 1, 64, own, 200),
        ],
        "bon (N=16)": [
            cell("bon (N=16)", "bon", 16, 2, tuple(0.97 * rate for rate in many), 90),
            cell("bon (N=16)", "bon", 16, 4, many, 420),
        ],
    }
    worth = {
        "vbon": quality("vbon", "vbon", 1, 3.0, 2.0, 0.9),
        "bon (N=16)": quality("bon (N=16)", "bon", 16, 3.2, 2.1, 0.94),
    }
    sides = {}
    for name, n in (("vbon", 1), ("bon (N=16)", 16)):
        capacity = capacity_of(name, cells[name], [], None)
        assert capacity is not None
        sides[name] = MeasuredVariant(name, capacity, worth[name], n)
    cost = None if hours is None else hours * (training_price or 2.0)
    pair = break_even(
        sides["vbon"],
        sides["bon (N=16)"],
        TrainingExpense(hours, cost, "training record"),
        ([], np.zeros((0, 1))),
        2.0,
    )
    pair = judged(
        pair,
        Side(sides["vbon"], cells["vbon"]),
        Side(sides["bon (N=16)"], cells["bon (N=16)"]),
        complete=True,
    )
    policies = [{"name": name, "path": "x", "revision": revision} for name in ("ref", "vbon")]
    reward = {"name": "reward", "path": "x", "revision": "fake"}
    return {
        "id": run_id,
        "created": "2026-01-02T10:00:00+00:00",
        "complete": True,
        "blocks_done": 20,
        "blocks_planned": 20,
        "settings": {
            "currency": "EUR",
            "price_per_hour": 2.0,
            "training_price_per_hour": training_price,
        },
        "provenance": {"machine": {"system": "Linux-6", "processor": "x86_64"}},
        "prompts": PROMPTS,
        "cells": [one.model_dump(mode="json") for own in cells.values() for one in own],
        "curve": [],
        "saturation": [],
        "costs": [],
        "break_even": [pair.model_dump(mode="json")],
        "decision": ["Fine-tune."],
        "warnings": ["The client was busy."],
        "examples": [],
        "schema_version": "1.2",
        "server": {
            "url": "http://x",
            "api": "native",
            "policies": policies,
            "modes": [
                {"name": "vbon", "reranks": False, "policy": policies[1]},
                {"name": "bon", "reranks": True, "policy": policies[0], "reward_model": reward},
            ],
        },
        "quality": [one.model_dump(mode="json") for one in worth.values()],
    }
