"""Progress of the training loop, which it reports to the service."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import ValidationError

from service.distil.loop_progress import ReportedProgress
from tests.unit.test_distil_service import ANN_KEY, bearer, collecting
from vbon.distil.loop.service import Service
from vbon.distil.progress import LoopProgress

TRAINING = LoopProgress(round="0003", phase="train", done=120, of=300, left_s=95.5)


async def test_a_loop_reports_its_phase_which_the_service_shows_with_its_metrics(
    tmp_path: Path,
) -> None:
    sent: list[bytes] = []

    def take(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("PUT", "/distil/progress")
        sent.append(request.content)
        return httpx.Response(200, json={})

    loop = Service(httpx.Client(base_url="http://x", transport=httpx.MockTransport(take)), print)
    assert loop.report(TRAINING)
    async with collecting(tmp_path) as (_, client):
        nothing = (await client.get("/distil/progress")).json()
        assert nothing == {"progress": None, "age_s": None, "stale": False}
        assert "vbon_distil_round" not in (await client.get("/metrics")).text
        put = await client.put("/distil/progress", json=json.loads(sent[0]))
        assert put.status_code == 200, put.text
        shown = (await client.get("/distil/progress")).json()
        assert LoopProgress.model_validate(shown["progress"]) == TRAINING
        assert (shown["stale"], shown["age_s"] >= 0) == (False, True)
        metrics = (await client.get("/metrics")).text
        assert 'vbon_distil_round_info{phase="train",round="0003"} 1.0' in metrics
        for line in ("done 120.0", "of 300.0", "left_seconds 95.5", "stale 0.0"):
            assert f"\nvbon_distil_round_{line}\n" in metrics
        assert "\nvbon_distil_round_report_age_seconds " in metrics
        next_one = {"round": "0003", "phase": "compare"}
        assert (await client.put("/distil/progress", json=next_one)).status_code == 200
        metrics = (await client.get("/metrics")).text
        assert 'phase="train"' not in metrics
        assert "vbon_distil_round_done" not in metrics
        for method in ("get", "put"):
            of_others = await client.request(
                method, "/distil/progress", json=next_one, headers=bearer(ANN_KEY)
            )
            assert of_others.status_code == 403


@pytest.mark.parametrize(
    "wrong",
    [
        {"phase": "train; drop"},
        {"round": "../3"},
        {"done": 4, "of": 3},
        {"left_s": -1},
        {"next_within_s": 0},
        {"prompt": "x"},
    ],
)
def test_a_report_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LoopProgress.model_validate({"round": "0003", "phase": "train", **wrong})


def test_a_loop_that_is_silent_for_longer_than_it_said_is_stale_unless_it_has_ended() -> None:
    now_s = [1000.0]
    reported, registry = ReportedProgress(clock=lambda: now_s[0]), CollectorRegistry()
    reported.register(registry)
    assert not reported.stale
    reported.report(TRAINING.model_copy(update={"next_within_s": 60.0}))
    now_s[0] += 60
    assert (reported.stale, reported.age_s) == (False, 60)
    now_s[0] += 1
    assert reported.stale
    metrics = generate_latest(registry).decode()
    assert "vbon_distil_round_stale 1.0" in metrics
    assert "vbon_distil_round_report_age_seconds 61.0" in metrics
    reported.report(LoopProgress(round="0003", phase="stopped"))
    now_s[0] += 1e6
    assert not reported.stale
    # The alert of a loop that is silent after a restart of the service takes the last value that is >= 0.
    assert "vbon_distil_round_stale NaN" in generate_latest(registry).decode()


@pytest.mark.parametrize("answer", [500, 401, 404, None])
def test_a_loop_goes_on_whatever_becomes_of_its_report(answer: int | None) -> None:
    asked = []

    def fail(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if answer is None:
            raise httpx.ReadTimeout("no answer")
        return httpx.Response(answer)

    loop = Service(httpx.Client(base_url="http://x", transport=httpx.MockTransport(fail)), print)
    assert [loop.report(TRAINING), loop.report(TRAINING)] == [False, False]
    assert len(asked) == (1 if answer == 404 else 2)  # an older service is not asked again
