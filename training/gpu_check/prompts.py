"""Splits the prompts of ``scripts/real-model`` into those to train on and those to report on.

python -m training.gpu_check.prompts FILE DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

from vbon.errors import DataError
from vbon.prompt_files import read_prompt_file, write_prompts

TEST_SHARE = 4  # one prompt of four


def split_file(source: Path, out: Path) -> None:
    """Write ``train.jsonl`` and ``test.jsonl``.

    Raises:
        DataError: there are too few prompts.
    """
    prompts = read_prompt_file(source).prompts
    test = prompts[::TEST_SHARE]
    train = [prompt for number, prompt in enumerate(prompts) if number % TEST_SHARE]
    if len(test) < 2 or len(train) < 2:
        raise DataError(
            f"{source} has {len(prompts)} prompts, too few to train on some and report on others"
        )
    write_prompts(out / "train.jsonl", train)
    write_prompts(out / "test.jsonl", test)


if __name__ == "__main__":
    split_file(Path(sys.argv[1]), Path(sys.argv[2]))
