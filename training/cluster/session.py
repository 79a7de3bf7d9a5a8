"""The connection of one command to a Ray cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from vbon.errors import DataError, InvalidInputError

logger = logging.getLogger(__name__)

# Ray Data brings the last two.
_NEEDED = ("ray", "pandas", "pyarrow")


def check_ray() -> None:
    """Check that Ray is installed, with what Ray Data needs.

    Raises:
        InvalidInputError: it is not.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise InvalidInputError(
            f"--backend ray needs {', '.join(missing)}, which is not installed; install vbon with the extra "
            "ray (pip install -e '.[ray]'), on every machine of the cluster",
            field="backend",
        )


@contextmanager
def ray_session() -> Iterator[None]:
    """Use the cluster at ``RAY_ADDRESS``, or one of this machine alone, which is ended at the end.

    All work of this command ends with the block, however it ends. In a process that is already connected,
    that connection is used and stays.

    Raises:
        InvalidInputError: Ray is not installed, or there is no cluster at the address.
    """
    check_ray()
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's new way, which it announces in a warning: workers without GPUs see those of the machine as before.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # The driver's own process would print of Ray's inside what this command says in its errors.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = os.environ.get("RAY_ADDRESS")
    options = {} if address else {"include_dashboard": False}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"the Ray cluster at RAY_ADDRESS={address}" if address else "a Ray cluster"
        raise InvalidInputError(
            f"cannot connect to {where}: {error}; start it, or unset RAY_ADDRESS to use this machine alone",
            field="backend",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def enter_directory(directory: str, *needed: Path) -> None:
    """Enter the command's directory in a worker: Ray starts workers in that of the cluster.

    On a machine that lacks the directory, relative paths lead to no file of the command.

    Args:
        needed: paths that must lead to the same place here as in the command.

    Raises:
        DataError: the machine lacks the directory, and a needed path is relative to it.
    """
    try:
        os.chdir(directory)
    except OSError as error:
        relative = [path for path in needed if not path.is_absolute()]
        if relative:
            raise DataError(
                f"{relative[0]} is relative to {directory}, which a machine of the Ray cluster lacks; give "
                "an absolute path, the same on all machines"
            ) from error


def check_room(cpus: float, gpus: float) -> None:
    """Check that some machine of the cluster is large enough for a worker: Ray waits for one without end.

    A cluster at ``RAY_ADDRESS`` may still grow, so there the work waits, and a warning says for what.

    Raises:
        InvalidInputError: this machine alone is not large enough.
    """
    import ray

    machines = [one["Resources"] for one in ray.nodes() if one["Alive"]]
    if any(one.get("CPU", 0) >= cpus and one.get("GPU", 0) >= gpus for one in machines):
        return
    found = "; ".join(
        f"{one.get('CPU', 0):g} CPUs, {one.get('GPU', 0):g} GPUs" for one in machines[:5]
    )
    lacking = (
        f"no machine of the Ray cluster has the {cpus:g} CPUs and {gpus:g} GPUs of a worker (machines: "
        f"{found or 'none'})"
    )
    if not os.environ.get("RAY_ADDRESS"):
        raise InvalidInputError(
            f"{lacking}; lower --worker-cpus or --worker-gpus, or name a larger cluster in RAY_ADDRESS",
            field="worker_gpus" if gpus else "worker_cpus",
        )
    logger.warning("%s; the work waits until one joins", lacking)


def workers_that_fit(cpus: float, gpus: float, tasks: int) -> int:
    """The number of workers that the cluster has room for, at most one for each task and at least one."""
    import ray

    room = ray.cluster_resources()
    fitting = [tasks]
    if cpus:
        fitting.append(int(room.get("CPU", 0) / cpus + 1e-9))
    if gpus:
        fitting.append(int(room.get("GPU", 0) / gpus + 1e-9))
    return max(1, min(fitting))
