"""What ``python -m training evaluate`` wrote, as its readers need it."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vbon.errors import DataError
from vbon.maths.intervals import MeanInterval


class MethodRow(BaseModel):
    """One method's held-out figures: the reference policy, best-of-n for one n, or a tuned policy.

    Attributes:
        method: ``reference``, ``best-of-n``, or the name of a checkpoint.
        n: best-of-n's n, otherwise 1.
        win_rate: against one reference sample, ties counted 1/2.
        kl_nats: distance from the reference, by the estimator that ``kl_kind`` names.
        kl_other: other estimators of the same distance, by name.
        tokens: answer length.
        unscored: samples that the reward model could not score; they are left out of all means.
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


class EvaluationRecord(BaseModel):
    """All methods on the same held-out prompts.

    Attributes:
        revisions: of ``reference``, ``reward``, ``gold``, and each checkpoint by its name.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    created: str
    prompts: int
    revisions: dict[str, str]
    rows: list[MethodRow]


def read_evaluation(file: str) -> EvaluationRecord:
    """An ``evaluation.json``.

    Raises:
        DataError: it is missing, or is none.
    """
    path = Path(file).expanduser()
    try:
        return EvaluationRecord.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DataError(f"cannot read the evaluation {file}: {error.strerror}") from error
    except (ValueError, ValidationError) as error:
        raise DataError(
            f"{file} is no evaluation.json of `python -m training evaluate`: {error}"
        ) from error
