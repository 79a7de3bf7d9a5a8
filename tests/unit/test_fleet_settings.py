"""The settings of a fleet, its scaling, and the errors that cross between its processes."""

from __future__ import annotations

import contextlib
import inspect
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

import vbon.errors
from service import fleet
from service.fleet.settings import FleetSettings, Scale
from vbon.errors import (
    CandidateCountError,
    CheckpointError,
    InvalidInputError,
    OverloadedError,
    PromptTooLongError,
    StoreError,
    VbonError,
)

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_shipped_configuration_is_a_fleet() -> None:
    pytest.importorskip("yaml")
    from service.fleet.config_file import read_fleets

    [(name, settings)] = read_fleets(DOCS / "fleet.yaml").items()
    assert name == "vbon"
    assert settings.policies["ref"].max_replicas == 4
    assert settings.service_settings.policies == {"ref": "sandbox/policy", "vbon": "sandbox/vbon"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("applications: 3", "not a configuration of Ray Serve"),
        ("[", "not a configuration of Ray Serve"),
        ("applications: [{import_path: other:app}]", "no application with import_path"),
        (
            "applications: [{import_path: 'service.fleet:app', args: {replica: 3}}]",
            "Extra inputs are not permitted",
        ),
        (
            "applications: [{import_path: 'service.fleet:app', args: {service: {prot: 3}}}]",
            "prot",
        ),
    ],
)
def test_a_wrong_configuration_says_what_is_wrong(tmp_path: Path, content: str, words: str) -> None:
    pytest.importorskip("yaml")
    from service.fleet.config_file import read_fleets

    file = tmp_path / "fleet.yaml"
    file.write_text(content)
    with pytest.raises(InvalidInputError, match=words):
        read_fleets(file)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    from service.fleet.config_file import read_fleets

    file = tmp_path / "fleet.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInputError, match="not a configuration of Ray Serve"):
        read_fleets(file)


@pytest.mark.parametrize(
    "wrong",
    [
        {"policies": {"other": {}}, "service": {}},
        {"service": {"host": "h", "expected": ["vbon"]}},
        {"service": {"tuned": {"n": 3}}},
        {"service": {"policies": {"vbon": "x"}}},
    ],
)
def test_errors_do_not_repeat_the_password_of_the_store(wrong: dict[str, Any]) -> None:
    """Serve logs such an error, and `vbon fleet check` prints it."""
    # Pydantic quotes the beginning and the end of what it refuses.
    service = wrong.get("service", {}) | {"store": "postgresql://u:s3cret@h/db"}
    with pytest.raises(ValidationError) as caught:
        FleetSettings(**(wrong | {"service": service}))
    assert "s3cret" not in str(caught.value)


def test_policies_that_the_service_does_not_have_are_refused() -> None:
    with pytest.raises(ValidationError, match="policies names other"):
        FleetSettings(service={"policies": {"ref": "x"}}, policies={"other": Scale()})


@pytest.mark.parametrize(
    "service",
    [
        {"expected": ["vbon"]},
        {"distil": {"policy": "live", "dir": "answers"}, "store": "sqlite:///x.db"},
    ],
)
def test_what_a_fleet_cannot_do_is_refused(service: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="which a fleet cannot"):
        FleetSettings(service=service)


def test_replicas_lie_between_their_limits() -> None:
    with pytest.raises(ValidationError, match="outside of min_replicas 2"):
        Scale(replicas=1, min_replicas=2, max_replicas=4)
    assert Scale(replicas=3).max_replicas is None
    with pytest.raises(ValidationError, match="min_replicas is 2, but without max_replicas"):
        Scale(min_replicas=2)


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "find_spec", lambda _: None)
    with pytest.raises(InvalidInputError, match=r"pip install -e '\.\[fleet\]'"):
        fleet.app(FleetSettings())


def test_a_scale_for_a_policy_without_replicas_of_its_own_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from service.fleet.application import build, parts

    (tmp_path / "adapter_config.json").write_text("{}")
    policies = {"ref": "x", "lora": str(tmp_path), "far": "http://host:8000/v1"}
    service = {"policies": policies, "reward": None}
    for name, words in (("lora", "runs on the replicas of ref"), ("far", "is served at a URL")):
        settings = FleetSettings(service=service, policies={name: Scale(replicas=3)})
        for use in (parts, build):
            with pytest.raises(
                InvalidInputError, match=f"policies has a scale for {name}.*{words}"
            ):
                use(settings)
    assert list(parts(FleetSettings(service=service))) == ["FrontEnd", "Policy-ref"]
    # Several front ends have their limits in common.
    for scale in ({"replicas": 2}, {"max_replicas": 2}):
        several = FleetSettings(service=service, front_ends=scale)  # type: ignore[arg-type]
        assert list(parts(several)) == ["FrontEnd", "Policy-ref", "Limits", "Holder"]


def test_front_ends_have_the_environment_of_the_deployment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their machines may have other variables, and the policies' replicas have these."""
    pytest.importorskip("ray")
    from service.fleet.application import FrontEnd, build

    monkeypatch.setenv("VBON_STORE", "sqlite:///deployed.db")
    bound = build(FleetSettings(service={"reward": None}))._bound_deployment
    monkeypatch.setenv("VBON_STORE", "sqlite:///machine.db")
    front_end = FrontEnd.__new__(FrontEnd)
    with contextlib.suppress(StopIteration):
        front_end.__init__(*bound.init_args).send(None)  # type: ignore[misc]  # Serve awaits it
    assert front_end._service.store == "sqlite:///deployed.db"


async def test_a_front_end_whose_start_has_failed_is_replaced() -> None:
    """Otherwise it would answer 503 for ever, though the models may be ready later."""
    pytest.importorskip("ray")
    from ray import serve

    from service.fleet.application import FrontEnd

    kind = serve.ingress()(FrontEnd)
    front_end = kind.__new__(kind)
    for runtime in (None, SimpleNamespace(failure=None)):
        front_end._runtime = runtime
        await front_end.check_health()
    front_end._runtime = SimpleNamespace(failure=CheckpointError("no replica of policy 'ref'"))
    with pytest.raises(RuntimeError, match="no replica of policy 'ref'"):
        await front_end.check_health()


def test_every_part_lets_requests_end_before_it_is_taken_down() -> None:
    """Serve ends a replica that is no longer needed after 20 s by default, in the midst of its answers."""
    pytest.importorskip("ray")
    from service.fleet.application import build

    service = {"reward": "x", "gold": "y", "limits": {"drain_s": 70}}
    front_end = build(FleetSettings(service=service))._bound_deployment
    deployed = [
        one._bound_deployment for handles in front_end.init_args[2:4] for one in handles.values()
    ]
    assert len({one.name for one in deployed}) == 4
    for one in (front_end, *deployed):
        assert one._deployment_config.graceful_shutdown_timeout_s == 75, one.name


@pytest.mark.parametrize(
    ("load", "replicas"), [(0, 1), (1, 1), (64, 1), (65, 2), (128, 2), (640, 10)]
)
def test_replicas_follow_the_load(load: float, replicas: int) -> None:
    from service.fleet.scaling import wanted_replicas

    assert wanted_replicas(load, 64.0) == replicas


# Errors are pickled between processes.

EXAMPLES = [
    InvalidInputError("wrong", field="prompt"),
    PromptTooLongError(prompt_tokens=9, max_tokens=8, limit=10),
    PromptTooLongError.unread(size=10**6, most=100, limit=10),
    CandidateCountError(expected=3, received=2),
    OverloadedError("full", retry_after_s=2.5),
    StoreError("told", log_text="logged"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_cross_processes_whole(error: VbonError) -> None:
    error.log_text = error.log_text or "for the log"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_every_error_can_cross() -> None:
    for _, kind in inspect.getmembers(vbon.errors, inspect.isclass):
        if issubclass(kind, VbonError):
            bare = kind.__new__(kind)
            bare.args = ("text",)
            assert str(pickle.loads(pickle.dumps(bare))) == "text"
