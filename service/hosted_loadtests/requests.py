"""Turns a request for a load test into the load test's settings, within this server's limits."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from service.generation.references import check_limit
from service.loadtest.config import AIM_S, BLOCK_S, WARMUP_S
from service.runtime.modes import Mode
from service.runtime.runtime import Runtime
from service.schemas.loadtests import LoadTestRequest
from vbon.errors import ForbiddenError, InvalidInputError, NotReadyError


def own_url(request: Request) -> str:
    """The address at which the request reached this server, whatever its Host header says.

    Raises:
        ForbiddenError: the server listens on a Unix socket, which has no such address.
    """
    host, port = request.scope.get("server") or ("", None)
    if port is None:
        raise ForbiddenError("this server listens on a Unix socket, which a load test cannot reach")
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def token_of(request: Request, runtime: Runtime) -> str | None:
    """The API key that the request came with, or ``None`` if the server requires no keys."""
    if runtime.settings.auth.keys_file is None:
        return None
    return request.headers.get("authorization", "").partition(" ")[2].strip()


def settings_of(runtime: Runtime, body: LoadTestRequest) -> dict[str, Any]:
    """Values of :class:`service.loadtest.config.LoadTestSettings` by name.

    Raises:
        NotReadyError: the models are loading, or one has failed.
        ForbiddenError: this server allows no load tests.
        InvalidInputError: unknown mode, or more than this server allows; names the field and the limit.
    """
    if not runtime.ready:
        raise NotReadyError(runtime.status())
    modes, n = body.modes or _default_modes(runtime), body.n or [runtime.settings.default_n]
    _check(runtime, body, modes, n)
    settings = {
        "modes": list(dict.fromkeys(modes)),
        "n": sorted(set(n)),
        "concurrency": levels_of(body),
        "slo": [f"{kind}:{limit:g}" for kind, limit in body.slo_ms.items()],
        "max_in_flight": runtime.settings.limits.loadtest_max_in_flight,
        "max_s": _aim_s(runtime),
        "limit_s": runtime.settings.limits.loadtest_max_s,
        **body.model_dump(
            include={
                "baseline",
                "rate",
                "rounds",
                "requests",
                "warmup_s",
                "max_tokens",
                "temperature",
                "stream",
                "duration_s",
                "quality_prompts",
                "quality_samples",
                "price_per_hour",
                "training_hours",
                "currency",
                "seed",
            }
        ),
    }
    return {name: value for name, value in settings.items() if value is not None}


def levels_of(body: LoadTestRequest) -> list[int]:
    """The levels of concurrency that are given; without them and without rates, a calibration chooses."""
    return sorted(set(body.concurrency))


def planned_seconds(runtime: Runtime, body: LoadTestRequest) -> float | None:
    """Planned duration of all blocks, or ``None`` if they end after a number of requests.

    Raises:
        InvalidInputError: it exceeds ``limits.loadtest_max_s``.
    """
    modes = [_mode(runtime, name) for name in set(body.modes or _default_modes(runtime))]
    if body.requests is None and not (body.concurrency or body.rate):
        return _aim_s(runtime)  # the load test itself knows more after its calibration
    drawn = len(set(body.n or [0]))
    variants = sum(drawn if mode.strategy.reranks else 1 for mode in modes)
    blocks = variants * (len(levels_of(body)) + len(set(body.rate))) * body.rounds
    warmup_s = WARMUP_S if body.warmup_s is None else body.warmup_s
    seconds = warmup_s + ((body.duration_s or BLOCK_S) if body.requests is None else 0.0)
    limit = runtime.settings.limits.loadtest_max_s
    if blocks * seconds > limit:
        raise InvalidInputError(
            f"{blocks} blocks of {seconds:g} s take {blocks * seconds:g} s; this server allows at most "
            f"{limit:g} s (limits.loadtest_max_s): take fewer modes, N, levels or rounds, or shorter blocks",
            field="duration_s",
        )
    return None if body.requests is not None else blocks * seconds


def _aim_s(runtime: Runtime) -> float:
    """Seconds that the blocks of a calibrated load test should take on this server."""
    return min(AIM_S, runtime.settings.limits.loadtest_max_s)


def _default_modes(runtime: Runtime) -> list[str]:
    singles = list(runtime.policies)
    return [singles[0], "bon", *singles[1:]] if runtime.reward is not None else singles


def _mode(runtime: Runtime, name: str, field: str = "modes") -> Mode:
    mode, _, policy = name.partition("@")
    try:
        return runtime.mode(mode, policy=policy or None)
    except InvalidInputError as error:
        raise InvalidInputError(str(error), field=field) from error


def _check(runtime: Runtime, body: LoadTestRequest, modes: list[str], n: list[int]) -> None:
    limits = runtime.settings.limits
    if limits.loadtest_max_s == 0:
        raise ForbiddenError("this server allows no load tests (limits.loadtest_max_s is 0)")
    for name in modes:
        _mode(runtime, name)
    if body.baseline not in runtime.modes:
        _mode(runtime, body.baseline, "baseline")
        raise InvalidInputError("the baseline must be a mode without @POLICY", field="baseline")
    check_limit("n", max(n), limits.max_n)
    check_limit("concurrency", max(levels_of(body), default=0), limits.loadtest_max_in_flight)
    check_limit("max_tokens", body.max_tokens or 1, limits.max_tokens)
    prompts = body.prompts or []
    if len(prompts) > limits.max_prompts:
        raise InvalidInputError(
            f"{len(prompts)} prompts; this server allows at most {limits.max_prompts}",
            field="prompts",
        )
