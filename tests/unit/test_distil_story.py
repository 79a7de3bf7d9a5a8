"""The story of ``vbon demo --distil``: its commands, its traffic and its figures. It takes minutes itself."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from service.settings import ServiceSettings
from training.configs import SandboxConfig
from training.train.config import train_config_type
from vbon.config import load_settings
from vbon.demo.config import DemoConfig
from vbon.demo.processes import DemoFailedError
from vbon.demo.story import DistilStory, halves
from vbon.demo.traffic import Sent, Traffic
from vbon.distil.loop.config import DistilRunConfig
from vbon.errors import DataError


@pytest.fixture
def story(tmp_path: Path) -> Iterator[DistilStory]:
    with ExitStack() as parts:
        yield DistilStory(DemoConfig(out=tmp_path), parts)


def test_every_command_of_the_story_takes_its_flags(story: DistilStory) -> None:
    sandbox = [*story._sandbox(), *story._more_prompts()]
    for words, skip, kind in (
        (sandbox, 2, SandboxConfig),
        (story._serve(), 2, ServiceSettings),
        (story._loop(), 3, DistilRunConfig),
    ):
        found = load_settings(kind, words[skip:], program="vbon demo")
    assert isinstance(found, DistilRunConfig)
    train_config_type(found.objective)(**found.training)


def test_prompts_change_from_those_of_few_words_to_those_of_more() -> None:
    texts = ["a b c", "a", "b", "a b", "c d"]
    assert halves(texts) == (["a", "b"], ["a b c", "a b", "c d"])
    assert halves(["a", "b", "c", "a b"]) == (["a", "b", "c"], ["a b"])
    with pytest.raises(DataError, match="equally many words"):
        halves(["a", "b"])


def test_its_key_is_an_admin_s_and_only_the_user_can_read_it(story: DistilStory) -> None:
    (story.out / "keys.jsonl").write_text("of an earlier story")
    story._make_key()
    assert story.key_file.stat().st_mode & 0o077 == 0
    assert story._headers()["Authorization"].startswith("Bearer ")
    assert json.loads((story.out / "keys.jsonl").read_text())["role"] == "admin"


class Answering(BaseHTTPRequestHandler):
    """A service that answers every third request with an error."""

    seen: ClassVar[list[dict[str, Any]]] = []
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.lock:
            self.seen.append(body | {"key": self.headers["authorization"]})
            fails = len(self.seen) % 3 == 0
        answer = {"routing": {"arm": "bon"}, "usage": {"generated_tokens": 7}}
        content = json.dumps({"error": "no"} if fails else answer).encode()
        self.send_response(500 if fails else 200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 64  # all threads may connect at once


def test_traffic_counts_what_it_sent_and_changes_its_prompts() -> None:
    Answering.seen.clear()
    with Server(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        traffic = Traffic(url, ["old"], per_s=500, max_tokens=5, headers={"authorization": "k"})
        traffic.start()
        while traffic.snapshot().requests < 9:
            pass
        traffic.change(["new"])
        while not any(one["prompt"] == "new" for one in list(Answering.seen)):
            pass
        traffic.stop()
        server.shutdown()
    sent = traffic.snapshot()
    assert sent.requests == len(Answering.seen)
    assert sent.failed == len(Answering.seen) // 3
    assert sent.arms == {"bon": sent.requests - sent.failed}
    assert sent.tokens["bon"] == 7 * sent.arms["bon"]
    assert "500" in sent.failures[0]
    assert Answering.seen[0] == {"prompt": "old", "max_tokens": 5, "key": "k"}


def test_the_rate_of_requests_can_change_at_any_time() -> None:
    """No request is sent at a rate of 0; full speed and an end take effect at once."""
    Answering.seen.clear()
    with Server(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        traffic = Traffic(url, ["old"], per_s=0, max_tokens=5, headers={"authorization": "k"})
        traffic.start()
        traffic.pace(1e-3)  # the first one would be due in 17 minutes
        assert traffic.snapshot().requests == 0
        traffic.pace(None)
        while traffic.snapshot().requests < 40:
            pass
        traffic.pace(0)
        traffic.stop()  # joins threads that would otherwise wait for ever
        server.shutdown()
    assert traffic.snapshot().requests == len(Answering.seen) >= 40


def test_a_machine_that_collects_enough_at_once_has_a_rate_too(
    story: DistilStory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the rate before was 0, and the story ended in a division by it."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(story, "_has_collected", lambda _: True)
    counts = iter([40, 40, 41, 44, 44, 44])
    traffic = SimpleNamespace(snapshot=lambda: Sent(requests=next(counts)))
    story._collect_at_full_speed(
        traffic,
        [
            SimpleNamespace(  # type: ignore[arg-type, list-item]
                process=SimpleNamespace(poll=lambda: None), last_line=lambda: ""
            )
        ],
    )
    assert story.per_s["bon"] > 0


def told(story: DistilStory, monkeypatch: pytest.MonkeyPatch, failed: int = 0) -> dict[str, Any]:
    """The figures of a story of 100 requests of 400 tokens by best-of-N and 300 of 20 by vBoN."""
    checkpoints = [
        {"was_live": was, "evidence": {"shadows": shadows, "win_rate": rate}}
        for was, shadows, rate in (
            (True, 10, 0.7),
            (True, 30, 0.9),
            (False, 99, 0.1),
            (True, 0, None),
        )
    ]
    rollout = {
        "live": "0001",
        "shadows": {"tokens": 6_000},
        "training_tokens": 50_000,
        "checkpoints": checkpoints,
    }
    monkeypatch.setattr(story, "_rollout", lambda: rollout)
    one = {"verdict": "promote", "status": "live", "seconds": {}}
    rounds = [
        {"number": 1, "why": None, **one},
        {"number": 2, "why": "the prompts have changed", **one},
    ]
    monkeypatch.setattr(story, "_rounds", lambda: rounds)
    story.per_s = {"bon": 25.0, "vbon": 200.0}
    story.moments.takeover, story.moments.change, story.moments.noticed = 100, 200, 230
    story.out.mkdir(exist_ok=True)
    sent = Sent(
        400 + failed,
        failed,
        Counter(bon=100, live=300),
        Counter(bon=40_000, live=6_000),
        ["refused"] * failed,
    )
    story._tell(sent)
    return dict(json.loads((story.out / "distil-story.json").read_text()))


def test_the_figures_of_a_story_by_hand(
    story: DistilStory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(story, monkeypatch)
    assert found["tokens"] == {
        "answers": 46_000, "shadows": 6_000, "training": 50_000, "total": 102_000,
        "always_best_of_n": 160_000,
    }  # fmt: skip
    assert found["share_of_best_of_n"] == pytest.approx(0.85 / (16 / 17))
    assert found["pays_back_after"] == 0.0
    said = " ".join(capsys.readouterr().out.split())
    assert found["requests_per_s_at_full_speed"] == {"bon": 25.0, "vbon": 200.0}
    assert "25 requests a second at full speed before, 200 afterwards" in said
    assert "0.64 times" in said
    assert "noticed 30 requests later: the prompts have changed" in said


def test_failed_requests_fail_the_story(
    story: DistilStory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DemoFailedError, match="2 requests failed"):
        told(story, monkeypatch, failed=2)
