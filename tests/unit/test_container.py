"""What the containers may do: the compose file and the image's recipe, read as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")  # comes with transformers

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("sandbox", "vbon", "vbon-gpu")
# Where the service writes: temporary files, kernels and models fetched (home), the sandbox (data).
WRITABLE = {"/tmp", "/home/vbon", "/data", "/prometheus", "/var/lib/grafana"}


@pytest.mark.parametrize("name", SERVICES)
def test_no_container_has_rights_it_does_not_need(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    for right in ("privileged", "cap_add", "network_mode", "pid", "ipc", "userns_mode", "devices"):
        assert right not in service


@pytest.mark.parametrize("name", SERVICES)
def test_it_is_reached_from_this_machine_alone(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", SERVICES)
def test_it_writes_only_where_it_must(name: str) -> None:
    writable = {entry.partition(":")[0] for entry in SERVICES[name].get("tmpfs", [])}
    for volume in SERVICES[name].get("volumes", []):
        if isinstance(volume, dict):
            assert volume["read_only"] is True
        elif not volume.endswith(":ro"):
            source, target = volume.split(":")
            assert source in COMPOSE["volumes"]  # never a directory of the host
            writable.add(target)
    assert writable <= WRITABLE
    assert "/var/run/docker.sock" not in str(SERVICES[name])


@pytest.mark.parametrize("name", OURS)
def test_the_store_lies_where_it_may_be_written(name: str) -> None:
    if name != "sandbox":
        store = SERVICES[name]["environment"]["VBON_STORE"]
        assert Path(store.rpartition(":-")[2].rstrip("}")).parent == Path("/home/vbon")


def test_the_image_runs_as_nobody_in_particular() -> None:
    lines = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["10001:10001"]
    after = lines[lines.index("USER 10001:10001") :]
    assert not [line for line in after if line.startswith(("RUN", "COPY", "ADD"))]
    for name in OURS:
        assert "user" not in SERVICES[name]  # nothing puts root back
