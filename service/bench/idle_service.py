"""A service whose engine does no work, in a process of its own: what is left is the cost of serving.

``python -m service.bench.idle_service SETTINGS`` serves settings, given as JSON, until it is ended.
"""

from __future__ import annotations

import sys

from service.observability.logs import set_up_logs
from service.runtime.runtime import Runtime
from service.server import serve_until_stopped
from service.settings import ServiceSettings
from vbon.engine.fake import FakeEngine


def idle_runtime(settings: ServiceSettings) -> Runtime:
    """A runtime whose engines answer at once, without a reward model."""
    engines = {name: FakeEngine(path) for name, path in settings.policies.items()}
    return Runtime(settings, dict(engines), None, None)


def main() -> int:
    """Serve with as many processes as the settings say."""
    settings = ServiceSettings.model_validate_json(sys.argv[1])
    set_up_logs(settings)
    if settings.workers > 1:
        from service.workers.serve import serve_with_workers

        return serve_with_workers(settings, idle_runtime)
    return serve_until_stopped(settings, idle_runtime)


if __name__ == "__main__":
    sys.exit(main())
