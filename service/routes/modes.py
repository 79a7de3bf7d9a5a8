"""``GET /modes``: the modes of this server."""

from __future__ import annotations

from fastapi import APIRouter

from service.generation.references import policy_ref, scorer_ref
from service.routes.dependencies import RuntimeDep, StoreDep
from service.schemas import ModeInfo, ModesResponse
from vbon.storage.training_record import read_training_record

router = APIRouter(tags=["server"])


@router.get("/modes")
async def get_modes(runtime: RuntimeDep, store: StoreDep) -> ModesResponse:
    """Every mode with its settings, policy, reward model and default N."""
    settings = runtime.settings
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
                training=read_training_record(runtime.policies[mode.policy].info.path),
            )
            for mode in runtime.modes.values()
        ],
        gold_model=scorer_ref("gold", runtime.gold),
        limits=settings.limits.model_dump(),
        records=store.where is not None,
    )
