"""The ``bench`` command: training speed of this trainer and of TRL's ``RLOOTrainer``, in one run.

Both sides use the same policy, reward model, prompts, batch size, response length, temperature,
learning rate, gradient clipping, dtype, thread count and number of steps. Their repeats alternate, so
that a machine that speeds up or slows down affects both.

Our side trains ``kl-rl`` with TRL's beta. The two estimators differ: ours differentiates the exact KL
at every position, TRL subtracts a sampled KL from the reward. The first step of every repeat is a
warm-up and is not counted. :mod:`training.bench.trl` lists the TRL settings that are not its defaults.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any, Literal

from rich.table import Table

from training.bench.steps import Step, synchronized_time
from training.configs import BenchConfig, TrainConfig
from vbon.errors import VbonError
from vbon.maths.intervals import MedianRange
from vbon.maths.statistics import median_range
from vbon.storage.atomic import write_json
from vbon.storage.provenance import provenance
from vbon.terminal import table_console

logger = logging.getLogger(__name__)

Side = Literal["ours", "trl"]
Repeat = Sequence[Step]
SIDE_TITLES: dict[Side, str] = {"ours": "this project, kl-rl", "trl": "TRL, RLOOTrainer"}


def rate(repeat: Repeat, unit: Literal["samples", "tokens"]) -> float:
    """Samples or tokens per second over one repeat."""
    return sum(getattr(step, unit) for step in repeat) / sum(step.seconds for step in repeat)


def ratios(ours: Sequence[Repeat], trl: Sequence[Repeat]) -> dict[str, MedianRange]:
    """Our rate divided by TRL's, for samples and for tokens.

    Each ratio compares two neighbouring repeats, so that a slow drift of the machine cancels out.

    Raises:
        ValueError: the sides have different numbers of repeats, or none.
    """
    pairs = list(zip(ours, trl, strict=True))
    return {
        f"{unit}_per_second": median_range([rate(a, unit) / rate(b, unit) for a, b in pairs])
        for unit in ("samples", "tokens")
    }


def training_volume(repeats: Sequence[Repeat]) -> dict[str, float]:
    """The samples trained on, their tokens, and the mean tokens per sample."""
    steps = [step for repeat in repeats for step in repeat]
    samples, tokens = sum(s.samples for s in steps), sum(s.tokens for s in steps)
    return {"samples": samples, "tokens": tokens, "response_tokens": tokens / samples}


def side_figures(repeats: Sequence[Repeat]) -> dict[str, Any]:
    """One side's figures over its repeats, for JSON: spreads of rates and of seconds per step."""

    def per_step(name: str) -> dict[str, float | int]:
        means = [sum(getattr(s, name) for s in repeat) / len(repeat) for repeat in repeats]
        return asdict(median_range(means))

    return {
        **training_volume(repeats),
        "samples_per_second": asdict(median_range([rate(r, "samples") for r in repeats])),
        "tokens_per_second": asdict(median_range([rate(r, "tokens") for r in repeats])),
        **{name: per_step(name) for name in ("seconds", "sample_s", "score_s", "learn_s")},
        "repeats": [[asdict(step) for step in repeat] for repeat in repeats],
    }


def bench_result(measured: Mapping[Side, Sequence[Repeat]]) -> dict[str, Any]:
    """Both sides' figures, their ratios, and whether both trained on equally many samples."""
    counts = {side: training_volume(repeats)["samples"] for side, repeats in measured.items()}
    return {
        "sides": {side: side_figures(repeats) for side, repeats in measured.items()},
        "ratio": {name: asdict(value) for name, value in ratios(**dict(measured.items())).items()},
        "same_samples": len(set(counts.values())) == 1,
    }


def bench_table(result: Mapping[str, Any]) -> Table:
    """The table to print: median and [smallest, largest] of the repeats."""
    repeats = len(result["sides"]["ours"]["repeats"])
    table = Table(title=rf"median \[smallest, largest] of {repeats} repeats each")
    columns = (
        "",
        "samples/s",
        "tokens/s",
        "samples",
        "tokens per sample",
        "s per step",
        "sampling",
        "scoring",
        "learning",
    )
    for name in columns:
        table.add_column(name, justify="left" if not name else "right")
    for side, title in SIDE_TITLES.items():
        figures = result["sides"][side]
        table.add_row(
            title,
            _median_and_range(figures["samples_per_second"], 1),
            _median_and_range(figures["tokens_per_second"], 0),
            f"{figures['samples']:.0f}",
            f"{figures['response_tokens']:.1f}",
            _median_and_range(figures["seconds"], 3),
            *(f"{figures[name]['median']:.3f}" for name in ("sample_s", "score_s", "learn_s")),
        )
    table.add_section()
    ratio = result["ratio"]
    table.add_row(
        "ratio",
        _median_and_range(ratio["samples_per_second"], 2),
        _median_and_range(ratio["tokens_per_second"], 2),
        *[""] * 6,
    )
    return table


def _median_and_range(value: Mapping[str, float], digits: int) -> str:
    median, low, high = (f"{value[name]:.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} [{low}, {high}]"


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
    config: BenchConfig, shared_settings: TrainConfig, inputs: Any
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
    config: BenchConfig, shared_settings: TrainConfig, inputs: Any, seed: int
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
        TransformersGenerator(inputs.tokenizer, config.max_new_tokens, config.temperature),
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
