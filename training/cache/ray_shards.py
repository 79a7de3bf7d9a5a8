"""Draws and scores a cache over a Ray cluster, with Ray Data: a shard of prompts is one task.

Each worker loads the policy and the reward model once. The lines of a finished shard come back to the
command, which writes them as it writes its own, so no files are shared and a command that was killed goes on
after the last shard. A worker that dies costs its shard, which another one draws again, with the same seeds.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import AsyncExitStack, aclosing, closing, contextmanager
from typing import Any

from training.cache.sample_backends import SAMPLERS
from training.cache.scored_lines import ScoredLine, scored_line
from training.cluster.session import enter_directory, ray_session, workers_that_fit
from training.configs import SampleConfig
from vbon.errors import DataError, VbonError
from vbon.prompts import Prompt
from vbon.rewards.deaths import open_unsupervised

# A shard that ends its worker this often ends the command.
MOST_ATTEMPTS = 3
# Workers that die before they take a shard, for lack of memory perhaps, are not started again for ever.
MOST_RESTARTS = 20


class Attempts:
    """An actor that counts how often each thing has been begun, since Ray Data tries without end."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, name: str) -> int:
        """Count one more, and return how many there are."""
        self._begun[name] += 1
        return self._begun[name]


class ShardSampler:
    """A worker: loads the models, and then draws and scores shards.

    Errors of the project travel in the answer, because Ray would wrap them, and try again for ever.

    Args:
        attempts: the actor :class:`Attempts`.
        most_starts: of all workers together.
        directory: that of the command.
    """

    def __init__(
        self, config: SampleConfig, attempts: Any, most_starts: int, directory: str
    ) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
        self._config, self._runner, self._stack = config, asyncio.Runner(), AsyncExitStack()
        self._attempts = attempts
        self._failed: VbonError | None = None
        try:
            enter_directory(directory)
            self._check("the start of a worker", most_starts)
            self._load()
        except VbonError as error:
            self._failed = error

    def _load(self) -> None:
        config = self._config
        if config.sampler == "transformers":
            import torch

            torch.set_num_threads(max(1, int(config.worker_cpus)))
        self._reward = open_unsupervised(
            config.reward,
            trust_remote_code=config.trust_remote_code,
            batch_size=config.reward_batch_size,
        )
        self._reward.load()
        sampler = SAMPLERS[config.sampler](config)
        self._draw = self._runner.run(self._stack.enter_async_context(sampler))

    def _check(self, name: str, most: int, counted: str = "") -> None:
        """Count one more attempt.

        Args:
            name: for people.
            counted: what tells things apart whose names are alike; chats often begin with the same words.

        Raises:
            DataError: there have been too many, so workers died.
        """
        import ray

        if ray.get(self._attempts.begin.remote(counted or name)) > most:
            raise DataError(
                f"{name} ended Ray workers {most} times (out of memory?); finished shards are kept, and the "
                "same command goes on"
            )

    def __call__(self, shard: dict[str, Any]) -> dict[str, list[bytes]]:
        """Draw and score the prompts of a shard; each row is a pickled line, or an error."""
        prompts = [pickle.loads(row) for row in shard["prompt"]]
        try:
            if self._failed is not None:
                raise self._failed
            first = prompts[0].key
            self._check(f"the shard that begins with {first[:80]!r}", MOST_ATTEMPTS, first)
            lines = self._runner.run(self._lines(prompts))
        except VbonError as error:
            return {"found": [pickle.dumps(error)]}
        return {"found": [pickle.dumps(line) for line in lines]}

    async def _lines(self, prompts: list[Prompt]) -> list[ScoredLine]:
        lines = []
        async with aclosing(self._draw(prompts)) as stream:
            async for prompt, responses in stream:
                lines.append(await scored_line(self._config, self._reward, prompt, responses))
        return lines


def ray_lines(config: SampleConfig, prompts: list[Prompt]) -> Generator[ScoredLine, None, None]:
    """The lines of the prompts, those of each shard together, in the order in which shards are finished.

    Raises:
        VbonError: a worker's error.
        DataError: workers died again and again, or the cluster is gone.
    """
    with ray_session(), _quiet_ray_data(), closing(_rows(config, prompts)) as rows:
        for row in rows:
            found = pickle.loads(row["found"])
            if isinstance(found, VbonError):
                raise found
            yield found


def _rows(config: SampleConfig, prompts: list[Prompt]) -> Generator[dict[str, Any], None, None]:
    import pyarrow
    import ray
    from ray.exceptions import RayError

    size = config.shard_prompts
    shards = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    fitting = workers_that_fit(config.worker_cpus, config.worker_gpus, len(shards))
    workers = min(config.workers or fitting, len(shards))
    # A table is a block of Ray Data, and a block of as many rows as a batch is one task.
    data = ray.data.from_arrow(
        [pyarrow.table({"prompt": [pickle.dumps(prompt) for prompt in shard]}) for shard in shards]
    )
    drawn = data.map_batches(
        ShardSampler,
        fn_constructor_kwargs={
            "config": config,
            "attempts": ray.remote(Attempts).options(num_cpus=0).remote(),
            "most_starts": workers + MOST_RESTARTS,
            "directory": os.getcwd(),
        },
        batch_size=size,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=config.worker_cpus,
        num_gpus=config.worker_gpus,
    )
    try:
        yield from drawn.iter_rows()
    except RayError as error:
        raise DataError(
            f"the work on the Ray cluster failed: {_reason(error)[:300]}; finished shards are kept, and the "
            "same command goes on"
        ) from error


def _reason(error: Exception) -> str:
    """The line of Ray's error that says most: the last after a worker's traceback, otherwise the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if any(line.startswith('File "') for line in lines) else lines[0]


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Keep Ray Data's own progress bars and reports away from the command's bar."""
    from ray.data import DataContext

    context = DataContext.get_current()
    before, context.enable_progress_bars = context.enable_progress_bars, False
    log = logging.getLogger("ray.data")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = before
        log.setLevel(level)
