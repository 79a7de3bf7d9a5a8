"""The ``evaluate`` command: a table of held-out figures, their JSON record and a frontier plot."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.table import Table

from training.cache.metadata import check_made_with
from training.cache.open_columns import source_digest
from training.cache.reward_cache import RewardCache
from training.configs import EvaluateConfig
from training.evaluation.captured import (
    Kind,
    ReferenceSamples,
    ReferenceSets,
    check_enough_samples,
    measure_captured_nats,
    samples_of_cache,
    samples_of_measurement,
)
from training.evaluation.measure import Measurer, PromptSamples
from training.evaluation.rows import evaluation_rows, figures_by_prompt, gold_peak_of
from training.outputs.identity import read_json_record
from training.rollouts.batch_size import measuring_batch
from training.rollouts.load_policy import load_policy
from vbon.errors import DataError
from vbon.maths.gold_peak import GoldPeak
from vbon.maths.intervals import MeanInterval
from vbon.prompt_files import encode_prompts, read_prompt_file
from vbon.rewards import RewardModel
from vbon.rewards.deaths import open_unsupervised
from vbon.storage.atomic import replacing_directory, write_errors, write_json
from vbon.storage.checkpoints import Checkpoint, check_checkpoint
from vbon.storage.evaluation_record import PER_PROMPT, CapturedNats, MethodRow
from vbon.storage.locks import sole_writer
from vbon.storage.provenance import provenance
from vbon.storage.stop_tokens import find_extra_stop_ids, stop_identity
from vbon.storage.training_record import read_training_record
from vbon.terminal import table_console
from vbon.work_report import MEASURED_ANSWERS, foresee_work

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
        found = _kept(config, inputs.fingerprint) or _measure(config, inputs)
    rows, num_prompts = found.rows, found.num_prompts
    console = table_console()
    console.print(evaluation_table(rows, config.num_samples, num_prompts, config.temperature))
    if found.gold_peak is not None:
        console.print(str(found.gold_peak), highlight=False, markup=False)
    if config.captured_nats:
        console.print(captured_table(rows, config.num_samples))
    for difference in _differences(config):
        logger.warning("%s", difference)
    files = (RECORD, *_beside_record(config))
    console.print(", ".join(str(config.out / name) for name in files))


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
        if config.cache is not None:
            self.fingerprint["cache_sha256"] = self._checked_cache(config.cache)

    def _checked_cache(self, cache: Path) -> str:
        """The digest of a reward cache, after checking that it was made with these models and settings."""
        if not cache.is_file():
            raise DataError(f"reward cache {cache} does not exist; make it with `vbon sample`")
        config = self.fingerprint["config"]
        revisions = self.fingerprint["revisions"]
        wanted = {
            "policy_revision": revisions["reference"],
            "reward_revision": revisions["reward"],
            "missing_eos_reward": config.get("missing_eos_reward"),
            **{name: config[name] for name in ("max_new_tokens", "temperature")},
        }
        check_made_with(cache, wanted, self.fingerprint.get("eos_token_ids"))
        return source_digest(cache)[:16]


def _open_reward(spec: str, config: EvaluateConfig) -> RewardModel:
    return open_unsupervised(
        spec, trust_remote_code=config.trust_remote_code, batch_size=config.reward_batch_size
    )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The results of an evaluation; the peak is ``None`` without a gold reward model."""

    rows: list[MethodRow]
    num_prompts: int
    gold_peak: GoldPeak | None


def _kept(config: EvaluateConfig, fingerprint: dict[str, Any]) -> Evaluation | None:
    """The results of an earlier run with the same inputs, or ``None``.

    Inputs are compared by content, not by modification time.
    """
    record = read_json_record(config.out / RECORD)
    if record is None or any(record.get(name) != value for name, value in fingerprint.items()):
        return None
    if not all((config.out / name).is_file() for name in _beside_record(config)):
        return None
    if not all(r.startswith("sha256:") for r in fingerprint["revisions"].values()):
        return None  # a Python function or a remote server may have changed without notice
    rows = [MethodRow.model_validate(row) for row in record["rows"]]
    if any(row.kl_kind == "Rao-Blackwellised" and row.productive_share is None for row in rows):
        return None  # measured before there was a productive share
    if rows[0].gold is not None and "gold_peak" not in record:
        return None  # measured before the peak of the gold reward was
    logger.info("%s: kept, made from the same files", config.out)
    peak = TypeAdapter(GoldPeak | None).validate_python(record.get("gold_peak"))
    return Evaluation(rows, int(record["prompts"]), peak)


def _measure(config: EvaluateConfig, inputs: _EvaluationInputs) -> Evaluation:
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
        batch_size=_batch_size(config, reference),
        seed=config.seed,
        extra_stop_ids=find_extra_stop_ids(inputs.policy.path, tokenizer),
        missing_eos_reward=config.missing_eos_reward,
    )
    each = config.reference_samples + len(config.checkpoints) * config.policy_samples
    foresee_work(MEASURED_ANSWERS, len(prompts) * each)
    samples = measurer.measure(reference, prompts, config.reference_samples, "reference")
    sets: ReferenceSets = {}
    if config.captured_nats:
        sets = {
            **_training_sets(config, measurer, len(prompts)),
            "heldout": samples_of_measurement(prompts, samples),
        }
        check_enough_samples(sets, config.num_samples)
    tuned: dict[str, list[PromptSamples]] = {}
    captured: dict[str, CapturedNats] = {}
    for name in config.checkpoints:
        policy = _load_checkpoint(config, measurer, name, inputs.tuned[name])
        tuned[name] = measurer.measure(policy, prompts, config.policy_samples, name)
        if sets:
            captured[name] = measure_captured_nats(
                policy,
                tokenizer,
                sets,
                num_samples=config.num_samples,
                temperature=config.temperature,
            )
    rows = [
        row.model_copy(update={"captured_nats": captured.get(row.method)})
        for row in evaluation_rows(samples, tuned, config.num_samples)
    ]
    by_prompt = figures_by_prompt(samples, tuned, config.num_samples) if config.per_prompt else None
    found = Evaluation(rows, len(prompts), gold_peak_of(samples))
    _write_results(config, inputs.fingerprint, found, by_prompt)
    return found


def _batch_size(config: EvaluateConfig, reference: Any) -> int:
    """The number of sequences at once: as given, or smaller for a large model; it changes no result."""
    if "batch_size" in config.model_fields_set:
        return config.batch_size
    return measuring_batch(reference, config.max_new_tokens, config.batch_size)


def _training_sets(
    config: EvaluateConfig, measurer: Measurer, prompts: int
) -> dict[Kind, list[ReferenceSamples]]:
    """The cached and the fresh samples of as many training prompts as there are held-out ones."""
    if config.cache is None:
        return {}
    reference, tokenizer = measurer.reference, measurer.tokenizer
    cache = RewardCache.open(
        config.cache,
        tokenizer,
        max_new_tokens=config.max_new_tokens,
        vocab_size=reference.get_input_embeddings().num_embeddings,
    )
    if not cache.has_responses:
        raise DataError(
            f"{config.cache} has rewards but no responses, so nothing can be captured of them; "
            "leave --cache out"
        )
    cached = samples_of_cache(
        cache,
        reference,
        tokenizer,
        num_samples=config.num_samples,
        temperature=config.temperature,
        prompts=prompts,
        samples=config.reference_samples,
    )
    asked = [(cache.prompt(row), cache.prompt_ids(row)) for row in range(len(cached))]
    # The choice of the best is the reward's alone; a missing gold reward must not leave samples out.
    fresh = replace(measurer, gold=None).measure(
        reference, asked, config.reference_samples, "fresh samples of the training prompts"
    )
    return {"cache": cached, "fresh": samples_of_measurement(asked, fresh)}


def _load_checkpoint(
    config: EvaluateConfig, measurer: Measurer, name: str, checkpoint: Checkpoint
) -> Any:
    path = config.checkpoints[name]
    policy, tokenizer = _load(path, checkpoint, config)
    if tokenizer.get_vocab() != measurer.tokenizer.get_vocab():
        raise DataError(
            f"{path} and {config.policy} have different tokenizers, so the KL between them is undefined"
        )
    return policy


def _load(path: str, checkpoint: Checkpoint, config: EvaluateConfig) -> tuple[Any, Any]:
    policy, tokenizer, _ = load_policy(
        path,
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
        checkpoint=checkpoint,
    )
    return policy, tokenizer


def _beside_record(config: EvaluateConfig) -> tuple[str, ...]:
    """The files that are written with the record."""
    return (*PLOTS, PER_PROMPT) if config.per_prompt else PLOTS


def _write_results(
    config: EvaluateConfig,
    fingerprint: dict[str, Any],
    found: Evaluation,
    by_prompt: dict[str, dict[str, list[float]]] | None,
) -> None:
    """Write the record and what is beside it; earlier files stay until all new ones are on disk.

    Raises:
        ExportError: the file system reported an error.
    """
    from training.evaluation.plot import draw_frontier

    record = {
        **provenance(fingerprint["config"]),
        **fingerprint,
        "prompts": found.num_prompts,
        "warnings": _differences(config),
        "rows": [row.model_dump() for row in found.rows],
        "gold_peak": None if found.gold_peak is None else asdict(found.gold_peak),
    }
    staging = config.out / STAGING
    with replacing_directory(staging) as directory:
        draw_frontier(found.rows, config.num_samples, directory)
        if by_prompt is not None:
            write_json(directory / PER_PROMPT, by_prompt)
        write_json(directory / RECORD, record)
    with write_errors(config.out):
        # The record is removed first and renamed last, since its presence marks the plots as current.
        (config.out / RECORD).unlink(missing_ok=True)
        for name in (*_beside_record(config), RECORD):
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


def captured_table(rows: list[MethodRow], num_samples: int) -> Table:
    """The table of captured nats to print: one line per checkpoint, each figure with its 95% interval."""
    found = [(row.method, row.captured_nats) for row in rows if row.captured_nats is not None]
    most = f"{found[0][1].most:.3f}" if found else "-"
    table = Table(
        title=f"Captured nats of best-of-{num_samples}, at most {most}; mean [95% interval over prompts]",
        caption="How much more likely the answers of best-of-N are under the checkpoint than under the "
        "reference, in nats. Training cache far above fresh samples: the cache was memorised. Fresh samples "
        "far above held-out prompts: too few prompts. Fresh samples low: too little capacity or training.",
    )
    for column in (
        "method",
        "training cache",
        "fresh samples",
        "cache - fresh",
        "held-out prompts",
    ):
        table.add_column(column, justify="left" if column == "method" else "right")
    for method, nats in found:
        figures = (nats.cache, nats.fresh, nats.memorised, nats.heldout)
        table.add_row(method, *("-" if one is None else str(one) for one in figures))
    return table


def _kl_text(row: MethodRow) -> str:
    if row.kl_kind == "upper bound":
        return f"<= {row.kl_nats.mean:.3f}"
    return "0" if row.kl_kind == "zero" else str(row.kl_nats)


def _interval_text(value: MeanInterval | None) -> str:
    if value is None:
        return "-"
    return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"
