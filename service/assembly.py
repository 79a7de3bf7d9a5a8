"""Builds the runtime from settings: which engine serves which policy, which model scores."""

from __future__ import annotations

import os
from pathlib import Path

from bestofn.engine import Engine
from bestofn.engine.remote_engine import RemoteEngine
from bestofn.engine.remote_server import RemoteOptions, is_remote
from bestofn.engine.vllm_engine import VllmEngine
from bestofn.engine.vllm_host import VllmHost, VllmOptions
from bestofn.errors import CheckpointError
from bestofn.evaluation_record import read_evaluation
from bestofn.rewards import open_reward_model
from service.runtime import Runtime
from service.scoring import BatchingScorer
from service.settings import REFERENCE, ServiceSettings


def build_runtime(settings: ServiceSettings) -> Runtime:
    """Check every configured checkpoint and wire the parts; loads nothing heavy yet.

    Raises:
        CheckpointError: a configured model is missing, truncated or of the wrong kind.
        DataError: the evaluation is none.
    """
    if settings.evaluation is not None:
        read_evaluation(settings.evaluation)
    reward = _scorer(settings.reward, settings)
    gold = _scorer(settings.gold, settings)
    return Runtime(settings, _policies(settings), reward, gold)


def _scorer(spec: str | None, settings: ServiceSettings) -> BatchingScorer | None:
    if spec is None:
        return None
    model = open_reward_model(
        spec,
        trust_remote_code=settings.trust_remote_code,
        batch_size=settings.reward_batch_size,
        timeout_s=settings.reward_timeout_s,
        threads=settings.reward_threads,
    )
    return BatchingScorer(model)


def _policies(settings: ServiceSettings) -> dict[str, Engine]:
    adapters = {name: path for name, path in settings.policies.items() if _is_adapter(path)}
    if REFERENCE in adapters:
        raise CheckpointError(
            f"{adapters[REFERENCE]} is a LoRA adapter; the reference policy must be a full model"
        )
    remote = {name: url for name, url in settings.policies.items() if is_remote(url)}
    if adapters and REFERENCE in remote:
        raise CheckpointError(
            f"{next(iter(adapters.values()))} is a LoRA adapter, which is served on the reference "
            "engine; that one is remote, so serve the adapter there too and give its URL#name"
        )
    full = {
        name: path
        for name, path in settings.policies.items()
        if name not in adapters and name not in remote
    }
    engines: dict[str, Engine] = {
        name: RemoteEngine(url, _remote_options(settings)) for name, url in remote.items()
    }
    if full:
        options = _options(settings, num_engines=len(full))
        hosts = {
            name: VllmHost(path, options, tuple(adapters.values()) if name == REFERENCE else ())
            for name, path in full.items()
        }
        engines |= {name: VllmEngine(host) for name, host in hosts.items()}
        engines |= {name: VllmEngine(hosts[REFERENCE], path) for name, path in adapters.items()}
    return {name: engines[name] for name in settings.policies}


def _is_adapter(path: str) -> bool:
    return (Path(path).expanduser() / "adapter_config.json").is_file()


def _remote_options(settings: ServiceSettings) -> RemoteOptions:
    engine = settings.engine
    return RemoteOptions(
        api_key=os.environ.get(engine.remote_api_key_env) or None,
        tokenizer=engine.remote_tokenizer,
        max_model_len=engine.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        connect_timeout_s=engine.remote_connect_timeout_s,
        request_timeout_s=engine.remote_timeout_s,
        start_timeout_s=engine.remote_start_timeout_s,
        max_backoff_s=engine.remote_max_backoff_s,
        trust_remote_code=settings.trust_remote_code,
        by_priority=engine.scheduling_policy == "priority",
        metrics=engine.remote_metrics,
        metrics_timeout_s=engine.remote_metrics_timeout_s,
    )


def _options(settings: ServiceSettings, num_engines: int) -> VllmOptions:
    engine = settings.engine
    share = engine.gpu_memory_utilization or round(0.9 / num_engines, 3)
    return VllmOptions(
        dtype=engine.dtype,
        max_model_len=engine.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        gpu_memory_utilization=share,
        tensor_parallel_size=engine.tensor_parallel_size,
        kv_cache_gib=engine.kv_cache_gib,
        enforce_eager=engine.enforce_eager,
        executor=engine.executor if engine.tensor_parallel_size == 1 else None,
        cpu_threads=engine.cpu_threads,
        trust_remote_code=settings.trust_remote_code,
        scheduling_policy=engine.scheduling_policy,
        metrics=engine.metrics,
    )
