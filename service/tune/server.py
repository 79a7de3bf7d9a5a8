"""The server that is tuned: its models, modes and limits, and requests to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from service.client import ServerError, wait_until_ready
from service.loadtest.load.connection import ConnectionPool, ProtocolError
from vbon.prompt_files import prompt_record
from vbon.prompts import Prompt
from vbon.terminal import table_console

_TIMEOUT_S = 30.0


class RequestFailedError(Exception):
    """One request failed; the message is the kind of failure."""


@dataclass(frozen=True, slots=True)
class Served:
    """The server as it describes itself.

    Attributes:
        policies: revisions by name.
        paths: of policies, and of the models ``reward`` and ``gold``, as the server says them.
        modes: the settings of each mode, with their defaults; policies are modes too.
        reward: revision of the reward model; ``None`` if there is none.
        reference: the policy that best-of-N draws from.
        embedder: the embedder by which rules compare texts; empty if it is not known.
        tells: the log-probabilities that the engines tell, ``policy`` or ``sampled``.
        collects: whether answers are kept for training, which tuning forbids.
    """

    url: str
    policies: Mapping[str, str]
    paths: Mapping[str, str]
    modes: Mapping[str, Mapping[str, Any]]
    reward: str | None
    gold: str | None
    hardware: str
    max_tokens: int
    temperature: float
    max_n: int
    reference: str = "ref"
    embedder: str = "ngrams"
    tells: str = "policy"
    collects: bool = False
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def identity(self) -> dict[str, Any]:
        """The models, whose results must not be mixed with those of others."""
        return {"policies": dict(self.policies), "reward": self.reward, "gold": self.gold}

    def changed_to(self, other: Served) -> str:
        """A sentence that says which models differ; empty if none does."""
        mine, others = self.identity, other.identity
        for name in sorted(set(mine["policies"]) | set(others["policies"])):
            before, now = mine["policies"].get(name), others["policies"].get(name)
            if before != now:
                return (
                    f"policy {name!r} was {before or 'not served'} and is {now or 'not served'} now"
                )
        for name in ("reward", "gold"):
            if mine[name] != others[name]:
                before, now = mine[name] or "not served", others[name] or "not served"
                return f"the {name} model was {before} and is {now} now"
        return ""


def describe(url: str, headers: Mapping[str, str], wait_s: float = 0.0) -> Served:
    """Wait for the server and read its ``/modes``.

    Raises:
        ServerError: it cannot be reached, is not ready, or is not this service.
    """
    with httpx.Client(base_url=url, timeout=_TIMEOUT_S, headers=dict(headers)) as client:
        wait_until_ready(client, wait_s, table_console())
        try:
            response = client.get("/modes")
            response.raise_for_status()
            return served_of(url, response.json(), headers)
        except httpx.HTTPError as error:
            raise ServerError(f"{url}/modes: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ServerError(f"the answer of {url}/modes is not from this service") from error


def served_of(url: str, found: Mapping[str, Any], headers: Mapping[str, str]) -> Served:
    """The server that an answer of ``/modes`` describes.

    Raises:
        KeyError, TypeError: the answer has another form.
    """
    modes, policies, paths, reward = {}, {}, {}, None
    for mode in found["modes"]:
        model, scorer = mode["policy"], mode["reward_model"]
        if mode["name"] == "auto":
            continue
        if mode["name"] == model["name"]:
            policies[model["name"]], paths[model["name"]] = model["revision"], model["path"]
        modes[mode["name"]] = mode["settings"] if scorer is not None else {}
        if scorer is not None:
            reward, paths["reward"] = scorer["revision"], scorer["path"]
    gold = found["gold_model"]
    if gold is not None:
        paths["gold"] = gold["path"]
    return Served(
        url=url,
        policies=policies,
        paths=paths,
        modes=modes,
        reward=reward,
        gold=None if gold is None else gold["revision"],
        hardware=str(found.get("hardware") or "unknown"),
        max_tokens=found["default_sampling"]["max_tokens"],
        temperature=found["default_sampling"]["temperature"],
        max_n=found["limits"]["max_n"],
        collects=bool(found.get("collects", False)),
        headers=dict(headers),
    )


class Asker:
    """A client that sends requests to the server, some at once, and refuses answers of other models."""

    def __init__(self, served: Served, in_flight: int, timeout_s: float) -> None:
        self.served = served
        self.pool = ConnectionPool(served.url, dict(served.headers))
        self._room = asyncio.Semaphore(in_flight)
        self._timeout_s = timeout_s

    async def ask(self, path: str, prompt: Prompt, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a prompt.

        Raises:
            RequestFailedError: the server refused, did not answer in time, or answered with something else.
            ServerError: the answer is of other models than the server had at first.
        """
        sent = {**prompt_record(prompt), **body}
        if self.served.collects:
            sent["store"] = False
        async with self._room:
            answer = await self._post(path, sent)
        self._check_models(answer)
        return answer

    async def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        content = json.dumps(body).encode()
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self.pool.post(path, content) as response,
            ):
                found = await response.read()
            if response.status != 200:
                raise RequestFailedError(_refusal(response.status, found))
            answer = json.loads(found)
        except TimeoutError as error:
            raise RequestFailedError("timeout") from error
        except (OSError, ProtocolError, asyncio.IncompleteReadError) as error:
            raise RequestFailedError("no connection") from error
        except ValueError as error:
            raise RequestFailedError("malformed answer") from error
        if not isinstance(answer, dict):
            raise RequestFailedError("malformed answer")
        return answer

    def _check_models(self, answer: Mapping[str, Any]) -> None:
        try:
            policy, scorer = answer["policy"], answer["reward_model"]
            expected = self.served.policies[policy["name"]]
        except (KeyError, TypeError) as error:
            raise RequestFailedError("malformed answer") from error
        if policy["revision"] != expected or policy.get("earlier_revisions"):
            raise changed(
                f"policy {policy['name']!r} was {expected} and is {policy['revision']} now"
            )
        if scorer is not None and scorer["revision"] != self.served.reward:
            raise changed(
                f"the reward model was {self.served.reward} and is {scorer['revision']} now"
            )

    async def close(self) -> None:
        """Close all connections."""
        await self.pool.close()


def changed(how: str) -> ServerError:
    """The error for a server whose models changed, so that earlier figures are not of these."""
    return ServerError(
        f"the server's models changed: {how}; figures of different models are not mixed, so tune again with "
        "another --out"
    )


def _refusal(status: int, content: bytes) -> str:
    """The status, with the server's message if its body has one."""
    try:
        said = str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        said = ""
    return f"HTTP {status}" + (f": {said[:200]}" if said else "")
