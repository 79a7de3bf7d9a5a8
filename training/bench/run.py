"""``bench``: samples trained a second, by this trainer and by TRL's ``RLOOTrainer``, in one run.

Both start from the same policy, with the same reward model, prompts, batch, length, temperature,
learning rate, clipping, type, threads and number of steps, and repeats of the two alternate, so that a
machine that speeds up or slows down does so for both. Ours is ``kl-rl``, TRL's is the same beta; they
are not the same estimator (ours differentiates the exact KL of every position, TRL pays a sampled one).
The first step of every repeat is left out. See ``bench_trl`` for what of TRL is not as it comes.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any, Literal

from rich.table import Table

from training.bench.steps import Step, now
from training.configs import BenchConfig, TrainConfig
from vbon.errors import VbonError
from vbon.maths.statistics import Spread, spread
from vbon.storage.atomic import write_json
from vbon.storage.provenance import provenance
from vbon.terminal import table_console

logger = logging.getLogger(__name__)

Side = Literal["ours", "trl"]
TITLES: dict[Side, str] = {"ours": "this project, kl-rl", "trl": "TRL, RLOOTrainer"}


Repeat = Sequence[Step]


def rate(repeat: Repeat, unit: Literal["samples", "tokens"]) -> float:
    """Samples or tokens a second over a repeat."""
    return sum(getattr(step, unit) for step in repeat) / sum(step.seconds for step in repeat)


def ratios(ours: Sequence[Repeat], trl: Sequence[Repeat]) -> dict[str, Spread]:
    """Ours over TRL's rate, a pair of neighbouring repeats each: of samples and of tokens.

    Raises:
        ValueError: on unequal numbers of repeats, or none.
    """
    pairs = list(zip(ours, trl, strict=True))
    return {
        f"{unit}_per_second": spread([rate(a, unit) / rate(b, unit) for a, b in pairs])
        for unit in ("samples", "tokens")
    }


def amount(repeats: Sequence[Repeat]) -> dict[str, float]:
    """What was trained on: samples, tokens, and tokens a sample."""
    steps = [step for repeat in repeats for step in repeat]
    samples, tokens = sum(s.samples for s in steps), sum(s.tokens for s in steps)
    return {"samples": samples, "tokens": tokens, "response_tokens": tokens / samples}


def side_figures(repeats: Sequence[Repeat]) -> dict[str, Any]:
    """One side's figures over its repeats, for JSON: spreads of rates and of seconds a step."""

    def a_step(name: str) -> dict[str, float | int]:
        means = [sum(getattr(s, name) for s in repeat) / len(repeat) for repeat in repeats]
        return spread(means).as_dict()

    return {
        **amount(repeats),
        "samples_per_second": spread([rate(r, "samples") for r in repeats]).as_dict(),
        "tokens_per_second": spread([rate(r, "tokens") for r in repeats]).as_dict(),
        **{name: a_step(name) for name in ("seconds", "sample_s", "score_s", "learn_s")},
        "repeats": [[asdict(step) for step in repeat] for repeat in repeats],
    }


def result_of(measured: Mapping[Side, Sequence[Repeat]]) -> dict[str, Any]:
    """Both sides, their ratios, and whether they trained on equally many samples."""
    counts = {side: amount(repeats)["samples"] for side, repeats in measured.items()}
    return {
        "sides": {side: side_figures(repeats) for side, repeats in measured.items()},
        "ratio": {
            name: value.as_dict() for name, value in ratios(**dict(measured.items())).items()
        },
        "same_samples": len(set(counts.values())) == 1,
    }


def table_of(result: Mapping[str, Any]) -> Table:
    """Medians and [smallest, largest] of the repeats."""
    repeats = len(result["sides"]["ours"]["repeats"])
    table = Table(title=rf"median \[smallest, largest] of {repeats} repeats each")
    for name in ("", "samples/s", "tokens/s", "samples", "tokens a sample", "s a step",
                 "sampling", "scoring", "learning"):  # fmt: skip
        table.add_column(name, justify="left" if not name else "right")
    for side, title in TITLES.items():
        figures = result["sides"][side]
        table.add_row(
            title,
            _shown(figures["samples_per_second"], 1),
            _shown(figures["tokens_per_second"], 0),
            f"{figures['samples']:.0f}",
            f"{figures['response_tokens']:.1f}",
            _shown(figures["seconds"], 3),
            *(f"{figures[name]['median']:.3f}" for name in ("sample_s", "score_s", "learn_s")),
        )
    table.add_section()
    ratio = result["ratio"]
    table.add_row(
        "ratio",
        _shown(ratio["samples_per_second"], 2),
        _shown(ratio["tokens_per_second"], 2),
        *[""] * 6,
    )
    return table


def _shown(value: Mapping[str, float], digits: int) -> str:
    median, low, high = (f"{value[name]:.{digits}f}" for name in ("median", "min", "max"))
    return f"{median} [{low}, {high}]"


def run_bench(config: BenchConfig) -> dict[str, Any]:
    """Measure, print the table, write ``--json``; the result is what is written.

    Raises:
        VbonError: TRL is not installed.
        CheckpointError, DataError, RewardError, ExportError.
    """
    try:
        version = metadata.version("trl")
    except metadata.PackageNotFoundError as error:
        raise VbonError(
            "bench compares with TRL, which is not installed: pip install trl"
        ) from error
    import torch

    from training.bench.trl import trl_steps
    from training.train.inputs import Assets

    common = _train_config(config)
    assets = Assets(common, 0, 0, 0)
    runs: dict[Side, Callable[[int], list[Step]]] = {
        "ours": lambda seed: _our_steps(config, common, assets, seed),
        "trl": lambda seed: trl_steps(config, assets, seed),
    }
    measured: dict[Side, list[Repeat]] = {"ours": [], "trl": []}
    for repeat in range(config.repeats):
        # Who goes first alternates.
        order: list[Side] = ["ours", "trl"] if repeat % 2 == 0 else ["trl", "ours"]
        for side in order:
            gc.collect()
            steps = runs[side](config.seed + repeat)[1:]
            measured[side].append(steps)
            logger.info("%s: %.1f samples/s", TITLES[side], rate(steps, "samples"))
    result = {
        **provenance(config.model_dump(mode="json")),
        "trl": version,
        "threads": torch.get_num_threads(),
        "device": str(assets.reference.device),
        **result_of(measured),
    }
    _report(result)
    if config.json_file is not None:
        write_json(config.json_file, result)
    return result


def _report(result: Mapping[str, Any]) -> None:
    console = table_console()
    console.print(table_of(result))
    config = result["config"]
    console.print(
        f"{config['prompts_per_step']} x {config['samples_per_prompt']} samples a step, "
        f"{config['steps'] - 1} steps counted, at most {config['max_new_tokens']} tokens, "
        f"{config['dtype']}, {result['threads']} threads, {result['device']}, TRL {result['trl']}"
    )
    if not result["same_samples"]:
        logger.warning("the two sides did not train on equally many samples")


def _train_config(config: BenchConfig) -> TrainConfig:
    """The settings of ``kl-rl`` that both sides share."""
    from training.objectives.config import train_config_type

    shared = config.model_dump(exclude={"repeats", "json_file"})
    batch = config.prompts_per_step * config.samples_per_prompt
    return train_config_type("kl-rl")(
        **shared, micro_batch_size=batch, warmup_steps=0, warm_start_steps=0, heldout=None
    )


def _our_steps(config: BenchConfig, common: TrainConfig, assets: Any, seed: int) -> list[Step]:
    from training.objectives.config import objective_of
    from training.rollouts.generator import TransformersGenerator
    from training.train.trainer import Trainer, TrainerOptions

    trainer = Trainer(
        assets.fresh_policy(),
        assets.reference,
        assets.tokenizer,
        assets.reward,
        assets.cache,
        objective_of("kl-rl", common),
        TrainerOptions.of(common, config.learning_rate, seed),
        TransformersGenerator(assets.tokenizer, config.max_new_tokens, config.temperature),
    )
    steps = []
    begun = now()
    for index in range(config.steps):
        metrics = trainer.step(index)
        ended = now()
        steps.append(
            Step(
                ended - begun, metrics.samples_drawn, metrics.tokens_drawn,
                metrics.sample_s, metrics.score_s, metrics.learn_s,
            )
        )  # fmt: skip
        begun = ended
    return steps
