"""The service as a fleet on Ray Serve: front ends, policies and reward models as separate deployments.

``serve run service.fleet:app CONFIG.yaml`` starts it.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from service.fleet.settings import FleetSettings
from vbon.errors import InvalidInputError

if TYPE_CHECKING:
    from ray.serve import Application


def app(args: FleetSettings | dict[str, Any]) -> Application:
    """The Serve application of these arguments, which Serve reads from its file as a dictionary.

    Raises:
        InvalidInputError: Ray Serve is not installed.
    """
    check_ray()
    from service.fleet.application import build

    return build(args if isinstance(args, FleetSettings) else FleetSettings(**args))


def check_ray() -> None:
    """Check that Ray Serve is installed.

    Raises:
        InvalidInputError: it is not.
    """
    if find_spec("ray") is None:
        raise InvalidInputError(
            "a fleet needs Ray Serve, which is not installed; install vbon with the extra fleet (pip install "
            "-e '.[fleet]')",
            field="fleet",
        )


__all__: list[Any] = ["FleetSettings", "app", "check_ray"]
