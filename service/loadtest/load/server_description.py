"""Asks the server under test for its modes and models, and chooses the variants to measure."""

from __future__ import annotations

import os
from typing import Any

import httpx
from pydantic import ValidationError
from rich.console import Console

from service.client import ServerError, wait_until_ready
from service.loadtest.config import LoadTestSettings
from service.loadtest.plan import Variant
from service.loadtest.schema import ServedMode, ServedModel, ServerDescription
from vbon.errors import InvalidInputError
from vbon.prompt_files import chat_of
from vbon.prompts import Prompt

_TIMEOUT_S = 30.0


def request_headers(settings: LoadTestSettings) -> dict[str, str]:
    """The header with the API key, if the environment has one."""
    key = os.environ.get(settings.api_key_env)
    return {"Authorization": f"Bearer {key}"} if key else {}


def describe_server(settings: LoadTestSettings, console: Console) -> ServerDescription:
    """Wait for the server and ask for its modes and models.

    Raises:
        ServerError: the server is not reachable, not ready, or does not have the API asked for.
    """
    headers = request_headers(settings)
    with httpx.Client(base_url=settings.url, timeout=_TIMEOUT_S, headers=headers) as client:
        if settings.api == "native":
            wait_until_ready(client, settings.wait_s, console)
            return _native(client, settings)
        return _openai(client, settings)


def _native(client: httpx.Client, settings: LoadTestSettings) -> ServerDescription:
    found = _json(client, "/modes")
    try:
        modes = [
            ServedMode(
                name=mode["name"],
                # Servers of earlier versions do not say it, and chose by rewards alone.
                reranks=mode.get("reranks", mode["reward_model"] is not None),
                policy=mode["policy"],
                reward_model=mode["reward_model"],
                settings=mode["settings"],
                training=mode.get("training"),
                adapter=mode.get("adapter", False),
            )
            for mode in found["modes"]
        ]
        policies = {m.policy.name: m.policy for m in modes if m.policy is not None}
        return ServerDescription(
            url=settings.url,
            api="native",
            modes=modes,
            policies=list(policies.values()),
            default_sampling={
                name: found["default_sampling"][name] for name in ("max_tokens", "temperature")
            }
            if "default_sampling" in found
            else {},
            gold_model=found["gold_model"],
            collects=found.get("collects", False),
            hardware=found.get("hardware"),
            **_limits(found),
        )
    except (KeyError, TypeError, ValidationError) as error:
        raise ServerError(
            f"the answer of {settings.url}/modes is not from this service; for other servers use --api openai"
        ) from error


def _limits(found: dict[str, Any]) -> dict[str, Any]:
    """The most candidates that run and that wait; absent where the server does not tell."""
    limits = found.get("limits") or {}
    names = ("running_sequences", "waiting_sequences")
    return {name: limits[name] for name in names if name in limits}


def _openai(client: httpx.Client, settings: LoadTestSettings) -> ServerDescription:
    found = _json(client, "/v1/models")
    try:
        models = found["data"]
        return ServerDescription(
            url=settings.url,
            api="openai",
            modes=[
                ServedMode(
                    name=model["id"],
                    reranks=False,
                    policy=ServedModel(
                        name=model["id"], path=str(model.get("root") or ""), revision="unknown"
                    ),
                    adapter=bool(model.get("parent")),
                )
                for model in models
            ],
        )
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise ServerError(
            f"the answer of {settings.url}/v1/models is not a list of models as OpenAI's API has it"
        ) from error


def _json(client: httpx.Client, path: str) -> dict[str, Any]:
    try:
        response = client.get(path)
        response.raise_for_status()
        found = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise ServerError(f"{client.base_url}{path.lstrip('/')}: {error}") from error
    if not isinstance(found, dict):
        raise ServerError(f"{client.base_url}{path.lstrip('/')} did not answer with a JSON object")
    return found


def evaluated_prompts(settings: LoadTestSettings) -> list[Prompt] | None:
    """The prompts of the evaluation that the server shows; ``None`` if it shows none, or not their prompts.

    Raises:
        ServerError: the server does not answer, or not with prompts.
    """
    with httpx.Client(
        base_url=settings.url, timeout=_TIMEOUT_S, headers=request_headers(settings)
    ) as client:
        try:
            response = client.get("/evaluation/prompts")
        except httpx.HTTPError as error:
            raise ServerError(f"{settings.url} did not tell its prompts: {error}") from error
    if response.status_code != httpx.codes.OK:
        return None
    try:
        items = response.json()["prompts"]
        return [
            Prompt(text=item) if isinstance(item, str) else chat_of(item["messages"])
            for item in items
        ] or None
    except (ValueError, KeyError, TypeError) as error:
        raise ServerError(
            f"the answer of {settings.url}/evaluation/prompts is not a list of prompts"
        ) from error


def choose_variants(settings: LoadTestSettings, server: ServerDescription) -> list[Variant]:
    """The variants to measure, in the order asked for: every mode with every N, single-sample modes once.

    Raises:
        InvalidInputError: the server does not have a requested mode, policy or baseline.
    """
    known = {mode.name: mode for mode in server.modes}
    if server.api == "native" and settings.baseline not in known:
        raise InvalidInputError(
            f"the server has no mode {settings.baseline!r} to compare with; it has {', '.join(known)}",
            field="baseline",
        )
    policies = {policy.name for policy in server.policies}
    variants = []
    for asked in dict.fromkeys(settings.modes):
        name, _, policy = (asked, "", "") if asked in known else asked.partition("@")
        if name not in known:
            raise InvalidInputError(
                f"the server has no mode {name!r}; it has {', '.join(known)}", field="modes"
            )
        if policy and policy not in policies:
            raise InvalidInputError(
                f"the server has no policy {policy!r}; it has {', '.join(sorted(policies))}",
                field="modes",
            )
        if not known[name].reranks:
            variants.append(Variant(name, policy=policy or None))
            continue
        for n in sorted(set(settings.n)):
            variants.append(Variant(name, n, True, policy or None))
    return variants
