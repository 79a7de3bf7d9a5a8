"""The ``evaluate`` command: a table of held-out figures, their JSON record and a frontier plot."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from training.configs import EvaluateConfig
from training.evaluation.measure import Measurer, PromptSamples
from training.evaluation.rows import evaluation_rows
from training.outputs.identity import read_json_record
from training.rollouts.load_policy import load_policy
from training.rollouts.stop_tokens import find_extra_stop_ids, stop_identity
from vbon.errors import DataError
from vbon.maths.intervals import MeanInterval
from vbon.prompt_files import encode_prompts, read_prompt_file
from vbon.prompts import Prompt
from vbon.rewards import RewardModel, open_reward_model
from vbon.storage.atomic import replacing_directory, write_errors, write_json
from vbon.storage.checkpoints import Checkpoint, check_checkpoint
from vbon.storage.evaluation_record import MethodRow
from vbon.storage.locks import sole_writer
from vbon.storage.provenance import provenance
from vbon.storage.training_record import read_training_record
from vbon.terminal import table_console

logger = logging.getLogger(__name__)

RECORD, PLOTS = "evaluation.json", ("frontier.png", "frontier.svg")
STAGING = ".new"


def evaluate_checkpoints(config: EvaluateConfig) -> None:
    """Measure all policies, write the results and print the table.

    Results that an earlier run measured from exactly the same files are kept and only printed.

    Raises:
        CheckpointError, DataError, RewardError, ExportError.
    """
    with sole_writer(config.out):
        inputs = _EvaluationInputs(config)
        rows, num_prompts = _kept_rows(config, inputs.fingerprint) or _measure(config, inputs)
    console = table_console()
    console.print(evaluation_table(rows, config.num_samples, num_prompts, config.temperature))
    for difference in _differences(config):
        logger.warning("%s", difference)
    console.print(", ".join(str(config.out / name) for name in (RECORD, *PLOTS)))


def _differences(config: EvaluateConfig) -> list[str]:
    """The differences between this evaluation and the training of each checkpoint, in words."""
    found = []
    for name, path in config.checkpoints.items():
        record = read_training_record(path)
        if record is None:
            continue
        told = record.sampling_differences(config.max_new_tokens, config.temperature)
        own = record.settings.get("missing_eos_reward")
        if own != config.missing_eos_reward:
            told.append(
                f"missing_eos_reward is {config.missing_eos_reward}, but the checkpoint was trained and "
                f"measured with {own}"
            )
        if told:
            found.append(f"{name}: {'; '.join(told)}. Its figures here are not those of its card")
    return found


class _EvaluationInputs:
    """The checked inputs of an evaluation; no weights are loaded yet.

    Attributes:
        fingerprint: the settings, revisions and checksums that determine the results.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        # The prompts come first, because checking large models takes minutes.
        file = read_prompt_file(
            config.prompts, column=config.prompt_column, encoding=config.encoding
        )
        logger.info("%s", file.describe(keeps_duplicates=False))
        self.prompts = file.distinct()
        self.policy = check_checkpoint(config.policy, "causal-lm")
        self.reward = _open_reward(config.reward, config)
        self.gold = _open_reward(config.gold, config) if config.gold is not None else None
        self.tuned = {n: check_checkpoint(p, "causal-lm") for n, p in config.checkpoints.items()}
        self.fingerprint: dict[str, Any] = {
            "config": config.model_dump(mode="json"),
            "revisions": {
                "reference": self.policy.revision,
                "reward": self.reward.revision,
                **({} if self.gold is None else {"gold": self.gold.revision}),
                **{name: tuned.revision for name, tuned in self.tuned.items()},
            },
            "prompts_sha256": file.sha256,
            **stop_identity(self.policy.path),
        }


def _open_reward(spec: str, config: EvaluateConfig) -> RewardModel:
    return open_reward_model(
        spec, trust_remote_code=config.trust_remote_code, batch_size=config.reward_batch_size
    )


def _kept_rows(
    config: EvaluateConfig, fingerprint: dict[str, Any]
) -> tuple[list[MethodRow], int] | None:
    """The rows and number of prompts of an earlier run with the same inputs, or ``None``.

    Inputs are compared by content, not by modification time.
    """
    record = read_json_record(config.out / RECORD)
    if record is None or any(record.get(name) != value for name, value in fingerprint.items()):
        return None
    if not all((config.out / name).is_file() for name in PLOTS):
        return None
    if not all(r.startswith("sha256:") for r in fingerprint["revisions"].values()):
        return None  # a Python function or a remote server may have changed without notice
    rows = [MethodRow.model_validate(row) for row in record["rows"]]
    if any(row.kl_kind == "Rao-Blackwellised" and row.productive_share is None for row in rows):
        return None  # measured before there was a productive share
    logger.info("%s: kept, made from the same files", config.out)
    return rows, int(record["prompts"])


def _measure(config: EvaluateConfig, inputs: _EvaluationInputs) -> tuple[list[MethodRow], int]:
    """Sample and score the reference and every checkpoint, and write the results."""
    reference, tokenizer = _load(config.policy, inputs.policy, config)
    for model in (inputs.reward, inputs.gold):
        if model is not None:
            model.load()
    prompts = encode_prompts(tokenizer, inputs.prompts)
    measurer = Measurer(
        tokenizer=tokenizer,
        reference=reference,
        reward=inputs.reward,
        gold=inputs.gold,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        batch_size=config.batch_size,
        seed=config.seed,
        extra_stop_ids=find_extra_stop_ids(inputs.policy.path, tokenizer),
        missing_eos_reward=config.missing_eos_reward,
    )
    samples = measurer.measure(reference, prompts, config.reference_samples, "reference")
    tuned = {
        name: _measure_checkpoint(config, measurer, name, inputs.tuned[name], prompts)
        for name in config.checkpoints
    }
    rows = evaluation_rows(samples, tuned, config.num_samples)
    _write_results(config, inputs.fingerprint, rows, len(prompts))
    return rows, len(prompts)


def _measure_checkpoint(
    config: EvaluateConfig,
    measurer: Measurer,
    name: str,
    checkpoint: Checkpoint,
    prompts: Sequence[tuple[Prompt, list[int]]],
) -> list[PromptSamples]:
    path = config.checkpoints[name]
    policy, tokenizer = _load(path, checkpoint, config)
    if tokenizer.get_vocab() != measurer.tokenizer.get_vocab():
        raise DataError(
            f"{path} and {config.policy} have different tokenizers, so the KL between them is undefined"
        )
    return measurer.measure(policy, prompts, config.policy_samples, name)


def _load(path: str, checkpoint: Checkpoint, config: EvaluateConfig) -> tuple[Any, Any]:
    policy, tokenizer, _ = load_policy(
        path,
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
        checkpoint=checkpoint,
    )
    return policy, tokenizer


def _write_results(
    config: EvaluateConfig, fingerprint: dict[str, Any], rows: list[MethodRow], num_prompts: int
) -> None:
    """Write the record and both plots; earlier files stay until all three new ones are on disk.

    Raises:
        ExportError: the file system reported an error.
    """
    from training.evaluation.plot import draw_frontier

    record = {
        **provenance(fingerprint["config"]),
        **fingerprint,
        "prompts": num_prompts,
        "warnings": _differences(config),
        "rows": [row.model_dump() for row in rows],
    }
    staging = config.out / STAGING
    with replacing_directory(staging) as directory:
        draw_frontier(rows, config.num_samples, directory)
        write_json(directory / RECORD, record)
    with write_errors(config.out):
        # The record is removed first and renamed last, since its presence marks the plots as current.
        (config.out / RECORD).unlink(missing_ok=True)
        for name in (*PLOTS, RECORD):
            (staging / name).replace(config.out / name)
    shutil.rmtree(staging, ignore_errors=True)


def evaluation_table(
    rows: list[MethodRow], num_samples: int, num_prompts: int, temperature: float = 1.0
) -> Table:
    """The table to print: one line per method, each figure with its 95% interval."""
    at = ""
    if temperature != 1:
        at = f" All samples, and both sides of the KL, are at temperature {temperature:g}."
    table = Table(
        title=f"{num_prompts} held-out prompts; mean [95% interval over prompts]",
        caption="Equivalent n: the n of best-of-n with this win rate. Productive share: the KL of "
        "best-of-n at this win rate, divided by the KL spent; 0 for a policy that moved for nothing. "
        "KL in nats: an upper bound for best-of-n, Rao-Blackwellised for tuned policies. Best-of-n "
        "selects on the reward, so its reward is flattering; gold is never used to select or train. "
        f"Cut off: samples that the token limit ended.{at}",
    )
    for column in (
        "method",
        "equivalent n",
        "productive share",
        "KL",
        "win rate",
        "reward",
        "gold win rate",
        "gold reward",
        "cut off",
    ):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        share = row.truncated_share
        table.add_row(
            f"best-of-{row.n}" if row.method == "best-of-n" else row.method,
            str(row.n) if row.equivalent_n is None else _interval_text(row.equivalent_n),
            _interval_text(row.productive_share),
            _kl_text(row),
            str(row.win_rate),
            _interval_text(row.reward),
            _interval_text(row.gold_win_rate),
            _interval_text(row.gold),
            "-" if share is None else f"{share:.0%}",
            style="bold" if row.n == num_samples or row.kl_kind == "Rao-Blackwellised" else "",
        )
    return table


def _kl_text(row: MethodRow) -> str:
    if row.kl_kind == "upper bound":
        return f"<= {row.kl_nats.mean:.3f}"
    return "0" if row.kl_kind == "zero" else str(row.kl_nats)


def _interval_text(value: MeanInterval | None) -> str:
    if value is None:
        return "-"
    return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"
