"""The ``bench`` command: training speed of this trainer and of TRL's ``RLOOTrainer``, in one run.

Both sides use the same policy, reward model, prompts, batch size, response length, temperature,
learning rate, gradient clipping, dtype, thread count and number of steps. Their repeats alternate, so
that a machine that speeds up or slows down affects both.

Our side trains ``kl-rl`` with TRL's beta. The two estimators differ: ours differentiates the exact KL
at every position, TRL subtracts a sampled KL from the reward. The first step of every repeat is a
warm-up and is not counted. Our policy multiplies matrices by :mod:`vbon.linear_layers`, TRL's by
torch's own layers. :mod:`training.bench.trl` lists the TRL settings that are not its defaults.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from training.bench.result import SIDE_TITLES, Repeat, Side, bench_result, bench_table, rate
from training.bench.steps import Step, synchronized_time
from training.configs import BenchConfig, TrainConfig
from vbon.errors import VbonError
from vbon.storage.atomic import write_json
from vbon.storage.provenance import provenance
from vbon.terminal import table_console

if TYPE_CHECKING:
    from training.train.inputs import TrainingInputs

logger = logging.getLogger(__name__)


def run_bench(config: BenchConfig) -> dict[str, Any]:
    """Measure both sides, print the table and write ``--json``; returns the content of that file.

    Raises:
        VbonError: TRL is not installed.
        CheckpointError, DataError, RewardError, ExportError.
    """
    trl_version = _installed_trl()
    import torch

    from training.train.inputs import TrainingInputs

    shared_settings = _train_config(config)
    inputs = TrainingInputs(shared_settings, 0, 0, 0)
    result = {
        **provenance(config.model_dump(mode="json")),
        "trl": trl_version,
        "threads": torch.get_num_threads(),
        "device": str(inputs.reference.device),
        **bench_result(_measure(config, shared_settings, inputs)),
    }
    _print_result(result)
    if config.json_file is not None:
        write_json(config.json_file, result)
    return result


def _installed_trl() -> str:
    try:
        return metadata.version("trl")
    except metadata.PackageNotFoundError as error:
        raise VbonError(
            "bench compares with TRL, which is not installed: pip install trl"
        ) from error


def _measure(
    config: BenchConfig, shared_settings: TrainConfig, inputs: TrainingInputs
) -> dict[Side, list[Repeat]]:
    """The steps of every repeat of both sides; the side that goes first alternates."""
    from training.bench.trl import trl_steps

    runs: dict[Side, Callable[[int], list[Step]]] = {
        "ours": lambda seed: _our_steps(config, shared_settings, inputs, seed),
        "trl": lambda seed: trl_steps(config, inputs, seed),
    }
    measured: dict[Side, list[Repeat]] = {"ours": [], "trl": []}
    for repeat in range(config.repeats):
        order: list[Side] = ["ours", "trl"] if repeat % 2 == 0 else ["trl", "ours"]
        for side in order:
            gc.collect()
            steps = runs[side](config.seed + repeat)[1:]
            measured[side].append(steps)
            logger.info("%s: %.1f samples/s", SIDE_TITLES[side], rate(steps, "samples"))
    return measured


def _print_result(result: Mapping[str, Any]) -> None:
    console = table_console()
    console.print(bench_table(result))
    config = result["config"]
    console.print(
        f"{config['prompts_per_step']} x {config['samples_per_prompt']} samples per step, "
        f"{config['steps'] - 1} steps counted, at most {config['max_new_tokens']} tokens, "
        f"{config['dtype']}, {result['threads']} threads, {result['device']}, TRL {result['trl']}"
    )
    if not result["same_samples"]:
        logger.warning("the two sides trained on different numbers of samples")


def _train_config(config: BenchConfig) -> TrainConfig:
    """The ``kl-rl`` settings that both sides share."""
    from training.train.config import train_config_type

    shared = config.model_dump(exclude={"repeats", "json_file"})
    batch = config.prompts_per_step * config.samples_per_prompt
    return train_config_type("kl-rl")(
        **shared, micro_batch_size=batch, warmup_steps=0, warm_start_steps=0, heldout=None
    )


def _our_steps(
    config: BenchConfig, shared_settings: TrainConfig, inputs: TrainingInputs, seed: int
) -> list[Step]:
    from training.rollouts.generator import TransformersGenerator
    from training.train.config import objective_of
    from training.train.options import TrainerOptions
    from training.train.trainer import Trainer

    trainer = Trainer(
        inputs.fresh_policy(),
        inputs.reference,
        inputs.tokenizer,
        inputs.reward,
        inputs.cache,
        objective_of("kl-rl", shared_settings),
        TrainerOptions.of(shared_settings, config.learning_rate, seed),
        TransformersGenerator(
            inputs.tokenizer, config.max_new_tokens, config.temperature, inputs.extra_stop_ids
        ),
    )
    steps = []
    begun = synchronized_time()
    for index in range(config.steps):
        metrics = trainer.step(index)
        ended = synchronized_time()
        steps.append(
            Step(
                seconds=ended - begun,
                samples=metrics.samples_drawn,
                tokens=metrics.tokens_drawn,
                sample_s=metrics.sample_s,
                score_s=metrics.score_s,
                learn_s=metrics.learn_s,
            )
        )
        begun = ended
    return steps
