"""The RayJob manifests: every field is one of KubeRay's or Kubernetes', and the jobs restart, scale and clean up.

No package on PyPI brings KubeRay's resource definitions, so their fields are listed here from its API reference
(ray.io/v1, version 1.5). Pods are checked against Kubernetes' own schema where kubernetes-validate is installed.
"""

import copy
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "cluster" / "kuberay"
KUBERNETES_VERSION = "1.33"

Manifest = dict[str, Any]

FIELDS = {
    "RayJob": "apiVersion kind metadata spec",
    "metadata": "name namespace labels annotations",
    "RayJobSpec": "activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint entrypointNumCpus "
    "entrypointNumGpus entrypointResources jobId managedBy metadata preRunningDeadlineSeconds rayClusterSpec "
    "runtimeEnvYAML shutdownAfterJobFinishes submissionMode submitterConfig submitterPodTemplate suspend "
    "ttlSecondsAfterFinished",
    "RayClusterSpec": "authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec "
    "headServiceAnnotations managedBy rayVersion suspend upgradeStrategy workerGroupSpecs",
    "AuthOptions": "mode",
    "AutoscalerOptions": "env envFrom idleTimeoutSeconds image imagePullPolicy resources securityContext upscalingMode "
    "version volumeMounts",
    "HeadGroupSpec": "enableIngress headService labels rayStartParams resources serviceType template",
    "WorkerGroupSpec": "groupName idleTimeoutSeconds labels maxReplicas minReplicas numOfHosts rayStartParams replicas "
    "resources scaleStrategy suspend template",
    "PodTemplate": "metadata spec",
    "Pod": "affinity automountServiceAccountToken containers dnsPolicy imagePullSecrets initContainers nodeSelector "
    "priorityClassName restartPolicy runtimeClassName schedulerName securityContext serviceAccountName "
    "terminationGracePeriodSeconds tolerations topologySpreadConstraints volumes",
    "Container": "args command env envFrom image imagePullPolicy lifecycle livenessProbe name ports readinessProbe "
    "resources securityContext startupProbe volumeDevices volumeMounts workingDir",
    "Variable": "name value valueFrom",
    "Resources": "claims limits requests",
    "Toleration": "effect key operator tolerationSeconds value",
}
CHOICES = {
    "submissionMode": ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    "upscalingMode": ("Default", "Aggressive", "Conservative"),
    "restartPolicy": ("Always", "OnFailure", "Never"),
    "mode": ("disabled", "token"),
}
TYPES = {
    "backoffLimit": int,
    "ttlSecondsAfterFinished": int,
    "shutdownAfterJobFinishes": bool,
    "enableInTreeAutoscaling": bool,
    "entrypoint": str,
    "rayVersion": str,
    "minReplicas": int,
    "maxReplicas": int,
    "idleTimeoutSeconds": int,
    "terminationGracePeriodSeconds": int,
}


def pods(manifest: Manifest) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and pod specification of each group, the head first."""
    cluster = manifest["spec"]["rayClusterSpec"]
    yield "head", cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]


def problems(manifest: Manifest) -> list[str]:
    """Unknown fields, wrong types and wrong choices, each with the object in which it is."""
    cluster = manifest["spec"]["rayClusterSpec"]
    objects: list[tuple[str, Mapping[str, Any]]] = [
        ("RayJob", manifest),
        ("metadata", manifest["metadata"]),
        ("RayJobSpec", manifest["spec"]),
        ("RayClusterSpec", cluster),
        ("AuthOptions", cluster.get("authOptions", {})),
        ("AutoscalerOptions", cluster.get("autoscalerOptions", {})),
        ("HeadGroupSpec", cluster["headGroupSpec"]),
        *(("WorkerGroupSpec", group) for group in cluster["workerGroupSpecs"]),
    ]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        objects += [("PodTemplate", group["template"]), *_pod_objects(group["template"]["spec"])]
    found = [f"{kind}.{name}" for kind, content in objects for name in content if name not in FIELDS[kind].split()]
    for kind, content in objects:
        chosen = {name: content[name] for name in CHOICES if name in content}
        found += [f"{kind}.{name}={choice!r}" for name, choice in chosen.items() if choice not in CHOICES[name]]
        found += [f"{kind}.{name}" for name, type_ in TYPES.items() if type(content.get(name, type_())) is not type_]
    return found


def _pod_objects(pod: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "Pod", pod
    for toleration in pod.get("tolerations", []):
        yield "Toleration", toleration
    for container in pod["containers"]:
        yield "Container", container
        yield "Resources", container["resources"]
        for variable in container.get("env", []):
            yield "Variable", variable


@pytest.fixture(params=["compress", "train"])
def manifest(request: pytest.FixtureRequest) -> Manifest:
    (content,) = yaml.safe_load_all((FOLDER / f"{request.param}-rayjob.yaml").read_text())
    assert (content["apiVersion"], content["kind"]) == ("ray.io/v1", "RayJob")
    assert content["metadata"]["name"] == f"vcinr-{request.param}"
    return dict(content)


def test_every_field_is_known_and_of_its_type(manifest: Manifest) -> None:
    assert problems(manifest) == []


def _head_pod(manifest: Manifest) -> dict[str, Any]:
    return next(pods(manifest))[1]


MISTAKES: dict[str, tuple[Callable[[Manifest], Any], str]] = {
    "job": (lambda m: m["spec"].update(backOffLimit=3), "RayJobSpec.backOffLimit"),
    "job's type": (lambda m: m["spec"].update(ttlSecondsAfterFinished="600"), "RayJobSpec.ttlSecondsAfterFinished"),
    "job's choice": (lambda m: m["spec"].update(submissionMode="http"), "RayJobSpec.submissionMode='http'"),
    "cluster": (lambda m: m["spec"]["rayClusterSpec"].update(autoscaling=True), "RayClusterSpec.autoscaling"),
    "group": (
        lambda m: m["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].update(max=3),
        "WorkerGroupSpec.max",
    ),
    "pod": (lambda m: _head_pod(m).update(serviceaccount="x"), "Pod.serviceaccount"),
    "container": (lambda m: _head_pod(m)["containers"][0].update(resource={}), "Container.resource"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_the_check_finds_mistakes(manifest: Manifest, case: str) -> None:
    spoil, expected = MISTAKES[case]
    spoilt = copy.deepcopy(manifest)
    spoil(spoilt)
    assert problems(spoilt) == [expected]


@pytest.mark.skipif(importlib.util.find_spec("kubernetes_validate") is None, reason="kubernetes-validate not installed")
def test_kubernetes_takes_the_pods(manifest: Manifest) -> None:
    import kubernetes_validate

    for name, pod in pods(manifest):
        resource = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod}
        kubernetes_validate.validate(resource, KUBERNETES_VERSION, strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate({**resource, "spec": {**pod, "restart": 1}}, KUBERNETES_VERSION, strict=True)


def test_a_lost_cluster_is_followed_by_another_with_the_same_command_and_the_last_one_goes(manifest: Manifest) -> None:
    spec = manifest["spec"]
    assert spec["backoffLimit"] >= 3
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert " --address auto" in spec["entrypoint"]
    assert "--overwrite" not in spec["entrypoint"]
    assert {pod["restartPolicy"] for _, pod in pods(manifest)} == {"Never"}
    # A submitter's shell would take the entrypoint's own operators.
    assert spec["submissionMode"] == "HTTPMode"


def test_rejected_samples_are_no_failure_of_the_job() -> None:
    entrypoint = yaml.safe_load((FOLDER / "compress-rayjob.yaml").read_text())["spec"]["entrypoint"]
    assert entrypoint.endswith(" || test $? -eq 1")


def test_workers_scale_from_none_on_cpus_and_gpus_and_the_head_gives_none(manifest: Manifest) -> None:
    cluster = manifest["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    # Start parameters are strings, numbers too.
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) == {"cpu", "gpu"}
    for group in groups.values():
        assert (group["minReplicas"], "replicas" in group) == (0, False)
        assert group["maxReplicas"] > 0
    gpu = groups["gpu"]["template"]["spec"]
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert gpu["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_every_container_has_bounds_no_root_and_no_credentials_of_its_own(manifest: Manifest) -> None:
    for name, pod in pods(manifest):
        (container,) = pod["containers"]
        assert container["image"].endswith("-gpu" if name == "gpu" else "-cpu")
        # Ray counts the limits; a request below them would be a promise that the machine need not keep.
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["serviceAccountName"] == "vcinr"
        for variable in container["env"]:
            assert set(variable) == {"name", "valueFrom"}
            assert variable["valueFrom"]["secretKeyRef"]["optional"] is True


def test_the_dashboard_wants_a_token(manifest: Manifest) -> None:
    assert manifest["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
