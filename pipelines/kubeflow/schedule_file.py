"""Read infra/schedules.yaml, and compile the pipeline and collect the inputs for its schedules."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator

from bebygan.errors import ConfigError
from bebygan.settings import Constraint, Settings
from components.config import PARAMS_FILE, from_yaml, load_params, read_settings
from components.job import inputs_of
from pipelines.kubeflow.compilation import compiled_retrain
from pipelines.kubeflow.cron import checked
from pipelines.kubeflow.requests import DeclaredSchedule
from pipelines.kubeflow.resources import VOLUME, Cluster, load_cluster

PLACES = ("source", "remote", "checkpoints", "ledger")
"""Inputs of the pipeline that name a folder or a bucket."""
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def storable(text: str) -> str:
    """Return a text that Kubeflow's database can store.

    Its columns are 255 characters wide, and MySQL's default character set rejects characters that are not Latin.

    Raises:
        ValueError: the text is longer, or contains other characters than printable ASCII.
    """
    if len(text) > 255 or not (text.isascii() and text.isprintable()):
        raise ValueError(
            f"{text!r} must be at most 255 printable ASCII characters, which Kubeflow's database can store"
        )
    return text


def place(address: str) -> str:
    """Return an address that a task can open: empty, a folder, or s3://bucket/prefix.

    Raises:
        ValueError: the address is something else.
    """
    if re.match(r"[A-Za-z][\w+.-]*:", address) and not re.match(r"s3://[^/]", address):
        raise ValueError(f"{address} is neither a folder nor s3://bucket/prefix")
    return storable(address)


def _interval(text: str) -> str:
    match = re.fullmatch(rf"([1-9]\d*) ?({'|'.join(_UNITS)})", text)
    if not match:
        raise ValueError(f"{text!r} is not an interval; examples are 15 min, 6 h and 1 d")
    return f"{match[1]} {match[2]}"


def interval_seconds(every: str | None) -> int | None:
    """Return the seconds of an interval that `Schedule.every` accepts."""
    if every is None:
        return None
    number, unit = every.split()
    return int(number) * _UNITS[unit]


Place = Annotated[str, AfterValidator(place)]


@dataclass(frozen=True, kw_only=True)
class Schedule(Settings):
    """One schedule."""

    name: Annotated[str, Constraint(pattern=r"[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?")]
    """Its name in this file and on the server."""
    cron: Annotated[str, AfterValidator(checked)] | None = None
    """Trigger: second, minute, hour, day of the month, month, day of the week; see pipelines/kubeflow/cron.py."""
    every: Annotated[str, AfterValidator(_interval)] | None = None
    """Interval instead of `cron`: a number and s, min, h or d."""
    params: Path = PARAMS_FILE
    """File of parameters: params.yaml or a profile."""
    set: tuple[str, ...] = ()
    """Changes of single parameters, name=value."""
    source: Annotated[str, AfterValidator(place), Constraint(pattern=".+")]
    """Folder in the tasks' containers, or s3:// prefix, of the photographs."""
    remote: Place = ""
    """DVC remote for data versions; empty for none."""
    checkpoints: Place = f"{VOLUME}/checkpoints"
    """Folder that survives a task."""
    ledger: Place = ""
    """Record of all moves of the champion, folder or s3:// prefix; empty for none."""
    experiment: Annotated[str, AfterValidator(storable)] = "bebygan"
    """Kubeflow's experiment, under which the runs are listed."""
    concurrency: Annotated[int, Constraint(at_least=1, at_most=10)] = 1
    """Number of its runs that can be active at once."""
    catchup: bool = False
    """Whether to start runs later that were missed while the schedule was paused or the cluster was down."""
    paused: bool = False
    """Whether the schedule is disabled."""
    cluster: Path | None = None
    """Images and resources of its tasks, if they differ from those of the other schedules."""


@dataclass(frozen=True, kw_only=True)
class ScheduleFile(Settings):
    """All schedules of an owner."""

    owner: Annotated[str, Constraint(pattern=r"[a-z0-9][a-z0-9.-]{0,49}")]
    """Owner of the schedules. Schedules of other owners in the same namespace are not changed."""
    cluster: Path
    """File of the tasks' images, resources and secrets."""
    require_digests: bool = False
    """Whether to reject images without a digest."""
    schedules: tuple[Schedule, ...]


def _entries(path: Path) -> tuple[dict[str, Any], list[Any]]:
    try:
        values = yaml.safe_load(read_settings(path, "the schedules"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not isinstance(values.get("schedules"), list):
        raise ConfigError(f"{path} must contain owner, cluster and schedules, the last one a list")
    return values, values["schedules"]


def load_schedules(path: Path) -> ScheduleFile:
    """Read the schedules that a file declares.

    Raises:
        ConfigError: the file cannot be read, or an entry is unknown, missing, invalid or declared twice; names the
            schedule.
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
            raise ConfigError(f"{where}: two schedules have this name; rename one")
        schedules.append(schedule)
    try:
        outer = from_yaml(ScheduleFile, yaml.safe_dump(values | {"schedules": []}))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return replace(outer, schedules=tuple(schedules))


def declared_schedules(file: ScheduleFile) -> list[DeclaredSchedule]:
    """Compile the pipeline for each cluster, and collect the inputs of each schedule.

    Raises:
        ConfigError: parameters or the cluster's settings are invalid, or an image lacks a required digest; names the
            schedule.
    """
    clusters: dict[Path, Cluster] = {}
    inputs = {}
    for schedule in file.schedules:
        path = schedule.cluster or file.cluster
        try:
            clusters[path] = cluster = load_cluster(path)
            params = inputs_of(load_params(schedule.params, schedule.set))
        except ConfigError as error:
            raise ConfigError(f"schedule {schedule.name}: {error}") from error
        if file.require_digests and not cluster.images.pinned:
            raise ConfigError(
                f"schedule {schedule.name}: {path} names an image without a digest ({cluster.images.version}), so its "
                "content can change: name it as name@sha256:..., or set require_digests to false"
            )
        inputs[schedule.name] = {name: getattr(schedule, name) for name in PLACES} | params
    # Compiling takes a second, so it comes after all checks.
    compiled = {path: compiled_retrain(cluster) for path, cluster in clusters.items()}
    return [
        DeclaredSchedule(
            name=schedule.name,
            paused=schedule.paused,
            pipeline=compiled[schedule.cluster or file.cluster],
            parameters=inputs[schedule.name],
            experiment=schedule.experiment,
            cron=schedule.cron,
            interval=interval_seconds(schedule.every),
            concurrency=schedule.concurrency,
            catchup=schedule.catchup,
        )
        for schedule in file.schedules
    ]
