"""``GET /modes``: the modes of this server."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from service.generation.references import policy_ref, sampling_differences, scorer_ref
from service.routes.dependencies import RuntimeDep, StoreDep
from service.runtime.modes import Mode
from service.runtime.routing import BudgetKind
from service.runtime.runtime import Runtime
from service.schemas import DefaultSampling, ModeInfo, ModesResponse, SamplingFields
from service.settings import AUTO
from vbon.measured.hardware import describe_hardware

router = APIRouter(tags=["server"])


@router.get("/modes")
async def get_modes(runtime: RuntimeDep, store: StoreDep) -> ModesResponse:
    """Every mode with its settings, policy, reward model and default N."""
    settings = runtime.settings
    default, records = runtime.default_sampling, runtime.training_records
    differences = {name: _differences(runtime, name) for name in runtime.policies}
    return ModesResponse(
        default_mode=settings.default_mode,
        modes=[
            ModeInfo(
                name=mode.name,
                description=mode.strategy.description,
                source=mode.strategy.source,
                settings=mode.strategy.model_dump(mode="json"),
                policy=policy_ref(runtime, mode),
                reward_model=scorer_ref("reward", runtime.reward)
                if mode.strategy.reranks
                else None,
                reranks=mode.strategy.reranks,
                default_n=_default_n(runtime, mode),
                adapter=runtime.policies[mode.policy].info.adapter,
                training=records[mode.policy],
                sampling_differences=differences[mode.policy],
            )
            for mode in runtime.modes.values()
        ],
        default_sampling=DefaultSampling(
            max_tokens=default.max_tokens,
            chat_max_tokens=default.chat_max_tokens,
            temperature=default.temperature,
            sources=dict(default.sources),
        ),
        gold_model=scorer_ref("gold", runtime.gold),
        limits=settings.limits.model_dump(),
        collects=runtime.collect is not None,
        budgets=_budgets(runtime),
        hardware=await asyncio.to_thread(describe_hardware),
        records=store.where is not None,
        evaluates=runtime.settings.evaluation is not None,
    )


def _default_n(runtime: Runtime, mode: Mode) -> int:
    if not mode.strategy.reranks:
        return 1
    settings = runtime.settings
    if mode.num_samples is not None:
        return mode.num_samples
    return settings.auto_n if mode.name == AUTO else settings.default_n


def _budgets(runtime: Runtime) -> list[BudgetKind]:
    if runtime.priced is None:
        return []
    prices = runtime.settings.auto
    priced = prices.price_per_hour is not None or prices.price_per_million_tokens is not None
    return ["tokens", "money", "reward"] if priced else ["tokens", "reward"]


def _differences(runtime: Runtime, policy: str) -> list[str]:
    """The differences of the server's defaults and rewards from those of a policy's own figures."""
    default, record = runtime.default_sampling, runtime.training_records[policy]
    if record is None:
        return []
    sampling = SamplingFields().to_sampling(default.max_tokens, default.temperature)
    return sampling_differences(runtime, policy, sampling) + record.reward_differences()
