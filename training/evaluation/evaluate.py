"""``evaluate``: held-out table, JSON and frontier plot."""

from __future__ import annotations

import logging
import shutil
from typing import Any

from rich.table import Table

from training.configs import EvaluateConfig
from training.evaluation.measure import Measurer
from training.evaluation.rows import evaluation_rows
from training.outputs.identity import read_json_record
from training.rollouts.load_policy import load_policy
from vbon.errors import DataError
from vbon.maths.intervals import MeanInterval
from vbon.prompt_files import encode_prompts, read_prompts
from vbon.rewards import RewardModel, open_reward_model
from vbon.storage.atomic import replacing_directory, write_errors, write_json
from vbon.storage.checkpoints import check_checkpoint
from vbon.storage.checksums import sha256_of
from vbon.storage.evaluation_record import MethodRow
from vbon.storage.locks import sole_writer
from vbon.storage.provenance import provenance
from vbon.terminal import table_console

logger = logging.getLogger(__name__)

RESULT, PLOTS = "evaluation.json", ("frontier.png", "frontier.svg")
STAGED = ".new"


def evaluate_checkpoints(config: EvaluateConfig) -> None:
    """Measure and write, unless that was done of the very same files; print.

    Raises:
        CheckpointError, DataError, RewardError, ExportError.
    """
    with sole_writer(config.out):
        sources = _Sources(config)
        rows, prompts = _measured(config, sources.made_from) or _measure(config, sources)
    console = table_console()
    console.print(evaluation_table(rows, config.num_samples, prompts))
    console.print(", ".join(str(config.out / name) for name in (RESULT, *PLOTS)))


class _Sources:
    """What an evaluation is made from, checked; nothing heavy is loaded."""

    def __init__(self, config: EvaluateConfig) -> None:
        self.policy = check_checkpoint(config.policy, "causal-lm")
        self.reward = _open(config.reward, config)
        self.gold = _open(config.gold, config) if config.gold is not None else None
        self.tuned = {n: check_checkpoint(p, "causal-lm") for n, p in config.checkpoints.items()}
        self.prompts = read_prompts(config.prompts)
        self.made_from: dict[str, Any] = {
            "config": config.model_dump(mode="json"),
            "revisions": {
                "reference": self.policy.revision,
                "reward": self.reward.revision,
                **({} if self.gold is None else {"gold": self.gold.revision}),
                **{name: tuned.revision for name, tuned in self.tuned.items()},
            },
            "prompts_sha256": sha256_of(config.prompts),
        }


def _measured(
    config: EvaluateConfig, made_from: dict[str, Any]
) -> tuple[list[MethodRow], int] | None:
    """What an earlier evaluation of the same files found; by their content, whatever the clock said."""
    record = read_json_record(config.out / RESULT)
    if record is None or any(record.get(name) != value for name, value in made_from.items()):
        return None
    if not all((config.out / name).is_file() for name in PLOTS):
        return None
    if not all(r.startswith("sha256:") for r in made_from["revisions"].values()):
        return None  # a function or a server may have changed without our knowing
    logger.info("%s: kept, made from the same files", config.out)
    return [MethodRow.model_validate(row) for row in record["rows"]], int(record["prompts"])


def _measure(config: EvaluateConfig, sources: _Sources) -> tuple[list[MethodRow], int]:
    reference, tokenizer, _ = load_policy(
        config.policy,
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
        checkpoint=sources.policy,
    )
    for model in (sources.reward, sources.gold):
        if model is not None:
            model.load()
    prompts = encode_prompts(tokenizer, sources.prompts)
    measurer = Measurer(
        tokenizer=tokenizer,
        reference=reference,
        reward=sources.reward,
        gold=sources.gold,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    samples = measurer.measure(reference, prompts, config.reference_samples, "reference")
    tuned = {}
    for name, path in config.checkpoints.items():
        policy, policy_tokenizer, _ = load_policy(
            path,
            dtype=config.dtype,
            trust_remote_code=config.trust_remote_code,
            checkpoint=sources.tuned[name],
        )
        if policy_tokenizer.get_vocab() != tokenizer.get_vocab():
            raise DataError(
                f"{path} and {config.policy} have different tokenizers; KL is undefined"
            )
        tuned[name] = measurer.measure(policy, prompts, config.policy_samples, name)
    rows = evaluation_rows(samples, tuned, config.num_samples)
    _write(config, sources.made_from, rows, len(prompts))
    return rows, len(prompts)


def _write(
    config: EvaluateConfig, made_from: dict[str, Any], rows: list[MethodRow], prompts: int
) -> None:
    """All three files, once all are whole and on disk; until then those of before stay.

    Raises:
        ExportError: the file system refused.
    """
    from training.evaluation.plot import draw_frontier

    record = {
        **provenance(made_from["config"]),
        **made_from,
        "prompts": prompts,
        "rows": [row.model_dump() for row in rows],
    }
    staged = config.out / STAGED
    with replacing_directory(staged) as directory:
        draw_frontier(rows, config.num_samples, directory)
        write_json(directory / RESULT, record)
    with write_errors(config.out):
        (config.out / RESULT).unlink(missing_ok=True)  # it vouches for the plots beside it
        for name in (*PLOTS, RESULT):
            (staged / name).replace(config.out / name)
    shutil.rmtree(staged, ignore_errors=True)


def _open(spec: str, config: EvaluateConfig) -> RewardModel:
    return open_reward_model(
        spec, trust_remote_code=config.trust_remote_code, batch_size=config.reward_batch_size
    )


def evaluation_table(rows: list[MethodRow], num_samples: int, num_prompts: int) -> Table:
    """One line a method; every figure with its 95% interval."""
    table = Table(
        title=f"{num_prompts} held-out prompts; mean [95% interval over prompts]",
        caption="KL in nats: best-of-n's is an upper bound, tuned policies' is Rao-Blackwellised. "
        "Best-of-n selects on the reward, so that reward flatters it; gold never selects or trains.",
    )
    columns = ("method", "KL", "win rate", "reward", "gold win rate", "gold reward")
    for column in columns:
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        label = f"best-of-{row.n}" if row.method == "best-of-n" else row.method
        style = "bold" if row.n == num_samples or row.kl_kind == "Rao-Blackwellised" else ""
        table.add_row(
            label, _kl(row), str(row.win_rate), _two(row.reward), _maybe(row.gold_win_rate),
            _maybe(row.gold), style=style,
        )  # fmt: skip
    return table


def _kl(row: MethodRow) -> str:
    if row.kl_kind == "upper bound":
        return f"<= {row.kl_nats.mean:.3f}"
    return "0" if row.kl_kind == "zero" else str(row.kl_nats)


def _two(value: MeanInterval) -> str:
    return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"


def _maybe(value: MeanInterval | None) -> str:
    return "-" if value is None else _two(value)
