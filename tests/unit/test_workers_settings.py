"""Settings that a server of several processes cannot have."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from service.settings import ServiceSettings


@pytest.mark.parametrize(
    "settings",
    [
        {"expected": ["vbon"]},
        {"distil": {"dir": "x"}},
        {"distil": {"dir": "x", "policy": "live"}},
        {"store": ":memory:"},
        {"store": "sqlite://"},
        {"store": "sqlite:///:memory:"},
        {"store": "sqlite+pysqlite:///:memory:?cache=shared"},
        {"store": "sqlite:///file:x?mode=memory&uri=true"},
    ],
)
def test_settings_of_one_process_are_refused_at_the_start(settings: dict[str, object]) -> None:
    ServiceSettings(**settings)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="needs a server of one process"):
        ServiceSettings(workers=2, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "store", ["x.db", "sqlite:///x.db", "sqlite:////tmp/x.db", "postgresql+psycopg://u@h/d", None]
)
def test_workers_may_have_any_store_that_they_share(store: str | None) -> None:
    assert ServiceSettings(workers=2, store=store).store == store


def test_the_front_ends_of_a_fleet_are_its_replicas() -> None:
    from service.fleet.settings import FleetSettings

    with pytest.raises(ValidationError, match=r"service\.workers is 2.*front_ends\.replicas"):
        FleetSettings(service={"workers": 2})
