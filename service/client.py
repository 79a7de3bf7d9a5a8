"""The clients of ``vbon compare`` and ``vbon reload``: they wait for a server, ask it, and print tables."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

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
) -> None:
    """Request one ``/compare`` per concurrency level; print tables and write JSON if asked.

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
            console.print(comparison_table(result))
    console.print(answers_table(results[0]))
    for mode in results[0]["modes"]:
        for difference in mode.get("sampling_differences", []):
            console.print(f"warning: {mode['mode']}: {difference}", style="yellow", markup=False)
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


def _interval(value: dict[str, float] | None, digits: int = 2) -> str:
    if value is None:
        return "-"
    low, high = value["low"], value["high"]
    return f"{value['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _ratio(value: dict[str, float]) -> str:
    return f"{value['median']:.2f}x [{value['low']:.2f}, {value['high']:.2f}]"


def comparison_table(result: dict[str, Any]) -> Table:
    """One comparison as a table with one column per mode."""
    sampling = result["sampling"]
    load = "idle engine" if result["concurrency"] == 1 else "loaded engine"
    table = Table(
        title=f"{len(result['prompts'])} prompts x {result['repeats']} repeats, concurrency "
        f"{result['concurrency']} ({load}), temperature {sampling['temperature']:g}, "
        f"max_tokens {sampling['max_tokens']}",
        caption=escape("means [95% interval over prompts], medians [range over repeats]; ")
        + f"win rate and ratios against {result['baseline']}; gold reward never selects",
    )
    table.add_column("")
    for mode in result["modes"]:
        label = f"{mode['mode']} (N={mode['n']})" if mode["n"] > 1 else mode["mode"]
        table.add_column(label, justify="right")
    rows: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
        ("mean reward", lambda m: _interval(m["reward"])),
        ("win rate", lambda m: _interval(m["win_rate"])),
        ("mean gold reward", lambda m: _interval(m["gold_reward"])),
        ("gold win rate", lambda m: _interval(m["gold_win_rate"])),
        (
            "E2E latency p50 / p95, ms",
            lambda m: f"{m['e2e_ms']['p50']:.0f} / {m['e2e_ms']['p95']:.0f}",
        ),
        ("E2E latency ratio", lambda m: _ratio(m["ratio_e2e"])),
        ("requests/s", lambda m: f"{m['requests_per_s']['median']:.2f}"),
        ("requests/s ratio", lambda m: _ratio(m["ratio_requests_per_s"])),
        ("generated tokens/s", lambda m: f"{m['generated_tokens_per_s']['median']:.0f}"),
        ("returned tokens/s", lambda m: f"{m['returned_tokens_per_s']['median']:.0f}"),
        (
            "tokens generated / returned",
            lambda m: f"{m['generated_tokens']} / {m['returned_tokens']}",
        ),
    )
    for name, cell in rows:
        table.add_row(name, *(cell(mode) for mode in result["modes"]))
    for pair in result["head_to_head"]:
        if {pair["mode"], pair["against"]} == {"bon", "vbon"}:
            table.add_row(
                f"{pair['mode']} against {pair['against']}",
                f"{pair['wins']} won, {pair['losses']} lost, {pair['ties']} tied",
            )
    return table


def answers_table(result: dict[str, Any], rows: int = 4) -> Table:
    """The first prompts with the answer of each mode."""
    table = Table(title="the same prompts, answered live", show_lines=True)
    table.add_column("prompt", ratio=1)
    names = [mode["mode"] for mode in result["modes"]]
    for name in names:
        table.add_column(name, ratio=2)
    for row in result["prompts"][:rows]:
        cells = []
        for name in names:
            answer = row["answers"][name]
            reward = "-" if answer["reward"] is None else f"{answer['reward']:+.2f}"
            cells.append(escape(f"[{reward}]{answer['text']}"))
        table.add_row(escape(row["prompt"]), *cells)
    return table
