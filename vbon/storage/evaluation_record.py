"""What ``python -m training evaluate`` wrote, as its readers need it."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from vbon.errors import DataError
from vbon.storage.training_record import RecordedMean


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class EvaluatedRow(_Read):
    """One method: ``reference``, ``best-of-n``, or the name of a checkpoint."""

    method: str
    n: int
    reward: RecordedMean
    win_rate: RecordedMean
    kl_nats: RecordedMean
    kl_kind: str
    gold: RecordedMean | None = None
    gold_win_rate: RecordedMean | None = None


class EvaluationRecord(_Read):
    """All methods on the same held-out prompts.

    Attributes:
        revisions: of ``reference``, ``reward``, ``gold``, and each checkpoint by its name.
    """

    created: str
    prompts: int
    revisions: dict[str, str]
    rows: list[EvaluatedRow]


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
