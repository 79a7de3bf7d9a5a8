"""Several front-end processes on one machine: ``vbon serve --workers N``.

The parent process has the engines, the reward models and the limits. Its workers share the listening socket,
serve the API, and reach the parent's parts over :mod:`service.wire`.
"""

from __future__ import annotations

from importlib.util import find_spec

from vbon.errors import InvalidInputError


def check_wire() -> None:
    """Check that the library is installed with which processes talk to each other.

    Raises:
        InvalidInputError: it is not.
    """
    if find_spec("msgspec") is None:
        raise InvalidInputError(
            "several workers need msgspec, which is not installed; install vbon with the extra "
            "workers (pip install -e '.[workers]'), or set workers to 1",
            field="workers",
        )
