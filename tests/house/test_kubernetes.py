"""The manifests of deploy/k8s: everything that one names is there, and every process starts with what it is given."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from penstock import signals
from penstock.kit.config import ServiceConfig, load
from services.scheduler.config import SchedulerConfig
from services.scheduler.fitting import LABEL
from services.worker.config import WorkerConfig

from .source import ROOT
from .test_configs import config_class

FOLDER = ROOT / "deploy"
SUITE = ("gateway", "registry", "scheduler", "worker")


class Strict(yaml.SafeLoader):
    """Refuses what says a thing twice."""


def _mapping(loader: Strict, node: yaml.MappingNode) -> dict[Any, Any]:
    pairs = [(loader.construct_object(key, deep=True), value) for key, value in node.value]
    keys = [key for key, _ in pairs]
    assert len(set(keys)) == len(keys), f"twice at line {node.start_mark.line + 1}: {keys}"
    return {key: loader.construct_object(value, deep=True) for key, value in pairs}


Strict.add_constructor("tag:yaml.org,2002:map", _mapping)


def documents(path: Path) -> list[dict[str, Any]]:
    loader = Strict(path.read_text())
    found: list[dict[str, Any]] = []
    while loader.check_data():  # type: ignore[no-untyped-call]
        found.append(loader.get_data())
    return found


KUSTOMIZATION = documents(FOLDER / "kustomization.yaml")[0]
RESOURCES = [entry for name in KUSTOMIZATION["resources"] for entry in documents(FOLDER / name)]


def of(*kinds: str) -> dict[str, dict[str, Any]]:
    """Resources of these kinds by name."""
    return {entry["metadata"]["name"]: entry for entry in RESOURCES if entry["kind"] in kinds}


def workloads() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, spec of the pod and its one container of everything that runs."""
    for name, entry in of("Deployment", "StatefulSet").items():
        pod = entry["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        yield name, pod, container


def environment(container: dict[str, Any]) -> dict[str, str]:
    """What the process would see; a stand-in for what Kubernetes fills in."""
    fills = {"status.podIP": "10.1.2.3", "metadata.name": "penstock-worker-cpu-7d9f8c6b5d-abcde"}
    found = {}
    for variable in container.get("env", ()):
        field = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        found[variable["name"]] = variable.get("value") or fills.get(field, "filled-in")
    return found


def config(service: str) -> ServiceConfig:
    """What a service makes of its arguments and environment, read as strictly as it does."""
    container = next(container for _, _, container in workloads() if container["name"] == service)
    arguments = [text.replace("/etc/penstock/config", str(FOLDER / "config")) for text in container["args"]]
    return load(config_class(service), service, arguments, environment(container))


def test_every_file_is_in_the_kustomization_and_every_name_there_is_a_file() -> None:
    listed = {FOLDER / name for name in KUSTOMIZATION["resources"]}
    assert listed == set((FOLDER / "k8s").glob("*.yaml")) - {FOLDER / "k8s" / "keda-scaledobject.yaml"}
    (configs,) = KUSTOMIZATION["configMapGenerator"]
    # The very files of a local run, so they cannot differ.
    assert {FOLDER / name for name in configs["files"]} == set((FOLDER / "config").iterdir())


def test_what_is_named_is_there() -> None:
    (configs,) = KUSTOMIZATION["configMapGenerator"]
    accounts = of("ServiceAccount")
    for name, pod, container in workloads():
        volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
        claims = of("Deployment", "StatefulSet")[name]["spec"].get("volumeClaimTemplates", ())
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts == set(volumes) | {claim["metadata"]["name"] for claim in claims}, name
        assert all(
            volume["configMap"]["name"] == configs["name"] for volume in volumes.values() if "configMap" in volume
        )
        assert pod.get("serviceAccountName") in {None, *accounts}
        ports = {port["name"] for port in container["ports"]}
        for probe in ("readinessProbe", "livenessProbe"):
            assert probe not in container or container[probe]["httpGet"]["port"] in ports, name
    for name, service in of("Service").items():
        pods = [
            entry["spec"]["template"]
            for entry in of("Deployment", "StatefulSet").values()
            if service["spec"]["selector"].items() <= entry["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert len(pods) == 1, name
        numbers = {port["name"]: port["containerPort"] for port in pods[0]["spec"]["containers"][0]["ports"]}
        assert all(numbers[port["targetPort"]] == port["port"] for port in service["spec"]["ports"])
    for entry in of("Deployment", "StatefulSet").values():
        chosen = entry["spec"]["selector"]["matchLabels"].items()
        assert chosen == entry["spec"]["template"]["metadata"]["labels"].items()
        assert entry["spec"].get("serviceName", "etcd") in of("Service")


@pytest.mark.parametrize("service", SUITE)
def test_each_service_starts_with_what_it_is_given(service: str) -> None:
    found = config(service)
    name, pod, container = next(entry for entry in workloads() if entry[2]["name"] == service)
    assert container["command"] == ["python", "-m", f"services.{service}"] and container["image"] == "penstock"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (ports["grpc"], ports["admin"]) == (found.port, found.admin_port)
    assert ports.get("rest") == getattr(found, "http_port", None)
    assert found.etcd == ("etcd:2379",) and "etcd" in of("Service")
    assert found.host == "0.0.0.0" and found.auth_file and found.token and found.advertise == "10.1.2.3"
    assert found.id == environment(container)[f"PENSTOCK_{service.upper()}_ID"]
    paths = {container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")}
    assert paths == {"/readyz", "/healthz"}
    assert pod["terminationGracePeriodSeconds"] >= found.drain_seconds + 10, "killed before it has drained"
    assert service != "worker" or name == "penstock-worker-cpu"


def test_no_pod_may_do_more_than_it_needs() -> None:
    for name, pod, container in workloads():
        assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"], name
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert pod["automountServiceAccountToken"] is (name == "penstock-scheduler"), "only it calls the API"
        assert container["resources"]["limits"]["memory"]


def test_the_scheduler_may_do_what_its_provider_asks_and_nothing_else() -> None:
    (role,) = of("Role", "ClusterRole").values()
    (binding,) = of("RoleBinding", "ClusterRoleBinding").values()
    assert role["kind"] == "Role" and binding["kind"] == "RoleBinding", "of one namespace"
    assert role["rules"] == [
        {
            "apiGroups": ["apps"],
            "resources": ["deployments/scale"],
            "resourceNames": ["penstock-worker-cpu"],
            "verbs": ["get", "patch"],
        },
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"]},
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    scheduler = of("Deployment")["penstock-scheduler"]["spec"]["template"]["spec"]
    assert [subject["name"] for subject in binding["subjects"]] == [scheduler["serviceAccountName"]]


def test_pools_deployments_and_labels_agree() -> None:
    found = config("scheduler")
    assert isinstance(found, SchedulerConfig) and found.provider == "kubernetes"
    workers = {name: entry for name, entry in of("Deployment").items() if name.startswith(found.kubernetes_prefix)}
    assert set(workers) == {found.kubernetes_prefix + pool.name for pool in found.sizes}
    for deployment in workers.values():
        assert "replicas" not in deployment["spec"], "whoever applies it again must not set the scheduler's number back"
    worker = config("worker")
    assert isinstance(worker, WorkerConfig) and worker.labels == (f"{LABEL}=cpu",)
    limit = next(c for _, _, c in workloads() if c["name"] == "worker")["resources"]["limits"]["memory"]
    assert worker.memory_bytes < int(re.sub(r"Gi$", "", limit)) * 2**30


def test_keda_reads_a_metric_that_there_is() -> None:
    (scaled,) = documents(FOLDER / "k8s" / "keda-scaledobject.yaml")
    (trigger,) = scaled["spec"]["triggers"]
    pool = scaled["spec"]["scaleTargetRef"]["name"].removeprefix("penstock-worker-")
    assert trigger["metadata"]["query"] == f'max({signals.SCHEDULER_POOL_WANTED.name}{{pool="{pool}"}})'
    assert signals.SCHEDULER_POOL_WANTED.labels == ("pool",)
    assert (trigger["metadata"]["threshold"], trigger["metricType"]) == ("1", "AverageValue"), "a worker for each"
    assert trigger["metadata"]["ignoreNullValues"] == "false", "no leader is not no worker"
    config_of_scheduler = config("scheduler")
    assert isinstance(config_of_scheduler, SchedulerConfig)
    (sizes,) = (pool for pool in config_of_scheduler.sizes)
    assert (scaled["spec"]["minReplicaCount"], scaled["spec"]["maxReplicaCount"]) == (sizes.least, sizes.most)
    assert scaled["metadata"]["namespace"] == KUSTOMIZATION["namespace"]
