"""Reads the prompts of the evaluation that this server shows, so that load tests can measure on them too."""

from __future__ import annotations

from pathlib import Path

from vbon.errors import DataError, NotFoundError
from vbon.prompt_files import read_prompt_file
from vbon.prompts import Prompt
from vbon.storage.evaluation_record import read_evaluation


def evaluated_prompts(evaluation: str | None) -> list[Prompt]:
    """The prompts of an ``evaluation.json``, without duplicates.

    Raises:
        NotFoundError: the server has no evaluation, or its prompts are not there any more or have changed.
    """
    if evaluation is None:
        raise NotFoundError("this server has no evaluation; start it with --evaluation FILE")
    try:
        record = read_evaluation(evaluation)
        asked = record.config
        if asked.prompts is None:
            raise NotFoundError(f"{evaluation} does not tell its prompts")
        file = read_prompt_file(
            Path(asked.prompts).expanduser(), column=asked.prompt_column, encoding=asked.encoding
        )
    except DataError as error:
        raise NotFoundError(f"the prompts of the evaluation cannot be read: {error}") from error
    if file.sha256 != record.prompts_sha256:
        raise NotFoundError(
            f"{asked.prompts} has changed since {evaluation} was measured on it; run `vbon evaluate` again"
        )
    return file.distinct()
