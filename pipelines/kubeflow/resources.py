"""Read infra/cluster.yaml, and give each task its image, machine, time, retries, volume and secrets."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from kfp import dsl, kubernetes
from pydantic import AfterValidator

from bebygan.errors import ConfigError
from bebygan.settings import Constraint, Count, NotNegative, Settings, require
from components.config import from_yaml, read_settings, to_yaml
from components.train.trainjob import Hours, LabelKey, LabelValue, TrainJobSettings
from pipelines.kubeflow.client import RUN_LABEL, TASK_LABEL

_UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|[MGT]|[KMGT]i)?")
_USER = 1000
"""User and group of the images."""
_SECONDS_OF_GRACE = 3600
"""Added to the time in which retries may begin: pods wait for machines."""
_SECONDS_BETWEEN_ATTEMPTS = 60


def amount(quantity: str) -> float:
    """Return the value of a Kubernetes quantity such as 500m or 2Gi."""
    match = _QUANTITY.fullmatch(quantity)
    if match is None:
        raise ValueError(f"{quantity!r} is not a Kubernetes quantity, such as 500m, 2 or 16Gi")
    return float(match[1]) * _UNITS[match[2] or ""]


def _range(value: tuple[str, str]) -> tuple[str, str]:
    require(amount(value[0]) <= amount(value[1]), f"the request {value[0]} is more than the limit {value[1]}")
    return value


def _size(value: str) -> str:
    amount(value)
    return value


Size = Annotated[str, AfterValidator(_size)]
Range = Annotated[tuple[str, str], AfterValidator(_range)]
Name = Annotated[str, Constraint(pattern=r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")]
ImageName = Annotated[str, Constraint(pattern=r"[\w][\w.:/-]*(@sha256:[0-9a-f]{64})?")]


@dataclass(frozen=True, kw_only=True)
class Toleration(Settings):
    """A taint of machines that a task tolerates."""

    key: str
    operator: Literal["Equal", "Exists"]
    value: str = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


@dataclass(frozen=True, kw_only=True)
class TaskResources(Settings):
    """Machine, time and retries of one task."""

    cpu: Range
    """Request and limit."""
    memory: Range
    """Request and limit; the content of /dev/shm counts."""
    gpus: NotNegative
    gpu_type: str
    """Name of the resource, such as nvidia.com/gpu."""
    node_selector: dict[LabelKey, LabelValue]
    """Labels of the machines to run on."""
    tolerations: tuple[Toleration, ...]
    shared_memory: Size | None
    """Size of /dev/shm; training loaders need more than the 64 MiB of a container. null leaves it."""
    hours: Hours
    """After which one attempt is stopped."""
    retries: Annotated[int, Constraint(at_least=0, at_most=10)]
    """Attempts after a failed one. Kubeflow does not retry a task whose machine is lost."""

    @property
    def seconds(self) -> int:
        """Return the time of one attempt."""
        return round(self.hours * 3600)

    @property
    def retry_window(self) -> int:
        """Return the seconds after the start of the first attempt in which another may start: longer than all take."""
        between = _SECONDS_BETWEEN_ATTEMPTS * (1 << self.retries)
        return (self.retries + 1) * self.seconds + between + _SECONDS_OF_GRACE


@dataclass(frozen=True, kw_only=True)
class Steps(Settings):
    """What each task of the pipeline is given."""

    preflight: TaskResources
    look: TaskResources
    decide: TaskResources
    ingest: TaskResources
    patches: TaskResources
    warmup: TaskResources
    train: TaskResources
    evaluate: TaskResources
    register: TaskResources
    notify: TaskResources


TASKS = tuple(Steps.__dataclass_fields__)
DATA_TASKS = frozenset(("look", "ingest", "patches", "launch"))
"""Tasks that run in the image without torch. `launch` trains on other machines."""


@dataclass(frozen=True, kw_only=True)
class Images(Settings):
    """The two images. In production they are named by digest: a tag can be moved to another image."""

    data: ImageName
    torch: ImageName

    @property
    def version(self) -> str:
        """Return the identity of the code for runs and caches."""
        return f"{self.data} {self.torch}"

    @property
    def pinned(self) -> bool:
        """Whether both are named by digest."""
        return all("@sha256:" in image for image in (self.data, self.torch))


@dataclass(frozen=True, kw_only=True)
class Training(Settings):
    """Where the train step runs."""

    where: Literal["pod", "trainjob"]
    """In its own pod, or on other machines as a TrainJob of Kubeflow Trainer, which survives the loss of a machine."""
    nodes: Count
    """Machines of a TrainJob."""
    runtime: Name
    """Its TrainingRuntime."""
    service_account: Name
    """Of its pods."""
    s3_secret: Name | None = None
    """Of warmup and train, wherever they run; null for the one in `names`."""
    mlflow_secret: Name | None = None
    """Of all tasks but preflight and register; null for the one in `names`. Its account may not move the champion."""


@dataclass(frozen=True, kw_only=True)
class Names(Settings):
    """Names of the objects in the namespace that tasks refer to."""

    config_map: Name
    """MLFLOW_TRACKING_URI, AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, BEBYGAN_CONSOLE, BEBYGAN_TRACKER, each optional."""
    s3_secret: Name
    ingest_s3_secret: Name | None = None
    """Of look and ingest, which decode photographs; null for `s3_secret`."""
    evaluate_s3_secret: Name | None = None
    """Of evaluate, which writes to no bucket; null for `s3_secret`."""
    mlflow_secret: Name
    """Of register, which moves the champion, and preflight, which tests whether it may."""
    webhook_secret: Name
    claim: Name
    """Volume for checkpoints and shards, mounted at /volume; user 1000 must be able to write it."""


@dataclass(frozen=True, kw_only=True)
class Cluster(Settings):
    """All settings of infra/cluster.yaml."""

    images: Images
    names: Names
    training: Training
    steps: Steps

    def __post_init__(self) -> None:
        super().__post_init__()
        in_pod, gpus = self.training.where == "pod", self.steps.train.gpus
        require(
            not in_pod or self.training.nodes == 1,
            "a pod is one machine: set training.where to trainjob, or training.nodes to 1",
        )
        for name in TASKS:
            require(
                getattr(self.steps, name).gpus <= 1 or (not in_pod and name in ("preflight", "train")),
                f"steps.{name}.gpus: a pod computes on one GPU; only train can use more, with training.where set to "
                "trainjob",
            )
        require(
            self.steps.preflight.gpus in (0, gpus),
            f"steps.preflight.gpus must be that of steps.train, {gpus}, or 0",
        )


CLUSTER_FILE = Path("infra/cluster.yaml")
VOLUME = "/volume"
"""Folder where the volume is mounted, in tasks and in the pods of a TrainJob."""


def load_cluster(path: Path = CLUSTER_FILE) -> Cluster:
    """Read the settings of a cluster.

    Raises:
        ConfigError: the file cannot be read, or a name is unknown (the nearest one is named), missing or out of range.
    """
    text = read_settings(path, "the cluster's settings")
    try:
        return from_yaml(Cluster, text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


_READS_BUCKETS = frozenset(("preflight", "look", "ingest", "warmup", "train", "evaluate", "register"))
_TRACKED = frozenset(("preflight", "decide", "warmup", "train", "evaluate", "register", "notify"))
_POSTS = frozenset(("notify",))
_ON_VOLUME = frozenset(("preflight", "warmup", "train", "launch"))
"""Tasks by what they read, or mount."""


_REGISTERS = frozenset(("preflight", "register"))


def _credentials(name: str, cluster: Cluster) -> tuple[str, str]:
    """Return the Secrets of a task for S3 and for MLflow."""
    names, training = cluster.names, cluster.training
    own = dict.fromkeys(("look", "ingest"), names.ingest_s3_secret)
    own |= dict.fromkeys(("warmup", "train"), training.s3_secret) | {"evaluate": names.evaluate_s3_secret}
    mlflow = names.mlflow_secret if name in _REGISTERS else training.mlflow_secret
    return own.get(name) or names.s3_secret, mlflow or names.mlflow_secret


def _set_environment(task: dsl.PipelineTask, name: str, cluster: Cluster) -> None:
    """Give a task the addresses and credentials that it needs, by reference, and no others."""
    s3_secret, mlflow_secret = _credentials(name, cluster)
    names = cluster.names
    # All are optional: a pod without a mandatory one waits without a message, while preflight names what is missing.
    for users, secret, keys in (
        (_READS_BUCKETS, s3_secret, ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),
        (_TRACKED, mlflow_secret, ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")),
        (_POSTS, names.webhook_secret, ("BEBYGAN_WEBHOOK_URL",)),
    ):
        if name in users:
            kubernetes.use_secret_as_env(task, secret, {key: key for key in keys}, optional=True)
    addresses = (
        (_READS_BUCKETS, ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")),
        (_TRACKED, ("MLFLOW_TRACKING_URI",)),
        (_POSTS, ("BEBYGAN_CONSOLE", "BEBYGAN_TRACKER")),
    )
    if given := {key: key for users, keys in addresses for key in keys if name in users}:
        kubernetes.use_config_map_as_env(task, names.config_map, given, optional=True)


def _set_machine(task: dsl.PipelineTask, step: TaskResources) -> None:
    task.set_cpu_request(step.cpu[0]).set_cpu_limit(step.cpu[1])
    task.set_memory_request(step.memory[0]).set_memory_limit(step.memory[1])
    if step.gpus:
        task.set_accelerator_type(step.gpu_type).set_accelerator_limit(step.gpus)
    for label, value in step.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    for taint in step.tolerations:
        kubernetes.add_toleration(task, taint.key, taint.operator, taint.value or None, taint.effect)


def _launcher(train: TaskResources) -> TaskResources:
    """Return the resources of the task that starts and watches a TrainJob: little, but more time than the TrainJob."""
    return replace(
        train,
        cpu=("100m", "1"),
        memory=("256Mi", "1Gi"),
        gpus=0,
        node_selector={},
        tolerations=(),
        shared_memory=None,
        hours=train.hours + 1,
    )


def place(task: dsl.PipelineTask, name: str, cluster: Cluster) -> None:
    """Give a task everything that it gets on a cluster.

    Args:
        task: of the pipeline.
        name: of the task, one of TASKS.
        cluster: the settings.
    """
    step: TaskResources = getattr(cluster.steps, name)
    if name == "train" and cluster.training.where == "trainjob":
        name, step = "launch", _launcher(step)
    image = cluster.images.data if name in DATA_TASKS else cluster.images.torch
    task.set_container_image(image)
    task.set_env_variable("BEBYGAN_IMAGE", image)
    if step.gpus:
        # Without this, training would run on the processor for days if the driver fails.
        task.set_env_variable("BEBYGAN_GPUS", str(step.gpus))
    _set_machine(task, step)
    _set_environment(task, name, cluster)
    kubernetes.add_pod_label(task, TASK_LABEL, "train" if name == "launch" else name)
    kubernetes.use_field_path_as_env(task, "KFP_RUN_ID", f"metadata.labels['{RUN_LABEL}']")
    kubernetes.set_security_context(task, run_as_user=_USER, run_as_group=_USER, run_as_non_root=True)
    # Tasks write here only: the root filesystem may be read-only.
    kubernetes.empty_dir_mount(task, "tmp", "/tmp")  # noqa: S108
    kubernetes.empty_dir_mount(task, "workspace", "/app/workspace")
    if step.shared_memory:
        kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", "Memory", step.shared_memory)  # noqa: S108
    if name in _ON_VOLUME:
        kubernetes.mount_pvc(task, cluster.names.claim, VOLUME)
        # What could not be sent to MLflow would be lost with the pod.
        task.set_env_variable("BEBYGAN_UNTRACKED", f"{VOLUME}/untracked")
    kubernetes.set_timeout(task, step.seconds)
    if step.retries:
        # Kubeflow's window begins with the first attempt and is one hour by default.
        task.set_retry(step.retries, f"{_SECONDS_BETWEEN_ATTEMPTS}s", 2.0, f"{step.retry_window}s")


def trainjob_yaml(cluster: Cluster) -> str:
    """Return the settings of the machines that train, for the launcher; see `components.train.trainjob`."""
    train, names = cluster.steps.train, cluster.names
    s3_secret, mlflow_secret = _credentials("train", cluster)
    return to_yaml(
        TrainJobSettings(
            namespace=None,
            runtime=cluster.training.runtime,
            image=cluster.images.torch,
            nodes=cluster.training.nodes,
            gpus=train.gpus,
            gpu_type=train.gpu_type,
            cpu=train.cpu[1],
            memory=train.memory[1],
            shared_memory=train.shared_memory or "64Mi",
            hours=train.hours,
            node_selector=train.node_selector,
            tolerations=tuple(
                {name: text for name, text in vars(taint).items() if text} for taint in train.tolerations
            ),
            claim=names.claim,
            service_account=cluster.training.service_account,
            config_map=names.config_map,
            s3_secret=s3_secret,
            mlflow_secret=mlflow_secret,
        )
    )
