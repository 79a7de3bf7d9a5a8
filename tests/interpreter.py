"""Runs commands as a fresh interpreter would, without the half second that its imports take.

One process imports third-party packages, none of ours, and forks for each command. What the command imports
of ours it imports itself, so that a check of its imports is a real one; tests of what a command does can
spare it those imports too.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
# Light ones: tests check that commands do without the heavy ones.
PRELOADED = (
    "alembic.command",
    "fastapi",
    "httpx",
    "numpy",
    "prometheus_client",
    "pydantic_settings",
    "rich.progress",
    "rich.table",
    "scipy.stats",
    "sqlalchemy",
    "typer.rich_utils",
    "uvicorn",
)
_one_at_a_time = threading.Lock()


def run_command(
    arguments: Sequence[str],
    *,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    blocked: Sequence[str] = (),
    interrupt_after: str = "",
    loaded: tuple[str, ...] = (),
) -> tuple[int, str]:
    """Run ``python -m MODULE ...`` or ``python -c CODE``; its exit status and all that it printed.

    Args:
        arguments: ``["-m", module, ...]`` or ``["-c", code]``.
        env: the whole environment; by default this process's.
        blocked: packages that cannot be imported by the command.
        interrupt_after: press Ctrl-C once this was printed.
        loaded: modules that it finds imported, beside ``PRELOADED``.
    """
    order = {
        "arguments": list(arguments),
        "cwd": str(cwd),
        "env": dict(os.environ if env is None else env),
        "blocked": list(blocked),
    }
    with _one_at_a_time:
        _, server, answers = _server(loaded)
        reading, writing = os.pipe()
        socket.send_fds(server, [json.dumps(order).encode()], [writing])
        os.close(writing)
        pid, said = int(answers.readline()), ""
        with os.fdopen(reading, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                said += line
                if interrupt_after and interrupt_after in said:
                    os.kill(pid, signal.SIGINT)
                    interrupt_after = ""
        return int(answers.readline()), said


@functools.cache
def _server(loaded: tuple[str, ...]) -> tuple[subprocess.Popen[bytes], socket.socket, Any]:
    """The process that forks, started at first use; it ends when this process does."""
    ours, theirs = socket.socketpair()
    code = (
        f"from tests.interpreter import fork_commands; fork_commands({theirs.fileno()}, {loaded})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, pass_fds=[theirs.fileno()])
    theirs.close()
    return process, ours, ours.makefile()


def fork_commands(handle: int, loaded: tuple[str, ...]) -> None:
    """Fork for each order that comes; return in the fork, where the command has been run."""
    for name in (*PRELOADED, *loaded):
        import_module(name)
    gc.freeze()  # a collection in a fork would copy all that it looks at
    with socket.socket(fileno=handle) as client:
        while True:
            message, (*outputs,), _, _ = socket.recv_fds(client, 1_000_000, 1)
            if not message:
                return
            pid = os.fork()
            if pid == 0:
                break
            os.close(outputs[0])
            client.sendall(f"{pid}\n".encode())
            _, status = os.waitpid(pid, 0)
            client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    _run(json.loads(message), outputs[0])


def _run(order: dict[str, Any], output: int) -> None:
    """Be the interpreter: an exception, an exit and Ctrl-C end this process as they end any other.

    It is spared only the second in which a fork frees, and so first copies, all that it was forked with.
    """
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    loaded = [name for name in order["blocked"] if name in sys.modules]
    if loaded:
        raise RuntimeError(f"{loaded} must not be in PRELOADED, or in what that imports")
    sys.modules.update(dict.fromkeys(order["blocked"]))  # type: ignore[arg-type]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    sys.path[0] = order["cwd"]
    sys.path[1:1] = [str(ROOT)]
    kind, what, *rest = order["arguments"]
    sys.argv = [what, *rest]
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(what, {"__name__": "__main__"})
    except SystemExit as exited:
        if not isinstance(exited.code, int | None):
            raise
        _end(exited.code or 0)
    _end(0)


def _end(status: int) -> NoReturn:
    """What the interpreter does at its end: wait for threads, call what was registered, and write all out."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
