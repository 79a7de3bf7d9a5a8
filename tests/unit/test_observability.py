"""The dashboard asks only for what is there, and the compose file finds its files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.unit.fakes import make_runtime, serving, stream
from tests.unit.test_metrics import parsed

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docker" / "observability"
DASHBOARD = json.loads((FOLDER / "grafana/dashboards/vbon.json").read_text(encoding="utf-8"))
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def queried(prefix: str) -> set[str]:
    return set(re.findall(rf"\b{prefix}:\w+", " ".join(EXPRESSIONS)))


async def test_every_metric_of_the_dashboard_is_exported() -> None:
    async with serving(make_runtime()) as (app, client):
        await client.post("/generate?mode=bon", json={"prompt": "a", "n": 2})
        await client.post("/generate?mode=bon", json={"prompt": ""})
        await stream(app, "/generate?mode=ref", {"prompt": "a", "stream": True})
        exported = {name for name, _ in parsed((await client.get("/metrics")).text)}
    assert len(queried("vbon")) > 10
    assert queried("vbon") <= exported


def test_panels_have_their_own_place_and_the_provisioned_source() -> None:
    places = [tuple(panel["gridPos"].values()) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in DASHBOARD["panels"]})
    for panel in DASHBOARD["panels"]:
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
