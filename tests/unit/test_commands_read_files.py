"""Every command with prompts reads them with the one reader, and refuses a file in one line."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from service import client
from tests.interpreter import ROOT, run_command
from vbon.cli.main import app

RUNNER = CliRunner()
COMMANDS = {
    "compare": [],
    "loadtest": ["--store", "none"],
    "sample": ["--policy", "none-such", "--reward", "none-such"],
    "evaluate": ["--policy", "none-such", "--reward", "none-such"],
    "study": ["--policy", "none-such", "--reward", "none-such"],
    "bench serve": ["--policies", "ref=none-such", "--reward", "none-such"],
}
BAD: dict[str, tuple[bytes, str]] = {
    "cp1252.txt": ("fine\nok \u2026\n".encode("cp1252"), "cp1252.txt:2 is not UTF-8: byte 0x85 at offset 8"),
    "wide.txt": ("fine\n".encode("utf-16-be"), "give --encoding utf-16-be"),
    "null.jsonl": (b'{"prompt": "a"}\n{"prompt": null}\n', "null.jsonl:2: "),
    "array.json": (b'[{"prompt": "a"}, {"text": "b"}]', "array.json, record 2 "),
    "table.csv": (b"question,topic\na,b\n", "name the one with the prompts with --prompt-column"),
    "cut.gz": (b"\x1f\x8b\x08\0", "cut.gz is a damaged or truncated gzip file"),
    "empty": (b"\n\n", "empty contains no prompts"),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_not_prompts_is_refused_in_one_line(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vbon.study.run.takes_n", lambda _: False)  # asks a process
    for name, (content, words) in BAD.items():
        file = tmp_path / name
        file.write_bytes(content)
        out = ["--out", f"made-{name}"] if command not in {"compare", "bench serve"} else []
        arguments = [*command.split(), *COMMANDS[command], "--prompts", str(file), *out]
        found = RUNNER.invoke(app, arguments)
        assert isinstance(found.exception, SystemExit), (name, found.exception)
        assert found.exit_code == 1
        lines = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, found.stderr
        assert words in lines[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_encoding_and_column_can_be_named(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The prompts are read, so the command fails at the next thing: no model or no server."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    folder = tmp_path / "with spaces"
    folder.mkdir()
    file = folder / "my prompts.csv"
    rows = "".join(f"{i},ok {i} \u2026\r\n" for i in range(8))
    file.write_bytes(f"id,question\r\n{rows}".encode("cp1252"))
    out = ["--out", str(folder / "made")] if command not in {"compare", "bench serve"} else []
    url = ["--url", "http://127.0.0.1:9"] if command in {"compare", "loadtest"} else []
    read = ["--prompts", str(file), "--encoding", "cp1252", "--prompt-column", "question"]
    if command == "study":  # its next step is a process of its own
        ran: list[tuple[str, ...]] = []
        monkeypatch.setattr("vbon.study.run.command", lambda *words: ran.append(words))
        monkeypatch.setattr("vbon.study.run.takes_n", lambda _: False)
    found = RUNNER.invoke(app, [*command.split(), *COMMANDS[command], *read, *out, *url])
    assert found.exit_code == 1
    said = (found.stdout + found.stderr + caplog.text).replace("\n", "")
    assert f"{file}: 8 prompts from CSV" in said
    if command == "study":
        made = (folder / "made" / "prompts" / "train.jsonl").read_text()
        assert json.loads(made.splitlines()[0])["prompt"].startswith("ok ")
        assert ran[0][:2] == ("training", "sample")
        return
    assert "none-such" in said or "127.0.0.1:9" in said


@pytest.mark.parametrize("program", ["service compare", "service.loadtest run"])
def test_text_needs_no_library_no_home_and_no_plain_path(program: str, tmp_path: Path) -> None:
    """Nothing can be made below a file, not even by root, so such a home is one that is read-only."""
    folder = tmp_path / "a folder with spaces \xe9"
    folder.mkdir()
    (folder / "my prompts.txt").write_bytes(b"one\r\ntwo\r\n")
    module, command = program.split()
    status, said = run_command(
        ["-m", module, command, "--prompts", "my prompts.txt", "--url", "http://127.0.0.1:9"],
        cwd=folder,
        env={"HOME": "/dev/null", "HF_HOME": "/dev/null/hub", "PYTHONPATH": str(ROOT)},
        blocked=("datasets", "huggingface_hub", "pandas", "pyarrow"),
    )
    assert status == 1, said
    assert "my prompts.txt: 2 prompts from lines of text" in said
    assert "http://127.0.0.1:9 is not ready: not reachable" in said
    assert "Traceback" not in said


def test_compare_sends_what_it_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    file = tmp_path / "p.json"
    file.write_text(json.dumps([{"prompt": "a"}, chat, {"prompt": "a"}, {"prompt": "b"}]))
    sent: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={})
        sent.append(json.loads(request.content))
        return httpx.Response(422, json={"error": {"message": "enough"}})

    made = httpx.Client(base_url="http://x", transport=httpx.MockTransport(answer))
    monkeypatch.setattr(client, "_client", lambda url: made)
    with pytest.raises(client.ServerError, match="enough"):
        client.run_comparison(
            "http://x", str(file), 3, 16, {}, [4], wait_s=0, while_pid=None, json_file=None
        )
    assert sent == [{"prompts": ["a", chat, "a"], "concurrency": 4}]
    told = capsys.readouterr().out.replace("\n", "")
    assert f"{file}: 4 prompts from a JSON array, 1 of them chats, 1 duplicate kept; " in told
    assert "the first 3 are used" in told
