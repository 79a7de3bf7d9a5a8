"""Trains one objective: prepares, trains or resumes, measures on held-out prompts, exports whole."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from training.configs import TrainConfig
from training.evaluation.measure import PromptSamples
from training.evaluation.rows import policy_row
from training.objectives import OBJECTIVES, objective_type
from training.objectives.bon_sft import BonSft
from training.objectives.config import objective_of
from training.objectives.protocol import Objective
from training.outputs.identity import is_same_output, read_json_record
from training.outputs.progress import ProgressBar
from training.rollouts.generator import Generator, TransformersGenerator
from training.rollouts.load_policy import load_policy
from training.train.export import ADAPTER_DIRECTORY, TRAINING_RECORD, Trained, export_checkpoint
from training.train.inputs import Assets
from training.train.reference_logprobs import ensure_reference_logprobs
from training.train.resume import RUN, States
from training.train.trainer import StepMetrics, Trainer, TrainerOptions
from vbon.errors import CheckpointError, DataError, DivergedError, InvalidInputError
from vbon.storage.atomic import beside, recover_directory
from vbon.storage.checkpoints import Kind, check_checkpoint
from vbon.storage.evaluation_record import MethodRow
from vbon.storage.locks import sole_writer

logger = logging.getLogger(__name__)

# What may change between a run and its continuation without changing a single step.
INCIDENTAL = {
    "out", "checkpoint_every", "reward_batch_size", "replace", "heldout", "gold", "max_kl",
}  # fmt: skip
# The card's own held-out figures; `evaluate` takes more samples and draws the whole curve.
CARD_PROMPTS, CARD_REFERENCE_SAMPLES, CARD_POLICY_SAMPLES = 64, 32, 16
# Tied pairs of samples above this share make rewards anything but strictly ordered.
TIED_SHARE = 0.05
LONGEST_WAIT = timedelta(hours=6)

OnMeasured = Callable[[list[PromptSamples]], object]


@dataclass(frozen=True, slots=True)
class Finished:
    """A trained checkpoint.

    Attributes:
        row: held-out figures, ``None`` if none were asked for.
        cost: samples, tokens and seconds it took.
    """

    out: Path
    row: MethodRow | None
    cost: Mapping[str, Any]


def state_path(out: Path) -> Path:
    """Where an unfinished run keeps its resumable states."""
    return beside(out, "state")


def identity_of(name: str, config: TrainConfig, assets: Assets) -> dict[str, Any]:
    """What makes a run this run: its objective and settings, revisions of what it is made from.

    Raises:
        CheckpointError, DataError: something is missing or of the wrong kind.
    """
    settings = config.model_dump(mode="json", exclude=INCIDENTAL)
    return {"objective": name, **settings, **assets.identity}


def train(
    name: str,
    config: TrainConfig,
    assets: Assets | None = None,
    on_measured: OnMeasured | None = None,
) -> Finished:
    """Train, resume, or report that there is nothing to do.

    Args:
        name: of the objective.
        config: of the objective's command (``train_config_type``).
        assets: shared ones; else they are loaded as the configuration says.
        on_measured: given the held-out samples behind the figures. For them, what is trained already
            is measured again, with the held-out prompts and gold reward model of now.

    Raises:
        CheckpointError, DataError, InvalidInputError, RewardError, ExportError, DivergedError.
    """
    # Before any model is loaded: it makes this process's GPU the default one. Without `cpu`, processes
    # on a machine without GPUs would not know of each other, and each would write the same output.
    # One process measures and exports while the others wait, longer than the usual half hour if large.
    processes = PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)
    objective = objective_of(name, config)
    assets = assets or Assets(config, CARD_PROMPTS, CARD_REFERENCE_SAMPLES, CARD_POLICY_SAMPLES)
    identity = identity_of(name, config, assets)
    # One process holds the output for all of them; should it be refused, the launcher ends the others.
    with sole_writer(config.out) if processes.is_main_process else nullcontext():
        if processes.is_main_process:
            recover_directory(config.out)
        processes.wait_for_everyone()
        finished = _finished(config, identity)
        if finished is not None:
            logger.info("%s: already trained with these settings", config.out)
            if not processes.is_main_process:
                return finished
            _clear_states(config.out, identity)
            if on_measured is not None:
                row = _measured_again(name, config, assets, on_measured)
                return Finished(finished.out, row, finished.cost)
            _warn_of_other_figures(config)
            return finished
        return _Run(name, config, objective, assets, identity, on_measured).train()


def _finished(config: TrainConfig, identity: dict[str, Any]) -> Finished | None:
    """The output, if it is this very run's and as it was written.

    Raises:
        CheckpointError: it is damaged. DataError: it is another's. Neither if --replace was given.
    """
    if not (config.out / TRAINING_RECORD).exists():
        if not config.replace and config.out.exists() and any(config.out.iterdir()):
            raise DataError(
                f"{config.out} is there and holds no {TRAINING_RECORD}: it is no output of a training run; "
                "choose another --out, or --replace it"
            )
        return None
    if not _is_whole(config.out, "causal-lm", replace=config.replace):
        return None
    record = read_json_record(config.out / TRAINING_RECORD)
    if record is None:
        return None
    if not is_same_output(config.out, record.get("identity", {}), identity, replace=config.replace):
        return None
    if config.lora_rank is not None and not _is_whole(
        config.out / ADAPTER_DIRECTORY, "adapter", replace=config.replace
    ):
        return None
    row = record["heldout"]
    return Finished(
        config.out, None if row is None else MethodRow.model_validate(row), record["cost"]
    )


def _is_whole(directory: Path, kind: Kind, *, replace: bool) -> bool:
    try:
        check_checkpoint(str(directory.resolve()), kind)
    except CheckpointError as error:
        if not replace:
            raise CheckpointError(f"{error}; or train it again with --replace") from error
        logger.warning("%s; training it again", error)
        return False
    return True


def _clear_states(out: Path, identity: dict[str, Any]) -> None:
    """Remove what a kill between the export and its end left; another run's states may yet go on."""
    directory = state_path(out)
    runs = [read_json_record(path) for path in directory.glob(f"*/{RUN}")]
    if all(run is None or run.get("identity") == identity for run in runs):
        shutil.rmtree(directory, ignore_errors=True)


def _warn_of_other_figures(config: TrainConfig) -> None:
    """The card's figures stay as they were measured: say so where other ones are asked for now."""
    if config.heldout is None:
        return
    recorded = (read_json_record(config.out / TRAINING_RECORD) or {}).get("config", {})
    for key, wanted in config.model_dump(mode="json", include={"heldout", "gold"}).items():
        if wanted is not None and recorded.get(key) != wanted:
            logger.warning(
                "%s: its held-out figures were measured with %s %s and stay so, not with %s; for that, "
                "run `evaluate`",
                config.out, key, recorded.get(key) or "none", wanted,
            )  # fmt: skip


def _measured_again(
    name: str, config: TrainConfig, assets: Assets, on_measured: OnMeasured
) -> MethodRow | None:
    """Figures of the exported checkpoint, by the seeds that a run measures with."""
    if not assets.heldout:
        return None
    policy, _, _ = load_policy(
        str(config.out.resolve()), dtype="auto", trust_remote_code=config.trust_remote_code
    )
    return _heldout_row(name, policy, assets, on_measured)


def _heldout_row(
    name: str, policy: Any, assets: Assets, on_measured: OnMeasured | None
) -> MethodRow:
    reference = assets.heldout_reference
    ours = assets.measurer.measure(
        policy, assets.heldout, assets.policy_samples, f"held-out {name}"
    )
    if on_measured is not None:
        on_measured(ours)
    return policy_row(name, ours, reference)


class _Run:
    """One training run from start (or the state a killed one left) to the exported checkpoint."""

    def __init__(
        self,
        name: str,
        config: TrainConfig,
        objective: Objective,
        assets: Assets,
        identity: dict[str, Any],
        on_measured: OnMeasured | None,
    ) -> None:
        self._on_measured = on_measured
        self._name, self._config, self._objective = name, config, objective
        self._assets, self._identity = assets, identity
        self._warnings = self._check_data()
        self._generator = self._make_generator()
        self._trainer = self._make_trainer()
        self._states = States(state_path(config.out), self._trainer.accelerator)
        self._history: list[dict[str, Any]] = []

    @property
    def _main(self) -> bool:
        return bool(self._trainer.accelerator.is_main_process)

    def train(self) -> Finished:
        """The loop and what follows."""
        try:
            self._loop()
        except DivergedError as error:
            raise self._stopped(error) from error
        finally:
            self._generator.close()
        self._trainer.accelerator.wait_for_everyone()
        cost, row = self._cost(), None
        weights = self._trainer.gathered_weights()
        if self._main:
            policy = self._trainer.unwrapped
            row = self._measure(policy)
            self._export(policy, weights, self._config.out, cost, row)
            self._states.clear()
            if row is not None:
                logger.info(
                    "%s: held-out win rate %s at KL %s nats",
                    self._config.out, row.win_rate, row.kl_nats,
                )  # fmt: skip
        self._trainer.accelerator.wait_for_everyone()
        return Finished(self._config.out, row, cost)

    def _check_data(self) -> list[str]:
        cache, objective = self._assets.cache, self._objective
        warnings = cache.warn_about(getattr(objective, "num_samples", None))
        tied = cache.tied_share()
        if objective.strict_order and tied > TIED_SHARE:
            others = [n for n in OBJECTIVES if not objective_type(n).strict_order]
            text = (
                f"{tied:.0%} of the cached pairs of a prompt have equal rewards, but "
                f"{objective.title} assumes a strict order; {', '.join(others)} handle ties"
            )
            logger.warning(text)
            warnings.append(text)
        return warnings

    def _make_trainer(self) -> Trainer:
        config, assets = self._config, self._assets
        assets.reward  # noqa: B018  a reward model that does not load must fail before training
        policy = assets.fresh_policy()
        if config.lora_rank is not None:
            policy = _with_lora(policy, config)
        if config.gradient_checkpointing:
            policy.enable_input_require_grads()
            policy.gradient_checkpointing_enable({"use_reentrant": False})
            policy.train()  # transformers checkpoints in training mode only; the models have no dropout
        draw = self._objective.draws.cached
        warm_start = None
        if config.warm_start_steps:
            own = getattr(self._objective, "num_samples", config.warm_start_num_samples)
            warm_start = BonSft(num_samples=own)
        trainer = Trainer(
            policy,
            assets.reference,
            assets.tokenizer,
            assets.reward,
            assets.cache,
            self._objective,
            TrainerOptions.of(config, self._learning_rate),
            self._generator,
            warm_start,
        )
        if trainer.sharded and config.lora_rank is not None:
            raise InvalidInputError(
                "a LoRA cannot be merged from shards; train it with DDP", field="lora_rank"
            )
        if draw is not None and draw.ref_logprob:
            with trainer.accelerator.main_process_first():
                ensure_reference_logprobs(
                    assets.cache, assets.reference, assets.tokenizer,
                    revision=str(self._identity["policy_revision"]),
                    temperature=config.temperature,
                )  # fmt: skip
        return trainer

    @property
    def _learning_rate(self) -> float:
        return self._config.learning_rate or self._objective.peak_learning_rate()

    def _make_generator(self) -> Generator:
        config = self._config
        if config.generation == "vllm":
            from training.rollouts.vllm_generator import VllmGenerator

            # Several updates from one batch need the log-probabilities it was drawn with.
            drawn_with = self._objective.draws.updates > 1
            return VllmGenerator(config.policy, self._assets.tokenizer, config, logprobs=drawn_with)
        return TransformersGenerator(
            self._assets.tokenizer, config.max_new_tokens, config.temperature
        )

    def _loop(self) -> None:
        """A step, a row of history, now and then a resumable state."""
        trainer, config = self._trainer, self._config
        self._history = self._resume()
        begun, total = time.perf_counter(), trainer.total_steps
        title = f"{self._objective.title} {self._objective.label}"
        with ProgressBar(title, total, done=len(self._history)) as progress:
            for step in range(len(self._history), total):
                metrics = trainer.step(step)
                self._check_kl(step, metrics.kl_nats)
                self._history.append(asdict(metrics))
                progress.advance(1, _facts(metrics))
                if (step + 1) % config.checkpoint_every == 0 or step + 1 == total:
                    if metrics.kl_nats is None:
                        self._check_kl(step, trainer.kl_from_reference())
                    if step + 1 < total:
                        self._states.save(
                            step + 1, {"identity": self._identity, "history": self._history}
                        )
        logger.info("trained %d steps in %.0f s", total, time.perf_counter() - begun)

    def _check_kl(self, step: int, kl: float | None) -> None:
        if kl is not None and not kl <= self._config.max_kl:
            raise DivergedError(
                f"step {step}: {kl:.1f} nats from the reference policy, over --max-kl "
                f"{self._config.max_kl:g}"
            )

    def _resume(self) -> list[dict[str, Any]]:
        state = self._states.newest()
        if state is None:
            return []
        wanted, recorded = self._identity, state.run["identity"]
        if not is_same_output(
            self._states.directory, recorded, wanted, replace=self._config.replace
        ):
            if self._main:
                self._states.clear()
            return []
        self._states.load(state)
        history = list(state.run["history"])
        logger.info("resuming after step %d", len(history))
        return history

    def _stopped(self, error: DivergedError) -> DivergedError:
        """Export the last good state, and say where it is."""
        state = self._states.newest()
        advice = "lower --learning-rate or raise the weight of the KL"
        if state is None or state.run["identity"] != self._identity:
            return DivergedError(
                f"the run diverged at {error}; no earlier state was kept; {advice}"
            )
        self._states.load(state)
        self._trainer.accelerator.wait_for_everyone()  # until all have read what is removed below
        self._history = list(state.run["history"])
        out = self._config.out.with_name(f"{self._config.out.name}.step{len(self._history)}")
        weights = self._trainer.gathered_weights()
        if self._main:
            self._export(self._trainer.unwrapped, weights, out, self._cost(), None)
            self._states.clear()  # the same settings would walk the same way again
        return DivergedError(
            f"the run diverged at {error}; the last good checkpoint, after {len(self._history)} "
            f"steps, is {out}; {advice}"
        )

    def _measure(self, policy: Any) -> MethodRow | None:
        if not self._assets.heldout:
            return None
        if self._trainer.sharded:
            logger.warning(
                "held-out figures are not measured under FSDP; run `evaluate` on the result"
            )
            return None
        return _heldout_row(self._name, policy, self._assets, self._on_measured)

    def _cost(self) -> dict[str, Any]:
        """What the run took; cached samples were paid for once, by ``sample``."""

        def total(*names: str) -> float:
            return float(sum(row[name] for row in self._history for name in names))

        return {
            "steps": len(self._history),
            "samples_drawn": round(total("samples_drawn")),
            "tokens_drawn": round(total("tokens_drawn")),
            "sequences_trained": round(total("sequences_trained")),
            "sample_seconds": round(total("sample_s", "score_s"), 2),
            "training_seconds": round(total("sample_s", "score_s", "learn_s"), 2),
            "processes": self._trainer.accelerator.num_processes,
        }

    def _export(
        self,
        policy: Any,
        weights: Mapping[str, Any] | None,
        out: Path,
        cost: Mapping[str, Any],
        row: MethodRow | None,
    ) -> None:
        cache = self._assets.cache
        trained = Trained(
            name=self._name,
            config=self._config,
            learning_rate=self._learning_rate,
            objective=self._objective,
            identity=self._identity,
            history=self._history,
            cost=cost,
            row=row,
            cache={
                "prompts": len(cache),
                "smallest_M": cache.smallest,
                "warnings": self._warnings,
            },
        )
        export_checkpoint(out, policy, weights, self._assets.tokenizer, trained)


def _with_lora(policy: Any, config: TrainConfig) -> Any:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.lora_rank or 0,
        lora_alpha=config.lora_alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(config.seed)
    return get_peft_model(policy, lora)


def _facts(metrics: StepMetrics) -> str:
    facts = [f"loss {metrics.loss:.3f}"]
    if metrics.phase == "warm-start":
        facts.insert(0, "warm start")
    if metrics.reward is not None and metrics.log_cdf is not None:
        facts.append(f"reward {metrics.reward:+.2f}, log F {metrics.log_cdf:.3f}")
    if metrics.kl_nats is not None:
        facts.append(f"KL {metrics.kl_nats:.2f} nats")
    return ", ".join([*facts, f"gradient {metrics.grad_norm:.2f}"])
