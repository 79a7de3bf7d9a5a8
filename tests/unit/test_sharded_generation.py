"""What FSDP refuses: samples of transformers in several processes, and a moving anchor in any number."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("accelerate")

from training.objectives import objective_type
from training.rollouts.generator import TransformersGenerator
from training.train.trainer import Trainer
from vbon.errors import InvalidInputError


def check(objective: str, processes: int, *, own: bool, sharded: bool = True) -> None:
    generator: Any = TransformersGenerator(None, 8, 1.0, ()) if own else SimpleNamespace()
    trainer: Any = SimpleNamespace(
        options=SimpleNamespace(prompts_per_step=4, samples_per_prompt=4),
        accelerator=SimpleNamespace(num_processes=processes),
        sharded=sharded,
        _generator=generator,
        _objective=objective_type(objective)(),
    )
    Trainer._check(trainer)


@pytest.mark.parametrize(("processes", "own"), [(1, True), (1, False), (2, False)])
def test_one_process_may_sample_its_shards_itself(processes: int, own: bool) -> None:
    check("vbon", processes, own=own)


@pytest.mark.parametrize(
    ("objective", "processes", "own"),
    [("vbon", 2, True), ("j-bond", 1, False), ("j-bond", 1, True)],
)
def test_what_cannot_work_is_refused_with_the_remedy(
    objective: str, processes: int, own: bool
) -> None:
    with pytest.raises(InvalidInputError, match="several processes requires --generation vllm"):
        check(objective, processes, own=own)
    check(objective, processes, own=own, sharded=False)
