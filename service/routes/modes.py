"""``GET /modes``: the modes of this server."""

from __future__ import annotations

from fastapi import APIRouter

from service.generation.references import policy_ref, scorer_ref
from service.routes.dependencies import RuntimeDep, StoreDep
from service.schemas import ModeInfo, ModesResponse, SamplingFields
from vbon.storage.training_record import read_training_record

router = APIRouter(tags=["server"])


@router.get("/modes")
async def get_modes(runtime: RuntimeDep, store: StoreDep) -> ModesResponse:
    """Every mode with its settings, policy, reward model and default N."""
    settings = runtime.settings
    sampling = SamplingFields().to_sampling(settings.default_max_tokens)
    records = {
        name: read_training_record(policy.info.path) for name, policy in runtime.policies.items()
    }
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
                default_n=settings.default_n if mode.strategy.reranks else 1,
                adapter=runtime.policies[mode.policy].info.adapter,
                training=(record := records[mode.policy]),
                sampling_differences=record.sampling_differences(
                    sampling.max_tokens, sampling.temperature
                )
                if record is not None
                else [],
            )
            for mode in runtime.modes.values()
        ],
        gold_model=scorer_ref("gold", runtime.gold),
        limits=settings.limits.model_dump(),
        records=store.where is not None,
    )
