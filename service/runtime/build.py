"""Construction of the runtime from settings: engines for the policies, scorers for the reward models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from service.runtime.batching_scorer import BatchingScorer
from service.runtime.gpu_share import gpu_share
from service.runtime.runtime import Runtime
from service.settings import REFERENCE, ServiceSettings
from vbon.engine import Engine
from vbon.engine.remote.engine import RemoteEngine
from vbon.engine.remote.server import RemoteOptions, is_remote
from vbon.engine.vllm.engine import VllmEngine
from vbon.engine.vllm.host import AdapterRoom, VllmHost
from vbon.engine.vllm.options import VllmOptions
from vbon.errors import CheckpointError, InvalidInputError
from vbon.rewards import open_reward_model
from vbon.rewards.deaths import DeathIsolator
from vbon.rewards.worker import RewardWorker
from vbon.storage.evaluation_record import read_evaluation


def build_runtime(settings: ServiceSettings) -> Runtime:
    """Check every configured checkpoint and build the runtime, without loading any model.

    Raises:
        CheckpointError: a configured model is missing, truncated or of the wrong kind.
        DataError: the configured evaluation file is not a valid evaluation.
    """
    if settings.evaluation is not None and not _is_expected_too(settings):
        read_evaluation(settings.evaluation)
    builder = RuntimeBuilder(settings)
    reward = None if settings.reward is None else builder.scorer("reward")
    gold = None if settings.gold is None else builder.scorer("gold")
    runtime = Runtime(settings, builder.all_engines(), reward, gold)
    runtime.expected = missing_expected(settings)
    return runtime


class RuntimeBuilder:
    """Builds engines and scorers from settings: all of them at start-up, single ones at a reload.

    Further policies, of checkpoints that are rolled out, can be placed while the service runs.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        paths = settings.policies
        self._remote = {name: path for name, path in paths.items() if is_remote(path)}
        self._adapters = {name: path for name, path in paths.items() if is_adapter(path)}
        self._full = {
            name: path
            for name, path in paths.items()
            if name not in self._adapters and name not in self._remote
        }
        rolled_out, rank = settings.distil.policies, settings.distil.lora_rank
        self._room = AdapterRoom(len(rolled_out), rank) if rolled_out and rank else None
        # Their engines take their share of the memory later, when the others have theirs already.
        self._num_engines = len(self._full) + (0 if rank else len(rolled_out))

    def place(self, policy: str, path: str | None) -> None:
        """Build this policy from this path from now on; ``None`` forgets the policy."""
        for paths in (self._adapters, self._full):
            paths.pop(policy, None)
        if path is not None:
            (self._adapters if is_adapter(path) else self._full)[policy] = path

    def scorer(self, name: str) -> BatchingScorer:
        """A new scorer for the ``reward`` or the ``gold`` model, not started.

        Raises:
            CheckpointError: the configured path does not hold a reward model.
        """
        settings = self._settings
        spec = settings.reward if name == "reward" else settings.gold
        assert spec is not None  # callers ask only for configured models
        model = open_reward_model(
            spec,
            trust_remote_code=settings.trust_remote_code,
            batch_size=settings.reward_batch_size,
            timeout_s=settings.reward_timeout_s,
            threads=settings.reward_threads,
            quotes_servers=False,  # a batch has texts of several callers
        )
        if is_remote(spec):
            return BatchingScorer(model)
        worker = RewardWorker(
            model,
            timeout_s=settings.reward_stall_timeout_s,
            logs_user_errors=settings.log_user_errors,
        )
        isolator = DeathIsolator(worker, supervised=True)
        return BatchingScorer(isolator, runs=lambda: worker.alive)

    def all_engines(self) -> dict[str, Engine]:
        """An engine for every policy, in the order of the settings; not started.

        Raises:
            CheckpointError: a policy is missing, or is an adapter where a full model is required.
        """
        if REFERENCE in self._adapters:
            raise CheckpointError(
                f"{self._adapters[REFERENCE]} is a LoRA adapter; the reference policy must be a full "
                "model"
            )
        if self._adapters and REFERENCE in self._remote:
            raise CheckpointError(
                f"{next(iter(self._adapters.values()))} is a LoRA adapter, and the reference policy that "
                "would serve it is remote; serve the adapter on that server too and set its URL#name"
            )
        missing = missing_expected(self._settings)
        engines: dict[str, Engine] = {}
        for name in [*self._remote, *self._full]:
            if name not in missing:
                engines |= self.engines(name, engines)
        return {name: engines[name] for name in self._settings.policies if name in engines}

    def engines(self, policy: str, serving: Mapping[str, Engine]) -> dict[str, Engine]:
        """New engines for a policy, not started.

        Adapters are served on the reference policy's engine, so rebuilding it rebuilds theirs too.

        Raises:
            CheckpointError: the path does not hold a model that can be served in this way.
        """
        if policy in self._remote:
            return {policy: RemoteEngine(self._remote[policy], _remote_options(self._settings))}
        if policy in self._adapters:
            reference, path = serving[REFERENCE], self._adapters[policy]
            self._check_room(policy, path, reference)
            assert isinstance(reference, VllmEngine)  # checked here or by all_engines
            return {policy: VllmEngine(reference.host, reference.host.new_adapter(path))}
        if find_spec("vllm") is None:
            raise InvalidInputError(
                f"policy {policy!r} needs vLLM, which is not installed; install vbon with the extra cpu or "
                "gpu (pip install -e '.[gpu]'), or give the URL of a server that has it",
                field="policies",
            )
        adapters = {
            name: path
            for name, path in self._adapters.items()
            if policy == REFERENCE and (name in self._settings.policies or name in serving)
        }
        options = _vllm_options(self._settings, self._gpu_share)
        room = self._room if policy == REFERENCE else None
        host = VllmHost(self._full[policy], options, tuple(adapters.values()), room)
        on_host = {name: VllmEngine(host, host.adapters[path]) for name, path in adapters.items()}
        return {policy: VllmEngine(host), **on_host}

    def _check_room(self, policy: str, path: str, reference: Engine) -> None:
        """Check that an adapter that was placed can be served on the reference policy's engine."""
        if policy not in self._settings.distil.policies:
            return
        if not isinstance(reference, VllmEngine):
            raise CheckpointError(
                f"{path} is a LoRA adapter, and the reference policy that would serve it is remote; merge it "
                "into its base model"
            )
        if self._room is None:
            raise CheckpointError(
                f"{path} is a LoRA adapter, and the engine of the reference policy was started without room "
                "for one; merge it into its base model, or start the server with --distil.lora-rank"
            )

    @cached_property
    def _gpu_share(self) -> float:
        return gpu_share(self._settings, num_engines=self._num_engines)


def missing_expected(settings: ServiceSettings) -> dict[str, str]:
    """The paths of the expected policies that do not exist yet, by policy name."""
    paths = {name: settings.policies[name] for name in settings.expected}
    return {name: path for name, path in paths.items() if not Path(path).expanduser().exists()}


def _is_expected_too(settings: ServiceSettings) -> bool:
    """True if the evaluation file does not exist yet and may be written with an expected policy."""
    assert settings.evaluation is not None
    return bool(settings.expected) and not Path(settings.evaluation).expanduser().exists()


def is_adapter(path: str) -> bool:
    """True if a directory holds a LoRA adapter instead of a whole model."""
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
        sampled_logprobs=engine.logprobs == "sampled",
        metrics=engine.remote_metrics,
        metrics_timeout_s=engine.remote_metrics_timeout_s,
        encode_timeout_s=engine.encode_timeout_s,
        placement=engine.placement,
        continuations=engine.continuations,
    )


def _vllm_options(settings: ServiceSettings, share: float) -> VllmOptions:
    engine = settings.engine
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
        sampled_logprobs=engine.logprobs == "sampled",
        metrics=engine.metrics,
        stall_timeout_s=engine.stall_timeout_s,
        tool_parser=engine.tool_parser,
        encode_timeout_s=engine.encode_timeout_s,
        args=engine.args,
    )
