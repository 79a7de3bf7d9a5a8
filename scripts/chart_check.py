"""Checks a Helm chart without a cluster: lint, rendering by Helm's engine, and the rules of Kubernetes.

    python scripts/chart_check.py CHART [VALUES.yaml ...]
    python scripts/chart_check.py CHART --cases < CASES.json

Without values, the defaults and the defaults as a fleet are checked. With ``--cases``, standard input is a
JSON list of arguments of :func:`render`, and the results are printed as JSON.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import helm_python as helm
import jsonschema
import kubernetes_validate
import yaml
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

Manifest = dict[str, Any]

# The oldest version that Chart.yaml allows, and the newest that the schemas know.
VERSIONS = ("1.27.0", kubernetes_validate.latest_version())
WARNING = 2  # of Helm's lint; 1 is a recommendation
LABEL_VALUE = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")
DNS_LABEL = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
DNS_SUBDOMAIN = re.compile(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
# Longest names, where Kubernetes or KubeRay derives others from them.
NAME_LENGTHS = {"Service": 63, "RayService": 40}


def _fields(required: str, optional: str = "", **known: Any) -> dict[str, Any]:
    """The schema of an object with these fields and no others."""
    names = [*required.split(), *optional.split()]
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required.split(),
        "properties": {name: known.get(name, {}) for name in names},
    }


_SECRET_KEY = _fields("name key", "optional", name={"type": "string", "minLength": 1})
_COUNT = {"type": "integer", "minimum": 0}
_PARAMETERS = {"type": "object", "additionalProperties": {"type": "string"}}
_OPERATOR_LABELS = "metadata apiVersion kind spec"
# Custom resources have no schema in Kubernetes: these are the fields of the API references of KubeRay
# (ray.io/v1) and of the Prometheus operator (monitoring.coreos.com/v1).
CUSTOM = {
    "RayService": _fields(
        _OPERATOR_LABELS,
        spec=_fields(
            "serveConfigV2 rayClusterConfig",
            "serveService upgradeStrategy excludeHeadPodFromServeSvc rayClusterDeletionDelaySeconds",
            serveConfigV2={"type": "string"},
            excludeHeadPodFromServeSvc={"type": "boolean"},
            rayClusterConfig=_fields(
                "headGroupSpec rayVersion workerGroupSpecs",
                "suspend managedBy autoscalerOptions headServiceAnnotations enableInTreeAutoscaling "
                "gcsFaultToleranceOptions",
                rayVersion={"type": "string"},
                enableInTreeAutoscaling={"type": "boolean"},
                autoscalerOptions=_fields(
                    "",
                    "resources image imagePullPolicy securityContext idleTimeoutSeconds upscalingMode "
                    "version env envFrom volumeMounts",
                    idleTimeoutSeconds=_COUNT,
                ),
                gcsFaultToleranceOptions=_fields(
                    "redisAddress",
                    "redisUsername redisPassword externalStorageNamespace",
                    redisAddress={"type": "string"},
                    redisPassword=_fields(
                        "valueFrom",
                        valueFrom=_fields("secretKeyRef", secretKeyRef=_SECRET_KEY),
                    ),
                ),
                headGroupSpec=_fields(
                    "template rayStartParams",
                    "headService enableIngress serviceType",
                    rayStartParams=_PARAMETERS,
                ),
                workerGroupSpecs={
                    "type": "array",
                    "minItems": 1,
                    "items": _fields(
                        "groupName replicas minReplicas maxReplicas rayStartParams template",
                        "suspend idleTimeoutSeconds scaleStrategy numOfHosts",
                        groupName={"type": "string", "minLength": 1},
                        replicas=_COUNT,
                        minReplicas=_COUNT,
                        maxReplicas=_COUNT,
                        rayStartParams=_PARAMETERS,
                    ),
                },
            ),
        ),
    ),
    "ServiceMonitor": _fields(
        _OPERATOR_LABELS,
        spec=_fields(
            "selector endpoints",
            "namespaceSelector jobLabel targetLabels podTargetLabels sampleLimit",
            endpoints={
                "type": "array",
                "items": _fields(
                    "port",
                    "path interval scheme scrapeTimeout honorLabels authorization relabelings "
                    "metricRelabelings",
                    interval={"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
                    authorization=_fields("credentials", "type", credentials=_SECRET_KEY),
                ),
            },
        ),
    ),
}


def lint(chart: Path, values: Manifest) -> list[str]:
    """The warnings and errors of ``helm lint --strict`` with these values."""
    report = helm.lint(str(chart), values, strict=True)
    return [one["error"] for one in report["messages"] if one["severity"] >= WARNING]


def render(
    chart: helm.Chart, values: Manifest, release: str = "demo", namespace: str = "prod"
) -> list[Manifest]:
    """The manifests that ``helm template`` makes of these values.

    Raises:
        helm.HelmError: the values break values.schema.json, or a template fails.
        yaml.YAMLError: a template makes invalid YAML.
    """
    chart.validate_schema(chart.merge_values(values))
    rendered = chart.render(values, name=release, namespace=namespace)
    files = (text for name, text in sorted(rendered.items()) if not name.endswith(".txt"))
    return [one for text in files for one in yaml.safe_load_all(text) if one]


def problems(manifest: Manifest) -> list[str]:
    """The reasons why Kubernetes or the operator of a custom resource would refuse a manifest."""
    where = f"{manifest.get('kind')}/{manifest.get('metadata', {}).get('name')}"
    return [f"{where}: {problem}" for problem in _problems(manifest)]


def _problems(manifest: Manifest) -> Iterator[str]:
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    pattern = DNS_LABEL if kind in NAME_LENGTHS else DNS_SUBDOMAIN
    if not pattern.match(name) or len(name) > NAME_LENGTHS.get(kind, 253):
        yield "the name is not one that Kubernetes takes"
    yield from _bad_labels(manifest["metadata"])
    if kind in CUSTOM:
        errors = jsonschema.Draft202012Validator(CUSTOM[kind]).iter_errors(manifest)
        yield from (f"{one.json_path}: {one.message}" for one in errors)
    else:
        yield from _schema_problems(manifest)
    for template in _pod_templates(manifest):
        if kind in CUSTOM:
            yield from _schema_problems(
                {
                    "apiVersion": "v1",
                    "kind": "PodTemplate",
                    "metadata": {"name": "x"},
                    "template": template,
                }
            )
        yield from _bad_labels(template["metadata"])
        yield from _pod_problems(template["spec"])
    selector = manifest.get("spec", {}).get("selector", {}).get("matchLabels", {})
    for template in _pod_templates(manifest) if kind == "Deployment" else ():
        if not selector.items() <= template["metadata"]["labels"].items():
            yield "the selector does not match the pods"


def _schema_problems(manifest: Manifest) -> Iterator[str]:
    group = re.sub(r"\.[^/]*", "", manifest["apiVersion"]).replace("/", "-")
    for version in VERSIONS:
        for error in _validator(version, manifest["kind"].lower(), group).iter_errors(manifest):
            yield f"Kubernetes {version}: {error.json_path}: {error.message[:300]}"


@cache
def _validator(version: str, kind: str, group: str) -> jsonschema.Draft202012Validator:
    """The validator of one kind, which refuses unknown fields; reading the schemas anew takes 15 ms."""
    schema = schema_contents(_schema_file(version, f"{kind}-{group}"), version)
    return jsonschema.Draft202012Validator(schema, registry=_definitions(version))


@cache
def _definitions(version: str) -> Registry[Any]:
    contents = schema_contents(_schema_file(version, "_definitions"), version)
    return (Resource.from_contents(contents) @ Registry()).crawl()


def _schema_file(version: str, name: str) -> str:
    return f"kubernetes-json-schema/v{version}-local-strict/{name}.json"


def serve_problems(manifest: Manifest) -> list[str]:
    """The reasons why Ray Serve would refuse a fleet, where Ray is installed."""
    if manifest["kind"] != "RayService" or find_spec("ray") is None:
        return []
    from ray.serve.schema import ServeDeploySchema

    try:
        ServeDeploySchema(**yaml.safe_load(manifest["spec"]["serveConfigV2"]))
    except ValueError as error:
        return [f"Ray Serve: {error}"]
    return []


def _pod_templates(manifest: Manifest) -> list[Manifest]:
    spec = manifest.get("spec", {})
    if manifest["kind"] == "Deployment":
        return [spec["template"]]
    if manifest["kind"] != "RayService":
        return []
    cluster = spec["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"] for group in groups]


def _bad_labels(metadata: Manifest) -> Iterator[str]:
    for key, value in (metadata.get("labels") or {}).items():
        if not isinstance(value, str) or len(value) > 63 or not LABEL_VALUE.match(value):
            yield f"the label {key} has the value {value!r}"


def _pod_problems(pod: Manifest) -> Iterator[str]:
    volumes = [one["name"] for one in pod.get("volumes", ())]
    if len(set(volumes)) < len(volumes):
        yield "two volumes have the same name"
    for container in pod["containers"]:
        mounts = container.get("volumeMounts", ())
        if missing := {one["name"] for one in mounts} - set(volumes):
            yield f"no volume for the mounts {', '.join(sorted(missing))}"
        paths = [one["mountPath"] for one in mounts]
        if len(set(paths)) < len(paths):
            yield "two volumes are mounted at the same path"
        names = [one["name"] for one in container.get("env", ())]
        if len(set(names)) < len(names):
            yield "an environment variable is set twice"
        ports = {one["name"] for one in container.get("ports", ())}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            port = container.get(probe, {}).get("httpGet", {}).get("port")
            if isinstance(port, str) and port not in ports:
                yield f"{probe} asks the port {port}, which has no name"


def check(chart: helm.Chart, case: Manifest) -> Manifest:
    """The outcome of one case: its manifests with their problems, or the error that refuses its values."""
    try:
        manifests = render(chart, **case)
    except (helm.HelmError, yaml.YAMLError) as error:
        return {"error": str(error), "manifests": [], "problems": []}
    found = [problem for manifest in manifests for problem in problems(manifest)]
    return {"error": None, "manifests": manifests, "problems": found}


def _values_of(file: str) -> Manifest:
    """The values in a file; ends the program if it cannot be read."""
    try:
        values: Manifest = helm.values_from_yaml(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, helm.HelmError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise SystemExit(f"error: the values of {file} cannot be read: {why}") from error
    return values


def main() -> None:
    """Check the chart with the files of values that are named, or with the cases of standard input."""
    path, *files = sys.argv[1:]
    with helm.Chart.load(path) as chart:
        if files == ["--cases"]:
            json.dump([check(chart, case) for case in json.load(sys.stdin)], sys.stdout)
            return
        cases = {name: _values_of(name) for name in files} or {
            "defaults": {},
            "fleet": {"fleet": {"enabled": True}},
        }
        failed = 0
        for name, values in cases.items():
            outcome = check(chart, {"values": values})
            wrong = [outcome["error"]] if outcome["error"] else outcome["problems"]
            wrong += lint(Path(path), values)
            wrong += [one for manifest in outcome["manifests"] for one in serve_problems(manifest)]
            failed += len(wrong)
            print(
                f"{name}: {len(outcome['manifests'])} manifests for Kubernetes {' and '.join(VERSIONS)}, "
                f"{len(wrong)} problems"
            )
            for problem in wrong:
                print(f"  {problem}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
