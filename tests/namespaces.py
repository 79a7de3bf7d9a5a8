"""A network namespace with a reward model in it, which packets may be kept from reaching, or leaving."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.runtime.batching_scorer import BatchingScorer
from service.wire import Timing, WireServer
from service.wire.hosted import SCORER, HostedScorer
from service.wire.replicas import Address
from tests.unit.fakes import FakeReward

# Short, so that a partition is noticed within a second.
TIMING = Timing(beat_s=0.1, silence_s=1.0)
ROOT = Path(__file__).resolve().parents[1]
# No interface has this address, so frames to it are dropped without a word.
_NOBODY = "02:00:00:00:00:01"
_MADE = itertools.count()


def why_not() -> str | None:
    """The reason for which namespaces cannot be used here; ``None`` if they can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and iproute2"
    name = f"vbon-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        return f"network namespaces cannot be made here: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


@dataclass(frozen=True)
class Apart:
    """A namespace that is connected to this one by a pair of interfaces.

    Attributes:
        near, far: the interface here, and the one there.
        here, there: their addresses.
    """

    name: str
    near: str
    far: str
    here: str
    there: str

    @classmethod
    @contextmanager
    def made(cls) -> Iterator[Apart]:
        """Make a namespace; it is gone afterwards."""
        # A name of its own, since the kernel takes the interfaces of a deleted namespace away a moment later.
        made = f"{os.getpid()}-{next(_MADE)}"
        subnet = f"10.213.{os.getpid() % 250}"
        apart = cls(f"vbon-{made}", f"vb{made}a", f"vb{made}b", f"{subnet}.1", f"{subnet}.2")
        _ip("netns", "add", apart.name)
        try:
            _ip("link", "add", apart.near, "type", "veth", "peer", apart.far, "netns", apart.name)
            _ip("addr", "add", f"{apart.here}/24", "dev", apart.near)
            _ip("link", "set", apart.near, "up")
            _ip("-n", apart.name, "addr", "add", f"{apart.there}/24", "dev", apart.far)
            _ip("-n", apart.name, "link", "set", apart.far, "up")
            yield apart
        finally:
            # The namespace takes its end of the pair with it, a moment after its last process has gone.
            subprocess.run(["ip", "link", "del", apart.near], check=False, capture_output=True)
            _ip("netns", "del", apart.name)

    def cut(self, *, to: bool = True, back: bool = True) -> None:
        """Drop the packets of one or both directions from now on."""
        if to:
            _ip(
                "neigh",
                "replace",
                self.there,
                "lladdr",
                _NOBODY,
                "dev",
                self.near,
                "nud",
                "permanent",
            )
        if back:
            _ip("-n", self.name, "neigh", "replace", self.here, "lladdr", _NOBODY, "dev", self.far,
                "nud", "permanent")  # fmt: skip

    def heal(self) -> None:
        """Let packets through again."""
        _ip("neigh", "flush", "dev", self.near, "nud", "permanent")
        _ip("-n", self.name, "neigh", "flush", "dev", self.far, "nud", "permanent")

    @contextmanager
    def reward(self) -> Iterator[Address]:
        """Serve a reward model in the namespace, in a process of its own."""
        command = [
            "ip",
            "netns",
            "exec",
            self.name,
            sys.executable,
            "-m",
            "tests.namespaces",
            self.there,
        ]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                yield Address(*json.loads(process.stdout.readline()))
            finally:
                process.kill()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


async def _serve(host: str) -> None:
    scorer = BatchingScorer(FakeReward())
    await scorer.start()
    server = WireServer(f"tcp://{host}:*", HostedScorer(lambda: scorer), SCORER, timing=TIMING)
    await server.start()
    print(json.dumps([server.address, server.secret]), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
