"""Reads ``evaluation.json``, written by ``vbon evaluate``."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vbon.errors import DataError
from vbon.maths.gold_peak import GoldPeak
from vbon.maths.intervals import MeanInterval
from vbon.storage.json_files import read_json_file
from vbon.storage.validation import first_problem

REFERENCE_SAMPLES, POLICY_SAMPLES = 256, 64  # per prompt, unless `vbon evaluate` is told otherwise
PER_PROMPT = "per-prompt.json"  # beside evaluation.json: lists of figures by method and figure


class CapturedNats(BaseModel):
    """The captured nats of a tuned policy (``vbon.maths.captured_nats``), on up to three kinds of samples.

    Attributes:
        n: the N of best-of-N.
        most: ``log N - (N-1)/N``, which no policy exceeds.
        cache: on the samples of the reward cache that the policy was trained on.
        fresh: on fresh reference samples of the prompts of the cache.
        heldout: on reference samples of the held-out prompts.
        memorised: ``cache - fresh``, paired by prompt.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    n: int = Field(ge=2)
    most: float
    cache: MeanInterval | None = None
    fresh: MeanInterval | None = None
    heldout: MeanInterval | None = None
    memorised: MeanInterval | None = None


class MethodRow(BaseModel):
    """One method's held-out figures: the reference policy, best-of-n for one n, or a tuned policy.

    Attributes:
        method: ``reference``, ``best-of-n``, or the name of a checkpoint.
        n: best-of-n's n, otherwise 1.
        win_rate: against one reference sample, ties counted 1/2.
        kl_nats: KL from the reference policy, by the estimator named in ``kl_kind``.
        equivalent_n: the n of best-of-n that has this win rate; tuned policies only.
        productive_share: KL of best-of-n at this win rate, divided by ``kl_nats``; tuned policies only.
        captured_nats: tuned policies only, and only if asked for.
        kl_other: other estimates of the same KL, by name of the estimator.
        tokens: response length.
        unscored: number of samples without a score; they are left out of all means.
        truncated_share: share of the samples that the token limit cut off; ``None`` for best-of-n.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    method: str
    n: int = Field(ge=1)
    reward: MeanInterval
    gold: MeanInterval | None = None
    win_rate: MeanInterval
    gold_win_rate: MeanInterval | None = None
    kl_nats: MeanInterval
    kl_kind: str
    kl_other: dict[str, MeanInterval] = {}
    tokens: MeanInterval | None = None
    unscored: int = 0
    truncated_share: float | None = None
    equivalent_n: MeanInterval | None = None
    productive_share: MeanInterval | None = None
    captured_nats: CapturedNats | None = None


class EvaluationSettings(BaseModel):
    """The settings of an evaluation that tell its prompts; ``None`` if an earlier version did not."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompts: str | None = None
    prompt_column: str | None = None
    encoding: str | None = None


class EvaluationRecord(BaseModel):
    """The figures of all methods on the same held-out prompts.

    Attributes:
        config: the settings that tell the prompts, and ``prompts_sha256`` the checksum of their file.
        revisions: revisions of ``reference``, ``reward``, ``gold``, and of each checkpoint by its name.
        gold_peak: where the gold reward of best-of-n peaks; ``None`` without a gold reward model, and in
            records of earlier versions.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    created: str
    config: EvaluationSettings = EvaluationSettings()
    prompts_sha256: str | None = None
    prompts: int
    revisions: dict[str, str]
    rows: list[MethodRow]
    gold_peak: GoldPeak | None = None


def read_evaluation(file: str) -> EvaluationRecord:
    """Read an ``evaluation.json``.

    Raises:
        DataError: the file is missing, unreadable, or not an evaluation.
    """
    path = Path(file).expanduser()
    try:
        return EvaluationRecord.model_validate(read_json_file(path))
    except OSError as error:
        raise DataError(f"cannot read the evaluation {file}: {error.strerror}") from error
    except ValidationError as error:
        raise _not_an_evaluation(file, first_problem(error)) from error
    except ValueError as error:
        raise _not_an_evaluation(file, str(error)) from error


def _not_an_evaluation(file: str, problem: str) -> DataError:
    return DataError(f"{file} is not an evaluation.json of `vbon evaluate`: {problem}")
