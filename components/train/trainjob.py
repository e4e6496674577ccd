"""TrainJob (Kubeflow Trainer v2): the settings of a training on other machines, its name and its manifest."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from bebygan.settings import Constraint, Count, NotNegative, Settings, require
from components.config import Positive, plain

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
ASKED = "bebygan/asked"
"""Annotation of a TrainJob: the settings, command and environment that it was created with, as JSON."""
CONTAINER = "node"
"""Name of the replicated job and of the container that train."""


def _at_least_a_second(hours: float) -> float:
    require(round(hours * 3600) >= 1, f"must be at least one second (0.0003 hours), got {hours}")
    return hours


_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_DOMAIN = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
LabelKey = Annotated[str, Field(pattern=f"^({_DOMAIN}/)?{_NAME}$")]
LabelValue = Annotated[str, Field(pattern=f"^({_NAME})?$")]
Hours = Annotated[Positive, AfterValidator(_at_least_a_second)]
Quantity = Annotated[str, Constraint(pattern=r"\d+(\.\d+)?(m|k|[KMGT]i?)?")]


@dataclass(frozen=True, kw_only=True)
class TrainJobSettings(Settings):
    """Where and on which resources a training runs."""

    namespace: str | None
    """Of the TrainJob; null takes the namespace of the pod or of the kubeconfig."""
    runtime: str
    """TrainingRuntime in the same namespace (infra/kubernetes/components/trainer/training-runtime.yaml)."""
    image: Annotated[str, Constraint(pattern=".+")]
    """Image of the training step, by digest."""
    nodes: Count
    """Number of pods. A pod that requests all GPUs of a machine has that machine to itself."""
    gpus: NotNegative
    """GPUs and processes per node; 0 trains in one process on the CPU."""
    gpu_type: str
    """Name of the GPU resource, such as nvidia.com/gpu."""
    cpu: Quantity
    """Per node, as request and limit."""
    memory: Quantity
    """Per node, as request and limit, including /dev/shm."""
    shared_memory: Quantity
    """Size of /dev/shm."""
    hours: Hours
    """Time limit, including the time in a queue. A later run resumes from the last checkpoint."""
    node_selector: dict[LabelKey, LabelValue]
    """Labels that a machine must have."""
    tolerations: tuple[dict[str, str | int], ...]
    """Tolerated taints, in the notation of Kubernetes."""
    claim: str
    """PersistentVolumeClaim mounted at /volume; several nodes need ReadWriteMany."""
    service_account: str
    """ServiceAccount of the training pods; it needs no permissions."""
    config_map: str
    """ConfigMap with MLFLOW_TRACKING_URI, AWS_ENDPOINT_URL and AWS_DEFAULT_REGION, each optional."""
    s3_secret: str
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; optional."""
    mlflow_secret: str
    """Secret with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; optional."""


@dataclass(frozen=True, kw_only=True)
class TrainJobSpec:
    """One training. Two specs with the same name are the same training."""

    name: str
    settings: TrainJobSettings
    command: tuple[str, ...]
    environment: Mapping[str, str]
    """Environment variables of the container, without secrets."""
    lineage: Mapping[str, str]
    """Environment variables that identify the run. They differ between runs that share a training."""


def trainjob_name(*identity: str) -> str:
    """Return the name of a training, derived from its identity.

    It has 30 characters: JobSet appends 17 for the name of a pod, and Kubernetes allows 63.
    """
    digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()
    return f"bebygan-train-{digest[:16]}"


def _references(settings: TrainJobSettings) -> Iterator[dict[str, Any]]:
    """Yield the environment variables whose values are in config maps and secrets."""
    sources = (
        ("configMapKeyRef", settings.config_map, ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")),
        ("secretKeyRef", settings.s3_secret, ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),
        ("secretKeyRef", settings.mlflow_secret, ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")),
    )
    for kind, source, names in sources:
        for name in names:
            yield {"name": name, "valueFrom": {kind: {"name": source, "key": name, "optional": True}}}


def _body(spec: TrainJobSpec) -> dict[str, Any]:
    settings = spec.settings
    resources: dict[str, str | int] = {"cpu": settings.cpu, "memory": settings.memory}
    if settings.gpus:
        resources[settings.gpu_type] = settings.gpus
    values = {**spec.environment, **spec.lineage}
    environment = [{"name": name, "value": value} for name, value in sorted(values.items())]
    pod: dict[str, Any] = {
        "serviceAccountName": settings.service_account,
        "volumes": [
            {"name": "volume", "persistentVolumeClaim": {"claimName": settings.claim}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shared_memory}},
        ],
    }
    # An empty value would override the one of the runtime.
    if settings.node_selector:
        pod["nodeSelector"] = settings.node_selector
    if settings.tolerations:
        pod["tolerations"] = list(settings.tolerations)
    job = {"name": CONTAINER, "template": {"spec": {"template": {"spec": pod}}}}
    return {
        "runtimeRef": {"apiGroup": GROUP, "kind": "TrainingRuntime", "name": settings.runtime},
        "activeDeadlineSeconds": round(settings.hours * 3600),
        "trainer": {
            "image": settings.image,
            "command": list(spec.command),
            "env": [*environment, *_references(settings)],
            "numNodes": settings.nodes,
            "numProcPerNode": max(1, settings.gpus),
            # Without requests, Trainer starts one process regardless of numProcPerNode.
            "resourcesPerNode": {"requests": resources, "limits": resources},
        },
        "runtimePatches": [
            {"manager": "bebygan/launcher", "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}}}
        ],
    }


def manifest(spec: TrainJobSpec) -> dict[str, Any]:
    """Return the TrainJob as an object of the Kubernetes API."""
    # Without the lineage: runs that differ only in their lineage share a training.
    asked = {**plain(spec.settings), "command": spec.command, "environment": dict(spec.environment)}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": spec.name,
            "labels": {"app.kubernetes.io/part-of": "bebygan", "app.kubernetes.io/name": "bebygan-training"},
            "annotations": {ASKED: json.dumps(asked, sort_keys=True)},
        },
        "spec": _body(spec),
    }
