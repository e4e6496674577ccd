"""Read infra/schedules.yaml, compile the pipeline that its schedules start, and put the inputs together."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator

from bebygan.errors import ConfigError
from bebygan.settings import Constraint, Settings
from components.config import PARAMS_FILE, Params, from_yaml, load_params
from components.job import inputs_of
from pipelines.kubeflow.compilation import pipeline_yaml, version_name
from pipelines.kubeflow.cron import checked
from pipelines.kubeflow.resources import VOLUME, Cluster, load_cluster
from pipelines.retrain import PIPELINE, retrain_on

SCHEDULES_FILE = Path("infra/schedules.yaml")
SERVICE_ACCOUNT = "bebygan-retrain"
"""Kubernetes service account of the pods of a run."""
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
Name = Annotated[str, Constraint(pattern=r"[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?")]


def _interval(text: str) -> str:
    match = re.fullmatch(rf"([1-9]\d*) ?({'|'.join(_UNITS)})", text)
    if not match:
        raise ValueError(f"{text!r} is no interval; it looks like 15 min, 6 h or 1 d")
    return f"{match[1]} {match[2]}"


@dataclass(frozen=True, kw_only=True)
class Schedule(Settings):
    """One schedule."""

    name: Name
    """Names it in this file and on the server."""
    cron: Annotated[str, AfterValidator(checked)] | None = None
    """When: second, minute, hour, day of the month, month, day of the week; see pipelines/kubeflow/cron.py."""
    every: Annotated[str, AfterValidator(_interval)] | None = None
    """Or how often: a number and s, min, h or d."""
    params: Path = PARAMS_FILE
    """Parameters: params.yaml or a profile."""
    set: tuple[str, ...] = ()
    """Single parameters, name=value."""
    source: str
    """Folder or s3:// prefix of photographs, as a task sees it."""
    remote: str = ""
    """DVC remote for data versions; empty for none."""
    checkpoints: str = f"{VOLUME}/checkpoints"
    """Folder that survives a task."""
    ledger: str = ""
    """Record of all moves of the champion, folder or s3:// prefix; empty for none."""
    experiment: str = "bebygan"
    """Kubeflow's experiment, under which the runs are listed."""
    concurrency: Annotated[int, Constraint(at_least=1, at_most=10)] = 1
    """The most runs of it at once."""
    catchup: bool = False
    """Whether slots that were missed, while it was paused or the cluster away, are made up for."""
    paused: bool = False
    """Whether it starts nothing."""
    cluster: Path | None = None
    """Images and machines, where they are other ones than those of the other schedules."""


@dataclass(frozen=True, kw_only=True)
class Schedules(Settings):
    """All schedules of an owner."""

    owner: Annotated[str, Constraint(pattern=r"[a-z0-9][a-z0-9.-]{0,49}")]
    """Schedules of other owners in the same namespace are left alone."""
    cluster: Path
    """What tasks are given on the cluster: images, resources, secrets."""
    require_digests: bool = False
    """Refuse images that are not named by digest."""
    schedules: tuple[Schedule, ...]


def _entries(path: Path) -> tuple[dict[str, Any], list[Any]]:
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the schedules {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not isinstance(values.get("schedules"), list):
        raise ConfigError(f"{path} must name owner, cluster and schedules, the last one a list")
    return values, values["schedules"]


def load_schedules(path: Path = SCHEDULES_FILE) -> Schedules:
    """Read the schedules that a file declares.

    Raises:
        ConfigError: the file cannot be read, or something in it is unknown, missing, wrong or there twice; says in
            which schedule.
    """
    values, entries = _entries(path)
    schedules: list[Schedule] = []
    for number, entry in enumerate(entries, 1):
        name = entry.get("name", f"number {number}") if isinstance(entry, dict) else f"number {number}"
        where = f"{path}, schedule {name}"
        if isinstance(entry, dict) and "pipeline" in entry:
            raise ConfigError(
                f"{where}: remove the line `pipeline: {entry['pipeline']}`: every schedule starts the same pipeline, "
                "which trains only when something changed"
            )
        try:
            schedule = from_yaml(Schedule, yaml.safe_dump(entry))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        if bool(schedule.cron) == bool(schedule.every):
            raise ConfigError(f"{where}: give one of cron and every")
        if any(schedule.name == earlier.name for earlier in schedules):
            raise ConfigError(f"{where}: there are two of this name; rename one")
        schedules.append(schedule)
    try:
        outer = from_yaml(Schedules, yaml.safe_dump(values | {"schedules": []}))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return replace(outer, schedules=tuple(schedules))


@dataclass(frozen=True)
class Package:
    """A compiled pipeline."""

    pipeline: str
    """Name of the pipeline on the server."""
    content: bytes

    @cached_property
    def version(self) -> str:
        """Return the name of this version, which is another one when anything in it is."""
        return version_name(self.content, self.pipeline)

    @cached_property
    def _specification(self) -> Any:
        return next(yaml.safe_load_all(self.content))

    def check(self, parameters: Mapping[str, str]) -> None:
        """See that parameters are what it declares.

        Raises:
            ConfigError: one is unknown or missing.
        """
        declared = self._specification["root"].get("inputDefinitions", {}).get("parameters", {})
        missing = [
            name
            for name, input_ in declared.items()
            if name not in parameters and "defaultValue" not in input_ and not input_.get("isOptional")
        ]
        unknown = [name for name in parameters if name not in declared]
        if missing or unknown:
            raise ConfigError(
                f"the pipeline {self.pipeline} takes other inputs: {missing} are missing, {unknown} are unknown to it"
            )


def retrain_package(cluster: Cluster) -> Package:
    """Compile the retraining pipeline. Started without parameters it takes those of params.yaml.

    Raises:
        ConfigError: params.yaml cannot be read or is wrong.
    """
    return Package(PIPELINE, pipeline_yaml(retrain_on(cluster), inputs_of(load_params())))


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A schedule with everything that the server is told of it."""

    name: str
    paused: bool
    package: Package
    parameters: Mapping[str, str]
    experiment: str
    cron: str | None
    interval: int | None
    """Seconds."""
    concurrency: int
    catchup: bool
    service_account: str

    @cached_property
    def specification(self) -> str:
        """Return the SHA-256 over all of it but its name and whether it is paused, which can be changed in place."""
        told = {
            "version": self.package.version,
            "parameters": dict(self.parameters),
            "experiment": self.experiment,
            "trigger": [self.cron, self.interval],
            "concurrency": self.concurrency,
            "catchup": self.catchup,
            "service_account": self.service_account,
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    @property
    def trigger(self) -> str:
        """Say when it starts."""
        return self.cron or f"every {self.interval} s"


def interval_seconds(every: str | None) -> int | None:
    """Return an interval in seconds."""
    if every is None:
        return None
    number, unit = every.split()
    return int(number) * _UNITS[unit]


def _wanted(schedule: Schedule, package: Package, params: Params) -> Wanted:
    places = {name: getattr(schedule, name) for name in ("source", "remote", "checkpoints", "ledger")}
    inputs = places | inputs_of(params)
    package.check(inputs)
    return Wanted(
        name=schedule.name,
        paused=schedule.paused,
        package=package,
        parameters=inputs,
        experiment=schedule.experiment,
        cron=schedule.cron,
        interval=interval_seconds(schedule.every),
        concurrency=schedule.concurrency,
        catchup=schedule.catchup,
        service_account=SERVICE_ACCOUNT,
    )


def _require_digests(path: Path, cluster: Cluster) -> None:
    if not cluster.images.pinned:
        raise ConfigError(
            f"{path} names an image without a digest ({cluster.images.version}), which may be another one tomorrow: "
            "name it as name@sha256:..., or set require_digests to false"
        )


def wanted_of(schedules: Schedules) -> list[Wanted]:
    """Compile the pipeline for each cluster that is named, and put the inputs of each schedule together.

    Raises:
        ConfigError: parameters or the cluster's settings are wrong, or an image has no digest and must have one; says
            in which schedule.
    """
    clusters: dict[Path, Cluster] = {}
    params = {}
    for schedule in schedules.schedules:
        path = schedule.cluster or schedules.cluster
        try:
            clusters.setdefault(path, load_cluster(path))
            if schedules.require_digests:
                _require_digests(path, clusters[path])
            params[schedule.name] = load_params(schedule.params, schedule.set)
        except ConfigError as error:
            raise ConfigError(f"schedule {schedule.name}: {error}") from error
    packages = {path: retrain_package(cluster) for path, cluster in clusters.items()}
    return [
        _wanted(each, packages[each.cluster or schedules.cluster], params[each.name]) for each in schedules.schedules
    ]
