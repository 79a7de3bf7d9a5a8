"""Client of the service's ``/distil`` routes, which waits while the service is away."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from vbon.distil.decision import Decision
from vbon.distil.loop.config import DistilRunConfig
from vbon.distil.progress import LoopProgress
from vbon.errors import DataError, VbonError

REMOTE_API_KEY = "VBON_REMOTE_API_KEY"
# Answers of a service, or of what is before it, that is away for a while.
_AWAY = {429, 500, 502, 503, 504}
_REPORT_LIMIT_S = 5.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_T = TypeVar("_T", bound=BaseModel)
FINAL = {"live", "retired", "refused", "rolled_back"}


class ServiceRefusedError(VbonError):
    """The service refused a request, so that trying again would not help."""


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ServedCheckpoint(_Answer):
    """A checkpoint as the service has it; its fields are those of ``GET /distil/checkpoints``."""

    id: str
    status: str
    share: float = 0.0
    step: int | None = None
    why: str | None = None
    approved: str | None = None
    was_live: bool = False

    def __str__(self) -> str:
        reason = {
            "win_rate": " because its win rate is too low",
            "fall": " because its win rate has fallen",
            "person": " by a person",
            "failed": " because it could not be loaded",
        }.get(self.why or "", "")
        said = self.status.replace("_", " ")
        share = f", {self.share:.0%} of the traffic" if self.status in ("rolling", "live") else ""
        return f"{said}{reason if self.status == 'rolled_back' else ''}{share}"


class ServedRollout(_Answer):
    """The rollout as the service has it.

    Attributes:
        lora_rank: highest rank of the adapters that it serves; ``None``: it serves whole models.
    """

    policy: str
    n: int
    margin: float
    approve: bool = False
    live: str | None = None
    next: str | None = None
    lora_rank: int | None = None
    checkpoints: list[ServedCheckpoint] = []

    def checkpoint(self, name: str) -> ServedCheckpoint | None:
        """The checkpoint with this id; ``None`` if the service does not know it."""
        return next((one for one in self.checkpoints if one.id == name), None)


class Service:
    """The service that collects answers and serves checkpoints.

    A request is sent again, after growing pauses, while the service cannot be reached or is overloaded: it
    may be restarting. All requests may be repeated.
    """

    def __init__(
        self,
        client: httpx.Client,
        say: Callable[[str], None],
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client, self._say, self._sleep = client, say, sleep
        self._reports = True

    def seal(self) -> None:
        """Make all collected answers available."""
        self._request("POST", "/distil/seal")

    def rollout(self) -> ServedRollout | None:
        """The rollout; ``None`` if the service serves no checkpoints (--distil.policy)."""
        response = self._request("GET", "/distil/checkpoints", missing=True)
        return None if response is None else _parsed(ServedRollout, response)

    def submit(self, path: str, decision: Decision) -> ServedCheckpoint:
        """Hand in a checkpoint; the same one again changes nothing.

        Args:
            path: of the checkpoint, relative to the directory of collected answers.
        """
        body = {"path": path, "decision": decision.model_dump(mode="json")}
        response = self._request("POST", "/distil/checkpoints", body)
        assert response is not None
        return _parsed(ServedCheckpoint, response)

    def report(self, progress: LoopProgress) -> bool:
        """Tell the service where the loop is; False if it did not take it, which the loop need not mind.

        It tries once, gives up after about 5 s, and raises nothing. A thread may call it while another sends
        requests.
        """
        if not self._reports:
            return False
        body = progress.model_dump(mode="json", exclude_none=True)
        try:
            response = self._client.put("/distil/progress", json=body, timeout=_REPORT_LIMIT_S)
        except httpx.HTTPError:
            return False
        # An older service has no such route.
        self._reports = response.status_code not in (404, 405)
        return response.is_success

    def _request(
        self, method: str, path: str, body: Any = None, *, missing: bool = False
    ) -> httpx.Response | None:
        """The answer to a request, once there is one; ``None`` for 404 where that is allowed.

        Raises:
            ServiceRefusedError: the service answers, and refuses.
        """
        wait_s, was_away = _FIRST_WAIT_S, False
        while True:
            try:
                response = self._client.request(method, path, json=body)
                if response.status_code not in _AWAY:
                    break
                away = f"HTTP {response.status_code}: {_message(response)}"
            except httpx.TransportError as error:
                away = str(error) or type(error).__name__
            if not was_away:
                self._say(f"the service at {self._client.base_url} is away ({away}); trying again")
                was_away = True
            self._sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        if was_away:
            self._say("the service is back")
        if response.status_code == httpx.codes.NOT_FOUND and missing:
            return None
        if not response.is_success:
            remedy = (
                "; give an admin's key with --key-file"
                if response.status_code in (401, 403)
                else ""
            )
            raise ServiceRefusedError(
                f"{method} {path}: the service refused (HTTP {response.status_code}): "
                f"{_message(response)}{remedy}"
            )
        return response


def open_service(config: DistilRunConfig, say: Callable[[str], None]) -> Service | None:
    """The service of these settings, ``None`` without one.

    Raises:
        DataError: the file with the key cannot be read, or is empty.
    """
    if config.url is None:
        return None
    key = config.key or os.environ.get(REMOTE_API_KEY)
    if config.key_file is not None:
        try:
            key = config.key_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read the key in {config.key_file}: {error}") from error
        if not key:
            raise DataError(f"{config.key_file} is empty; it must hold an admin's key")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # Checking a large checkpoint's files takes the service minutes.
    timeout = httpx.Timeout(600.0, connect=10.0)
    return Service(httpx.Client(base_url=config.url, headers=headers, timeout=timeout), say)


def _parsed(kind: type[_T], response: httpx.Response) -> _T:
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        raise ServiceRefusedError(
            f"{response.request.url} did not answer as this version of the service does: "
            f"{error.errors()[0]['msg']}"
        ) from error


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200] or "no message"
