"""The clients of ``vbon compare`` and ``vbon reload``: they wait for a server, ask it, and print."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape

from service.comparison import print_comparison
from service.settings import REMOTE_API_KEY
from vbon.errors import VbonError
from vbon.prompt_files import built_in_prompts, prompt_record, read_prompt_file
from vbon.prompts import Prompt
from vbon.storage.atomic import write_json
from vbon.terminal import table_console


class ServerError(VbonError):
    """The server cannot be reached, or refused; the message says why."""


def wait_until_ready(
    client: httpx.Client, limit_s: float, console: Console, while_pid: int | None = None
) -> None:
    """Poll ``/readyz``.

    Raises:
        ServerError: it is not ready in time, or process ``while_pid`` has ended.
    """
    deadline = time.monotonic() + limit_s
    with console.status("waiting for the server ...") as status:
        while True:
            try:
                response = client.get("/readyz")
                if response.status_code == httpx.codes.OK:
                    return
                said = response.json()["error"]["message"]
            except httpx.TransportError as error:
                said = f"not reachable ({error})"
            except (ValueError, KeyError):
                said = f"HTTP {response.status_code}, which is not this service"
            if while_pid is not None and not _runs(while_pid):
                raise ServerError(f"the server (process {while_pid}) has ended before it was ready")
            if time.monotonic() >= deadline:
                raise ServerError(f"{client.base_url} is not ready: {said}")
            status.update(f"waiting for the server: {said}")
            time.sleep(0.5)


def _runs(pid: int) -> bool:
    """True if a process exists and is not a zombie that its parent has yet to collect."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _client(url: str) -> httpx.Client:
    key = os.environ.get(REMOTE_API_KEY)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=url, timeout=600, headers=headers)


def run_reload(url: str, model: str, *, in_place: bool = False, in_flight: str = "finish") -> None:
    """Make a server read one of its models again, and print the result.

    Raises:
        ServerError: it refused, or cannot be reached.
    """
    console = Console()
    with _client(url) as client, console.status(f"reloading {escape(model)} ..."):
        chosen = {"in_place": True, "in_flight": in_flight} if in_place else {}
        done = _post(client, {"model": model, **chosen}, "/admin/reload")
    if done["in_place"]:
        times = f"checked in {done['load_s']:.1f} s, weights changed in {done['drain_s']:.1f} s"
    else:
        times = f"loaded in {done['load_s']:.1f} s, the old one free after {done['drain_s']:.1f} s"
    console.print(
        f"{', '.join(done['models'])}: {done['now']} is served in the place of {done['before']} ({times})"
    )


def run_comparison(
    url: str,
    prompts_file: str | None,
    limit: int,
    idle_limit: int,
    body: dict[str, Any],
    levels: list[int],
    *,
    wait_s: float,
    while_pid: int | None,
    json_file: str | None,
    prompt_column: str | None = None,
    encoding: str | None = None,
    full: bool = False,
) -> None:
    """Request one ``/compare`` per concurrency level; print the verdict and write JSON if asked.

    Args:
        full: True to print the table of each level and the first answers instead of one table.

    Raises:
        ServerError: the server cannot be reached, is not ready in time, or refused.
        DataError: the prompts cannot be read.
    """
    console = table_console()
    if prompts_file is None:
        file = built_in_prompts()
    else:
        file = read_prompt_file(Path(prompts_file), column=prompt_column, encoding=encoding)
    console.print(file.describe(keeps_duplicates=True, limit=limit), highlight=False, markup=False)
    all_prompts = [_item(prompt) for prompt in file.first(limit)]
    results = []
    with _client(url) as client:
        wait_until_ready(client, wait_s, console, while_pid)
        for level in levels:
            prompts = all_prompts[:idle_limit] if level == 1 else all_prompts
            with console.status(f"comparing at concurrency {level} ..."):
                result = _post(client, body | {"prompts": prompts, "concurrency": level})
            results.append(result)
    print_comparison(console, results, full=full)
    _check_all_answered(results[0])
    if json_file is not None:
        write_json(Path(json_file), {"comparisons": results})
        console.print(f"full result: {json_file}")


def _item(prompt: Prompt) -> str | dict[str, Any]:
    """A prompt as ``/compare`` takes it in a list."""
    return prompt_record(prompt) if prompt.text is None else prompt.text


def _check_all_answered(result: dict[str, Any]) -> None:
    """Refuse a comparison in which a mode returned nothing.

    Raises:
        ServerError: a mode returned no tokens, or nothing that could be scored.
    """
    for mode in result["modes"]:
        if mode["returned_tokens"] == 0 or mode["reward"] is None:
            raise ServerError(f"mode {mode['mode']} returned no scorable answer")


def _post(client: httpx.Client, body: dict[str, Any], path: str = "/compare") -> dict[str, Any]:
    try:
        response = client.post(path, json=body)
        payload = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise ServerError(f"{client.base_url} did not answer: {error}") from error
    if response.status_code != httpx.codes.OK:
        said = payload.get("error", {}).get("message", payload)
        raise ServerError(f"the server refused (HTTP {response.status_code}): {said}")
    return dict(payload)
