"""Reward models that obey, die or hang. Worker processes import this module, so it imports little."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from vbon.errors import CheckpointError, RewardError
from vbon.rewards.protocol import Scorable


@dataclass
class Obedient:
    """Acts as the completion says; loading waits until the file ``gate`` exists."""

    name: str = "obedient"
    revision: str = "1"
    loads: bool = True
    gate: str = ""

    def load(self) -> None:
        while self.gate and not os.path.exists(self.gate):
            time.sleep(0.01)
        if not self.loads:
            raise CheckpointError("no weights here")

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        said = items[0].completion
        if said == "die":
            os._exit(9)
        if said == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if said == "hang":
            time.sleep(3600)
        if said == "fail":
            raise RewardError("no score today")
        if said == "crash":
            raise ZeroDivisionError("oops")
        return [None if item.completion == "none" else float(os.getpid()) for item in items]

    def close(self) -> None:
        pass


@dataclass
class Dying(Obedient):
    """Ends its process while it loads: by that signal, or with exit status 3."""

    by: int = 0

    def load(self) -> None:
        if self.by:
            os.kill(os.getpid(), self.by)
        os._exit(3)


@dataclass
class Chatty(Obedient):
    """Prints while it loads, as libraries with progress bars do."""

    def load(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.write("loading\n" * 1000)
            stream.flush()
