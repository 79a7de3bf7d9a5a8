"""``evaluate``: held-out table, JSON and frontier plot."""

from __future__ import annotations

import logging

from rich.table import Table

from bestofn.errors import DataError
from bestofn.files import write_json
from bestofn.provenance import provenance
from bestofn.rewards import RewardModel, open_reward_model
from bestofn.statistics import Estimate
from bestofn.terminal import table_console
from training.configs import EvaluateConfig
from training.evaluation import Row, evaluation_rows
from training.measure import Measurer
from training.policies import load_policy
from training.prompts import encode_prompts, read_prompts

logger = logging.getLogger(__name__)


def evaluate_checkpoints(config: EvaluateConfig) -> None:
    """Measure, print, write.

    Raises:
        CheckpointError, DataError, RewardError, ExportError.
    """
    reference, tokenizer, checkpoint = load_policy(
        config.policy, dtype=config.dtype, trust_remote_code=config.trust_remote_code
    )
    reward = _loaded(config.reward, config)
    gold = _loaded(config.gold, config) if config.gold is not None else None
    prompts = encode_prompts(tokenizer, read_prompts(config.prompts))
    measurer = Measurer(
        tokenizer=tokenizer,
        reference=reference,
        reward=reward,
        gold=gold,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    samples = measurer.measure(reference, prompts, config.reference_samples, "reference")
    revisions = {"reference": checkpoint.revision, "reward": reward.revision}
    if gold is not None:
        revisions["gold"] = gold.revision
    tuned = {}
    for name, path in config.checkpoints.items():
        policy, policy_tokenizer, policy_checkpoint = load_policy(
            path, dtype=config.dtype, trust_remote_code=config.trust_remote_code
        )
        if policy_tokenizer.get_vocab() != tokenizer.get_vocab():
            raise DataError(
                f"{path} and {config.policy} have different tokenizers; KL is undefined"
            )
        revisions[name] = policy_checkpoint.revision
        tuned[name] = measurer.measure(policy, prompts, config.policy_samples, name)
    rows = evaluation_rows(samples, tuned, config.num_samples)
    config.out.mkdir(parents=True, exist_ok=True)
    from training.frontier import draw_frontier

    plots = draw_frontier(rows, config.num_samples, config.out)
    write_json(
        config.out / "evaluation.json",
        {
            **provenance(config.model_dump(mode="json")),
            "revisions": revisions,
            "prompts": len(prompts),
            "rows": [row.as_dict() for row in rows],
        },
    )
    console = table_console()
    console.print(evaluation_table(rows, config.num_samples, len(prompts)))
    console.print(f"{config.out / 'evaluation.json'}, {', '.join(str(plot) for plot in plots)}")


def _loaded(spec: str, config: EvaluateConfig) -> RewardModel:
    model = open_reward_model(
        spec, trust_remote_code=config.trust_remote_code, batch_size=config.reward_batch_size
    )
    model.load()
    return model


def evaluation_table(rows: list[Row], num_samples: int, num_prompts: int) -> Table:
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


def _kl(row: Row) -> str:
    if row.kl_kind == "upper bound":
        return f"<= {row.kl_nats.mean:.3f}"
    return "0" if row.kl_kind == "zero" else str(row.kl_nats)


def _two(value: Estimate) -> str:
    return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"


def _maybe(value: Estimate | None) -> str:
    return "-" if value is None else _two(value)
