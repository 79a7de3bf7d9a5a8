"""The Helm chart, rendered by Helm's own engine with usual and unusual values.

Its manifests are valid for Kubernetes (scripts/chart_check.py), and start what the values ask for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from service.fleet.settings import FleetSettings, Scale
from service.settings import ServiceSettings

yaml = pytest.importorskip("yaml")  # comes with transformers
if find_spec("helm_python") is None or find_spec("kubernetes_validate") is None:
    pytest.skip(
        "no Helm here; install vbon with the extra chart (helm-python-sdk, kubernetes-validate)",
        allow_module_level=True,
    )

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "docker" / "kubernetes" / "vbon"
Json = dict[str, Any]

LONG = "a-release-with-a-name-of-fifty-three-characters-12345"
MANY = {f"p{number}.v-{number}_x": f"/models/p {number}" for number in range(40)}
QUOTED = {
    "yes": "hf://org/name",
    "at": "http://h/v1#org/m@main,https://[::1]:8001/v1/a@b?",
    "1e3": '/models/with "quotes" and \\',
    "null": "http://h1:8001/v1,http://h2:8001/v1#a b",
    "0x1f": "/models/# no comment: {{ .Values }}",
}
SECRETS = {
    "store": {"name": "db", "key": "url"},
    "keys": {"name": "api-keys", "key": "keys.jsonl"},
    "huggingFace": {"name": "hub", "key": "token"},
}
ENGINE_ARGS = {
    "quantization": "fp8", "revision": "8192", "max_num_batched_tokens": 8192, "async_scheduling": True,
    "generation_config": None,
    "speculative_config": {"method": "ngram", "num_speculative_tokens": 5, "thresholds": [1, 0.5]},
}  # fmt: skip
SCALED = {
    "policies": {
        "ref": {"replicas": 2, "min_replicas": 1, "max_replicas": 4, "target": 32.5, "gpus": 2}
    },
    "gold": {"gpus": 0.5, "cpus": 0},
}
PLAIN: dict[str, Json] = {
    "defaults": {},
    "many policies": {"settings": {"policies": MANY}},
    "names to quote": {"settings": {"policies": QUOTED, "gold": "python:a.b:c"}},
    "no reward": {"settings": {"reward": "none"}},
    "large and broken numbers": {
        "settings": {
            "limits": {"running_tokens": 2**40, "waiting_sequences": 10_000_000, "drain_s": 12.5},
            "engine": {"gpu_memory_utilization": 0.35, "args": ENGINE_ARGS},
            "tuned": {"mode": "bon", "settings": {"top_k": 40}},
        }
    },
    "existing claims": {"models": {"existingClaim": "weights", "create": {"enabled": True}},
                        "home": {"existingClaim": "kernels"}},
    "a new claim": {"models": {"create": {"enabled": True, "storageClassName": "fast"}}},
    "CPUs alone": {"gpu": {"count": 0}, "resources": {"requests": {"cpu": "500m"}, "limits": None}},
    "several GPUs of another kind": {"gpu": {"count": 8, "resource": "amd.com/gpu"}},
    "empty selectors": {"nodeSelector": {}, "tolerations": [], "affinity": {}, "labels": {}},
    "selectors": {
        "nodeSelector": {"gpu": "true", "zone": "a"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "priorityClassName": "high", "runtimeClassName": "nvidia", "imagePullSecrets": ["r1", "r2"],
        "podLabels": {"team": "a"}, "podAnnotations": {"note": "true"}, "labels": {"cost": "1"},
    },
    "IPv6": {"listen": "::", "service": {"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6"]},
             "settings": {"hosts": ["fd00::1"]}},
    "secrets": {"secrets": SECRETS, "image": {"digest": f"sha256:{'a' * 64}"}},
    "all parts": {
        "autoscaling": {"enabled": True}, "dashboard": {"enabled": True},
        "serviceMonitor": {"enabled": True, "bearerTokenSecret": {"name": "metrics-key", "key": "token"}},
        "networkPolicy": {"from": [{"ipBlock": {"cidr": "fd00::/8"}}],
                          "metricsFrom": [{"namespaceSelector": {}}]},
    },
    "no parts": {"podDisruptionBudget": {"enabled": False}, "networkPolicy": {"enabled": False},
                 "serviceAccount": {"create": False}},
}  # fmt: skip
FLEETS: dict[str, Json] = {
    "a fleet": {},
    "a fleet of many policies": {"settings": {"policies": MANY}, "fleet": {"args": SCALED}},
    "a fleet with names to quote": {
        "settings": {"policies": QUOTED, "reward": "none"},
        "fleet": {"args": {"policies": {"yes": {"gpus": 1}}}},
    },
    "a fleet of remote policies": {
        "settings": {"policies": {"ref": "http://h1:8001/v1"}},
        "fleet": {"args": {"policies": {"ref": None}}},
    },
    "a fleet with Redis and claims": {
        "secrets": SECRETS, "models": {"existingClaim": "weights"}, "imagePullSecrets": ["r"],
        "fleet": {"redis": {"address": "redis:6379", "passwordSecret": {"name": "redis", "key": "pw"}}},
    },
    "a fleet of two kinds of workers": {
        "fleet": {"workers": [
            {"name": "cpu", "replicas": 2, "minReplicas": 0},
            {"name": "h200", "replicas": 1, "gpus": 8, "nodeSelector": {"gpu": "h200"},
             "tolerations": [{"operator": "Exists"}], "resources": {"limits": {"cpu": "64"}}},
        ]},
    },
    "a fleet on IPv6 that is not scaled": {"listen": "::", "fleet": {"autoscaling": False}},
    "a fleet past Serve's proxy": {"listen": "::", "fleet": {"args": {"direct_port": 8001}}},
}  # fmt: skip
NAMED: dict[str, Json] = {
    "a long name": {"release": LONG, "namespace": "n" * 63},
    "a name with a digit and dots": {"release": "1.2-vbon.x"},
    "a long name of its own": {"values": {"fullnameOverride": "x" * 46 + "-" * 9 + "y"}},
}
REFUSED: dict[str, tuple[Json, str]] = {
    "an unknown name": ({"replicas": 2}, "replicas"),
    "a password in a value": ({"settings": {"store": "postgresql://u:p@h/d"}}, "store"),
    "a password in a policy": (
        {"settings": {"policies": {"ref": "http://h1:8001/v1,http://u:p@h2/v1#a"}}},
        "policies",
    ),
    "a password of a reward model": ({"settings": {"reward": "https://u:p@h/score"}}, "reward"),
    "a password of a collector": ({"settings": {"otel": {"endpoint": "http://u:p@h"}}}, "otel"),
    "a password in a list": ({"settings": {"cors_origins": ["http://u:p@h"]}}, "cors_origins"),
    "an unknown name in a fleet": (
        {"fleet": {"args": {"frontends": {"replicas": 2}}}},
        "frontends",
    ),
    "a port of its own": ({"settings": {"port": 80}}, "port"),
    "no reference policy": ({"settings": {"policies": {"ref": None}}}, "ref"),
    "a policy's name": ({"settings": {"policies": {"A b": "x"}}}, "A b"),
    "a negative number": ({"replicaCount": -1}, "replicaCount"),
    "half a GPU for a pod": ({"gpu": {"count": 0.5}}, "count"),
    "no workers": ({"fleet": {"workers": []}}, "workers"),
    "an address without a port": ({"fleet": {"redis": {"address": "redis"}}}, "address"),
    "a drain without an end": ({"settings": {"limits": {"drain_s": 1e9}}}, "drain_s"),
}

WRONG: dict[str, tuple[Json, str]] = {
    "a field that Kubernetes does not have": (
        {"tolerations": [{"effekt": "NoSchedule"}]},
        "effekt",
    ),
    "such a field in a fleet": (
        {"env": [{"name": "A", "val": "b"}], "fleet": {"enabled": True}},
        "val",
    ),
    "a label's value": ({"podLabels": {"team": "a b"}}, "label team"),
    "a variable of the chart": ({"env": [{"name": "VBON_STORE", "value": "x"}]}, "set twice"),
}


def fleet(values: Json) -> Json:
    return values | {"fleet": values.get("fleet", {}) | {"enabled": True}}


CASES: dict[str, Json] = {
    **{name: {"values": values} for name, values in PLAIN.items()},
    **{name: {"values": fleet(values)} for name, values in FLEETS.items()},
    **{name: {"values": {}} | case for name, case in NAMED.items()},
    **{f"{name}, a fleet": case | {"values": fleet(case.get("values", {}))} for name, case in NAMED.items()},
}  # fmt: skip


@pytest.fixture(scope="module")
def rendered() -> dict[str, Json]:
    """The outcome of each case, from one process that loads Helm's library."""
    broken = {**REFUSED, **WRONG}
    cases = [*CASES.values(), *({"values": values} for values, _ in broken.values())]
    run = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "chart_check.py"), str(CHART), "--cases"],
        input=json.dumps(cases), capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    return dict(zip([*CASES, *broken], json.loads(run.stdout), strict=True))


def only(outcome: Json, kind: str) -> Json:
    """The one manifest of a kind."""
    found = [one for one in outcome["manifests"] if one["kind"] == kind]
    assert len(found) == 1
    return found[0]


def of_kinds(outcome: Json) -> list[str]:
    return sorted(one["kind"] for one in outcome["manifests"])


def pods(outcome: Json) -> list[Json]:
    """The pod templates of a Deployment or a RayService."""
    if "RayService" not in of_kinds(outcome):
        return [only(outcome, "Deployment")["spec"]["template"]]
    cluster = only(outcome, "RayService")["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"] for group in groups]


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the settings of this machine out of those that are checked."""
    for name in [name for name in os.environ if name.startswith("VBON_")]:
        monkeypatch.delenv(name)


def settings_of(outcome: Json) -> ServiceSettings:
    """The settings that the service would start with."""
    return ServiceSettings(**tomllib.loads(only(outcome, "ConfigMap")["data"]["service.toml"]))


def fleet_of(outcome: Json) -> FleetSettings:
    """The fleet that Ray Serve would start."""
    config = yaml.safe_load(only(outcome, "RayService")["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    assert application["import_path"] == "service.fleet:app"
    return FleetSettings(**application["args"])


@pytest.mark.parametrize("name", CASES)
def test_the_manifests_are_valid(rendered: dict[str, Json], name: str) -> None:
    outcome = rendered[name]
    assert outcome["error"] is None
    assert outcome["problems"] == []
    if "RayService" in of_kinds(outcome):
        fleet_of(outcome)
    elif "dashboard" not in CASES[name].get("values", {}):
        settings_of(outcome)


@pytest.mark.parametrize("name", REFUSED)
def test_values_that_cannot_work_are_refused_by_name(rendered: dict[str, Json], name: str) -> None:
    outcome = rendered[name]
    assert outcome["error"] is not None
    assert REFUSED[name][1] in outcome["error"]


def test_a_fleet_s_arguments_have_the_names_of_its_settings() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    arguments = schema["properties"]["fleet"]["properties"]["args"]["properties"]
    assert set(arguments) == set(FleetSettings.model_fields) - {"service"}  # which `settings` are
    assert set(schema["$defs"]["scale"]["properties"]) == set(Scale.model_fields)


@pytest.mark.parametrize("name", WRONG)
def test_the_check_finds_what_kubernetes_would_refuse(rendered: dict[str, Json], name: str) -> None:
    assert any(WRONG[name][1] in problem for problem in rendered[name]["problems"])


@pytest.mark.parametrize("name", CASES)
def test_no_pod_has_rights_it_does_not_need(rendered: dict[str, Json], name: str) -> None:
    cluster = CASES[name].get("values", {}).get("fleet", {})
    for template in pods(rendered[name]):
        pod = template["spec"]
        # Ray's autoscaler, beside the head, asks the API for pods; nothing else asks it for anything.
        head = template["metadata"]["labels"].get("app.kubernetes.io/component") == "head"
        needs_token = head and cluster.get("autoscaling", True)
        assert pod.get("automountServiceAccountToken", True) is needs_token
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001  # the user of the image
        assert pod["enableServiceLinks"] is False
        for right in ("hostNetwork", "hostPID", "hostIPC"):
            assert right not in pod
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
        writable = {
            mount["mountPath"]
            for mount in pod["containers"][0]["volumeMounts"]
            if not mount.get("readOnly")
        }
        assert writable == {"/tmp", "/dev/shm", "/home/vbon"}
        assert not [one for one in pod["volumes"] if "hostPath" in one]
    assert "Secret" not in of_kinds(rendered[name])


@pytest.mark.parametrize("name", ["names to quote", "many policies"])
def test_every_policy_arrives_as_it_was_written(rendered: dict[str, Json], name: str) -> None:
    policies = PLAIN[name]["settings"]["policies"] | {"ref": "/models/ref"}
    assert settings_of(rendered[name]).policies == policies


def test_a_fleet_has_the_policies_and_scales_that_were_written(rendered: dict[str, Json]) -> None:
    found = fleet_of(rendered["a fleet of many policies"])
    assert found.service_settings.policies == MANY | {"ref": "/models/ref"}
    ref = found.policies["ref"]
    assert (ref.replicas, ref.max_replicas, ref.target, ref.gpus) == (2, 4, 32.5, 2)
    assert (found.gold.gpus, found.gold.cpus) == (0.5, 0)
    quoted = fleet_of(rendered["a fleet with names to quote"])
    assert quoted.service_settings.policies == QUOTED | {"ref": "/models/ref"}
    assert quoted.service_settings.reward is None
    assert fleet_of(rendered["a fleet of remote policies"]).policies == {}


def test_numbers_arrive_whole(rendered: dict[str, Json]) -> None:
    found = settings_of(rendered["large and broken numbers"])
    assert found.limits.running_tokens == 2**40
    assert found.limits.waiting_sequences == 10_000_000
    assert (found.limits.drain_s, found.engine.gpu_memory_utilization) == (12.5, 0.35)
    # JSON tells 5 from 5.0, as vLLM does where it takes a dictionary, and a text from a number.
    assert json.dumps(found.engine.args, sort_keys=True) == json.dumps(ENGINE_ARGS, sort_keys=True)
    assert json.dumps(found.tuned.settings) == json.dumps({"top_k": 40})


@pytest.mark.parametrize("name", CASES)
def test_a_pod_has_more_time_to_end_than_its_requests(rendered: dict[str, Json], name: str) -> None:
    outcome = rendered[name]
    drain_s = CASES[name].get("values", {}).get("settings", {}).get("limits", {}).get("drain_s", 30)
    for template in pods(outcome):
        # 5 s until no proxy sends requests, the requests' own time, and 30 s for the engines.
        assert template["spec"]["terminationGracePeriodSeconds"] == 5 + -(-drain_s // 1) + 30


def test_probes_ask_what_they_are_for(rendered: dict[str, Json]) -> None:
    (container,) = pods(rendered["defaults"])[0]["spec"]["containers"]
    paths = {
        probe: container[probe]["httpGet"]["path"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    # A dead engine is restarted by the service: it must not fail the probe that restarts the pod.
    assert paths == {
        "startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"
    }  # fmt: skip
    startup = container["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] == 1800


def test_gpus_are_limits_and_none_are_none(rendered: dict[str, Json]) -> None:
    def limits(name: str, group: int = 0) -> Json:
        resources = pods(rendered[name])[group]["spec"]["containers"][0]["resources"]
        return resources.get("limits") or {}

    assert limits("defaults")["nvidia.com/gpu"] == "1"
    assert limits("several GPUs of another kind")["amd.com/gpu"] == "8"
    assert limits("CPUs alone") == {}
    assert "nvidia.com/gpu" not in limits("a fleet")  # the head
    assert limits("a fleet", 1)["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in limits("a fleet of two kinds of workers", 1)
    assert limits("a fleet of two kinds of workers", 2)["nvidia.com/gpu"] == "8"


@pytest.mark.parametrize("name", ["secrets", "a fleet with Redis and claims"])
def test_secrets_are_named_and_never_shown(rendered: dict[str, Json], name: str) -> None:
    for template in pods(rendered[name]):
        (container,) = template["spec"]["containers"]
        env = {one["name"]: one for one in container["env"]}
        reference = {"secretKeyRef": {"name": "db", "key": "url"}}
        assert env["VBON_STORE"]["valueFrom"] == reference
        assert env["HF_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == "hub"
        mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
        assert env["VBON_AUTH__KEYS_FILE"]["value"] == f"{mounts['keys']}/keys.jsonl"
        keys = next(one for one in template["spec"]["volumes"] if one["name"] == "keys")
        assert keys["secret"]["secretName"] == "api-keys"


def test_the_service_knows_every_variable_it_is_given(
    rendered: dict[str, Json], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("secrets", "a fleet with Redis and claims"):
        for template in pods(rendered[name]):
            for one in template["spec"]["containers"][0]["env"]:
                if one["name"].startswith("VBON_") and one["name"] != "VBON_CONFIG":
                    monkeypatch.setenv(one["name"], one.get("value", "sqlite:///x.db"))
    found = ServiceSettings()
    assert found.auth.keys_file == "/etc/vbon-keys/keys.jsonl"
    assert (found.host, found.port, found.store) == ("0.0.0.0", 8000, "sqlite:///x.db")


def test_front_ends_past_serve_s_proxy_can_be_reached(rendered: dict[str, Json]) -> None:
    outcome = rendered["a fleet past Serve's proxy"]
    assert fleet_of(outcome).direct_port == 8001
    clients = only(outcome, "NetworkPolicy")["spec"]["ingress"][0]["ports"]
    assert [one["port"] for one in clients] == [8000, 8080, 8001]
    for template in pods(outcome):
        env = {one["name"]: one.get("value") for one in template["spec"]["containers"][0]["env"]}
        assert env["VBON_HOST"] == "::"  # where they listen; the image says 0.0.0.0
    without = only(rendered["a fleet"], "NetworkPolicy")["spec"]["ingress"][0]["ports"]
    assert [one["port"] for one in without] == [8000, 8080]


def test_claims_are_made_or_taken(rendered: dict[str, Json]) -> None:
    def claims(name: str) -> dict[str, str]:
        volumes = pods(rendered[name])[0]["spec"]["volumes"]
        return {
            one["name"]: one["persistentVolumeClaim"]["claimName"]
            for one in volumes
            if "persistentVolumeClaim" in one
        }

    assert claims("defaults") == {}
    assert claims("existing claims") == {"models": "weights", "home": "kernels"}
    assert "PersistentVolumeClaim" not in of_kinds(rendered["existing claims"])
    made = only(rendered["a new claim"], "PersistentVolumeClaim")
    assert claims("a new claim") == {"models": made["metadata"]["name"]}
    assert made["spec"]["storageClassName"] == "fast"


def test_the_service_answers_under_the_names_of_its_service(rendered: dict[str, Json]) -> None:
    plain, ray = rendered["a long name"], rendered["a long name, a fleet"]
    name = only(plain, "Service")["metadata"]["name"]
    assert name in settings_of(plain).hosts
    assert f"{name}.{'n' * 63}.svc.cluster.local" in settings_of(plain).hosts
    for one in (ray, rendered["a long name of its own, a fleet"]):
        of_ray = only(one, "RayService")["metadata"]["name"]
        # As KubeRay names it; of a name of more than 50 characters it would take the last 50.
        assert len(f"{of_ray}-serve-svc") <= 50
        assert f"{of_ray}-serve-svc" in fleet_of(one).service_settings.hosts
    assert settings_of(rendered["IPv6"]).hosts[0] == "fd00::1"


def test_all_parts_are_there_and_none_is_if_not_wanted(rendered: dict[str, Json]) -> None:
    assert of_kinds(rendered["all parts"]) == [
        "ConfigMap", "ConfigMap", "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy",
        "PodDisruptionBudget", "Service", "ServiceAccount", "ServiceMonitor",
    ]  # fmt: skip
    assert of_kinds(rendered["no parts"]) == ["ConfigMap", "Deployment", "Service"]
    deployment = only(rendered["all parts"], "Deployment")
    assert "replicas" not in deployment["spec"]  # or each upgrade would undo the autoscaler
    for one in rendered["all parts"]["manifests"]:
        if one["metadata"]["name"].endswith("-dashboard"):
            shipped = ROOT / "docker" / "observability" / "grafana" / "dashboards" / "vbon.json"
            assert json.loads(one["data"]["vbon.json"]) == json.loads(shipped.read_text())
            break
    else:
        pytest.fail("no dashboard")


def test_a_fleet_keeps_its_head_apart_and_scales_by_worker_pods(rendered: dict[str, Json]) -> None:
    ray = only(rendered["a fleet of two kinds of workers"], "RayService")["spec"]
    assert ray["excludeHeadPodFromServeSvc"] is True
    cluster = ray["rayClusterConfig"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        # Ray would ask for a third of the memory, find /dev/shm too small, and keep its objects in /tmp.
        shm = next(one for one in group["template"]["spec"]["volumes"] if one["name"] == "shm")
        assert shm["emptyDir"]["sizeLimit"] == "2Gi"
        assert int(group["rayStartParams"]["object-store-memory"]) == 2**30 // 2
    assert cluster["enableInTreeAutoscaling"] is True
    sizes = [
        (one["groupName"], one["minReplicas"], one["replicas"], one["maxReplicas"])
        for one in cluster["workerGroupSpecs"]
    ]
    assert sizes == [("cpu", 0, 2, 2), ("h200", 1, 1, 1)]
    kept = only(rendered["a fleet with Redis and claims"], "RayService")["spec"]["rayClusterConfig"]
    assert kept["gcsFaultToleranceOptions"] == {
        "redisAddress": "redis:6379",
        "redisPassword": {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "pw"}}},
    }


def test_a_budget_for_a_fleet_counts_pods_from_below(rendered: dict[str, Json]) -> None:
    # A RayCluster has no scale subresource, and maxUnavailable would let no pod go.
    budget = only(rendered["a fleet"], "PodDisruptionBudget")["spec"]
    assert budget["minAvailable"] == 1
    assert "maxUnavailable" not in budget
    assert budget["selector"]["matchLabels"]["app.kubernetes.io/component"] == "worker"
    workers = [one["metadata"]["labels"] for one in pods(rendered["a fleet"])[1:]]
    assert all(budget["selector"]["matchLabels"].items() <= labels.items() for labels in workers)


@pytest.mark.parametrize("file", ["nowhere.yaml", "."])
def test_values_that_cannot_be_read_are_told_in_one_line(file: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "chart_check.py"), str(CHART), file]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 1
    assert f"error: the values of {file} cannot be read: " in ended.stderr
    assert "Traceback" not in ended.stderr
