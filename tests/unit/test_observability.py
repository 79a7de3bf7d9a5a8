"""The dashboard asks only for what is there, and the compose file finds its files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.fakes import make_runtime, serving, stream
from tests.unit.rolling import rolling
from tests.unit.test_metrics import parsed

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docker" / "observability"
DASHBOARD = json.loads((FOLDER / "grafana/dashboards/vbon.json").read_text(encoding="utf-8"))
ROWS = [panel for panel in DASHBOARD["panels"] if panel["type"] == "row"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]


def queried(prefix: str, separator: str = ":") -> set[str]:
    return set(re.findall(rf"\b{prefix}{separator}\w+", " ".join(EXPRESSIONS)))


async def test_every_metric_of_the_dashboard_is_exported() -> None:
    async with serving(make_runtime()) as (app, client):
        await client.post("/generate?mode=bon", json={"prompt": "a", "n": 2})
        await client.post("/generate?mode=bon", json={"prompt": ""})
        await stream(app, "/generate?mode=ref", {"prompt": "a", "stream": True})
        exported = {name for name, _ in parsed((await client.get("/metrics")).text)}
    assert len(queried("vbon")) > 10
    assert queried("vbon") <= exported


def rules() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))
    (group,) = found["groups"]
    return list(group["rules"])


async def test_every_metric_and_reason_of_an_alert_is_exported(tmp_path: Path) -> None:
    async with rolling(tmp_path, shares=[1.0]) as service:
        await service.submitted("0001")
        await service.ask()
        report = {"round": "0001", "phase": "train"}
        (await service.client.put("/distil/progress", json=report)).raise_for_status()
        text = (await service.client.get("/metrics")).text
    exported = {name for name, _ in parsed(text)}
    for rule in rules():
        named = set(re.findall(r"\bvbon\w+", rule["expr"]))
        assert named, rule
        assert named <= exported, rule
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert rule["annotations"]["summary"]
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        for metric, reasons in re.findall(r'(\w+)\{reason=~"([^"]+)"\}', rule["expr"]):
            for reason in reasons.split("|"):
                assert f'{metric}{{reason="{reason}"}}' in text, rule


def test_the_alerts_fire_as_their_cases_say() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    for command in (("check", "rules", "alerts.yml"), ("test", "rules", "alerts.test.yml")):
        found = subprocess.run([promtool, *command], cwd=FOLDER, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout + found.stderr


def test_no_alert_waits_for_a_loop_that_has_ended() -> None:
    """Its last value is NaN, which the alert must leave out after a restart of the service."""
    (found,) = [rule["expr"] for rule in rules() if rule["alert"] == "VbonLoopStale"]
    assert (
        "last_over_time(vbon_distil_round_stale[1d]) >= 0 unless vbon_distil_round_stale" in found
    )


def test_the_alerts_are_read_and_each_has_its_own_name() -> None:
    yaml = pytest.importorskip("yaml")
    configured = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    assert configured["rule_files"] == ["alerts.yml"]
    mounts = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    assert "./docker/observability/alerts.yml:/etc/prometheus/alerts.yml:ro" in mounts
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) >= 4


async def test_every_metric_of_the_row_distil_is_exported(tmp_path: Path) -> None:
    async with rolling(tmp_path, shares=[0.5, 1.0]) as service:
        await service.submitted("0001")
        await service.ask_until(lambda: service.live.keeper.totals.shadows["next"] > 0)
        exported = {name for name, _ in parsed((await service.client.get("/metrics")).text)}
    assert len(queried("vbon_distil", "_")) > 8
    assert queried("vbon_distil", "_") <= exported
    (row,) = ROWS
    below = [panel for panel in PANELS if panel["gridPos"]["y"] > row["gridPos"]["y"]]
    asked = [target["expr"] for panel in below for target in panel["targets"]]
    assert all("vbon_distil_" in expression for expression in asked)
    assert row["title"] == "Distil"


def test_panels_have_their_own_place_and_the_provisioned_source() -> None:
    places = [tuple(panel["gridPos"].values()) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in DASHBOARD["panels"]})
    for panel in PANELS:
        assert panel["title"]
        assert panel["datasource"]["uid"] == "prometheus"
        assert all(target["legendFormat"] for target in panel["targets"])
    for expression in EXPRESSIONS:
        assert expression.count("(") == expression.count(")")


def test_compose_mounts_what_exists_and_pins_its_images() -> None:
    yaml = pytest.importorskip("yaml")
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    for name in ("prometheus", "grafana"):
        service = compose["services"][name]
        assert service["profiles"] == ["observability"]
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
        assert service["ports"][0].startswith("127.0.0.1:")
        for source in (mount.split(":")[0] for mount in service["volumes"]):
            assert (ROOT / source).exists() if "/" in source else source in compose["volumes"]
    scraped = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    names = scraped["scrape_configs"][0]["dns_sd_configs"][0]["names"]
    assert set(names) <= set(compose["services"])
    sources = yaml.safe_load(
        (FOLDER / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    )
    assert sources["datasources"][0]["uid"] == "prometheus"
