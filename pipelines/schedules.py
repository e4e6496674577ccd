"""Schedules: what infra/schedules.yaml declares, made so on a server of Kubeflow Pipelines.

A recurring run cannot be changed there, so each carries a hash of its whole specification: the compiled pipeline, its
inputs, and when it starts. What does not carry the hash of a declared schedule is disabled, and deleted once none of
its runs is alive. `plan` says what is to be done from what is declared and what is there, and `apply` does it and looks
again until nothing is left to do. Hence it does not matter where an earlier apply died, nor who else applies: of two
equal recurring runs the older one stays, whoever made it.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field

from bebygan.errors import ConfigError, ServiceError
from components.common.config import PARAMS_FILE, Count, Group, Params, from_yaml, load_params
from components.common.job import inputs_of
from components.common.kubeflow import Kubeflow, RecurringRun
from components.common.provenance import flatten
from pipelines.cluster import Cluster, load_cluster
from pipelines.compiled import pipeline_yaml, version_name
from pipelines.cron import checked
from pipelines.detect import DETECT, detect_on
from pipelines.retrain import PIPELINE, retrain_on

SCHEDULES_FILE = Path("infra/schedules.yaml")
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
SERVICE_ACCOUNTS = {"retrain": "bebygan-retrain", "detect": "bebygan-detect"}
"""Of the pods of a run, by pipeline."""
_ROUNDS = 10
"""Looks at the server before we say that somebody else keeps changing it; three are enough alone."""
_MARK = re.compile(r"bebygan schedule (?P<owner>[\w.-]+)/(?P<name>[\w.-]+) (?P<hash>[0-9a-f]{64})(?P<held> paused)?")
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?$")]


def _interval(text: str) -> str:
    match = re.fullmatch(rf"([1-9]\d*) ?({'|'.join(_UNITS)})", text)
    if not match:
        raise ValueError(f"{text!r} is no interval; it looks like 15 min, 6 h or 1 d")
    return f"{match[1]} {match[2]}"


class Schedule(Group):
    """One schedule."""

    name: Name
    """Names it in this file and on the server."""
    pipeline: Literal["retrain", "detect"]
    """What it starts: a training, or a look whether one is due."""
    cron: Annotated[str, AfterValidator(checked)] | None = None
    """When: second, minute, hour, day of the month, month, day of the week; see pipelines/cron.py."""
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
    checkpoints: str = "/volume/checkpoints"
    """Folder that survives a task."""
    ledger: str = ""
    """Record of all moves of the champion, folder or s3:// prefix; empty for none."""
    experiment: str = "bebygan"
    """Kubeflow's experiment, under which the runs are listed."""
    concurrency: Annotated[Count, Field(le=10)] = 1
    """The most runs of it at once."""
    catchup: bool = False
    """Whether slots that were missed, while it was paused or the cluster away, are made up for."""
    paused: bool = False
    """Whether it starts nothing."""
    cluster: Path | None = None
    """Images and machines, where they are other ones than those of the other schedules."""


class Schedules(Group):
    """All schedules of an owner."""

    owner: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
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
    return outer.model_copy(update={"schedules": tuple(schedules)})


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


def detect_package(cluster: Cluster) -> Package:
    """Compile the change detector."""
    return Package(DETECT, pipeline_yaml(detect_on(cluster), {}))


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A schedule with everything that the server is told of it."""

    name: str
    paused: bool
    package: Package
    companions: tuple[Package, ...] = ()
    """Pipelines that its runs start in turn: they must be there too."""
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


def retrain_inputs(schedule: Schedule, params: Params) -> dict[str, str]:
    """Return the inputs of the retraining pipeline."""
    places = {name: getattr(schedule, name) for name in ("source", "remote", "checkpoints", "ledger")}
    return places | inputs_of(params)


def _wanted(schedule: Schedule, inputs: Mapping[str, str], retrain: Package, detect: Package | None) -> Wanted:
    if detect:
        inputs = {
            **inputs,
            "experiment": schedule.experiment,
            # Its code is the detector's own: another one would be found changed again and again.
            "version": retrain.version,
            "service_account": SERVICE_ACCOUNTS["retrain"],
        }
    package = detect or retrain
    package.check(inputs)
    return Wanted(
        name=schedule.name,
        paused=schedule.paused,
        package=package,
        companions=(retrain,) if detect else (),
        parameters=inputs,
        experiment=schedule.experiment,
        cron=schedule.cron,
        interval=interval_seconds(schedule.every),
        concurrency=schedule.concurrency,
        catchup=schedule.catchup,
        service_account=SERVICE_ACCOUNTS[schedule.pipeline],
    )


def _require_digests(path: Path, cluster: Cluster) -> None:
    if not cluster.images.pinned:
        raise ConfigError(
            f"{path} names an image without a digest ({cluster.images.version}), which may be another one tomorrow: "
            "name it as name@sha256:..., or set require_digests to false"
        )


def wanted_of(schedules: Schedules) -> list[Wanted]:
    """Compile the pipelines that schedules start, and put their inputs together.

    Raises:
        ConfigError: parameters or the cluster's settings are wrong, or an image has no digest and must have one; says
            in which schedule.
    """
    paths = {each.name: each.cluster or schedules.cluster for each in schedules.schedules}
    clusters: dict[Path, Cluster] = {}
    inputs = {}
    for schedule in schedules.schedules:
        path = paths[schedule.name]
        try:
            clusters.setdefault(path, load_cluster(path))
            if schedules.require_digests:
                _require_digests(path, clusters[path])
            inputs[schedule.name] = retrain_inputs(schedule, load_params(schedule.params, schedule.set))
        except ConfigError as error:
            raise ConfigError(f"schedule {schedule.name}: {error}") from error
    # A detector needs the pipeline that it starts.
    retrain = {path: retrain_package(cluster) for path, cluster in clusters.items()}
    detecting = {paths[each.name] for each in schedules.schedules if each.pipeline == "detect"}
    detect = {path: detect_package(clusters[path]) for path in detecting}
    return [
        _wanted(
            each,
            inputs[each.name],
            retrain[paths[each.name]],
            detect[paths[each.name]] if each.pipeline == "detect" else None,
        )
        for each in schedules.schedules
    ]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A recurring run of ours on the server."""

    id: str
    name: str
    specification: str
    held: bool
    """Paused by hand; that outlives a change of the schedule, until it is resumed by hand."""
    enabled: bool
    created_at: datetime


@dataclass(frozen=True)
class Action:
    """One thing to do."""

    kind: Literal["create", "disable", "enable", "delete"]
    name: str
    id: str = ""
    """The recurring run; empty for one that is yet to be made."""
    held: bool = False


def _description(owner: str, name: str, specification: str, *, held: bool) -> str:
    return f"bebygan schedule {owner}/{name} {specification}{' paused' if held else ''}"


def kept(recurring_runs: Iterable[RecurringRun], owner: str) -> list[Kept]:
    """Pick the owner's schedules out of all that a server has."""
    found = []
    for each in recurring_runs:
        match = _MARK.fullmatch(each.description)
        if match and match["owner"] == owner:
            found.append(
                Kept(
                    id=each.id,
                    name=match["name"],
                    specification=match["hash"],
                    held=bool(match["held"]),
                    enabled=each.enabled,
                    created_at=each.created_at,
                )
            )
    return found


def _plan_one(wanted: Wanted | None, mine: Sequence[Kept], busy: Collection[str]) -> list[Action]:
    held = any(each.held for each in mine)
    right = [each for each in mine if wanted and (each.specification, each.held) == (wanted.specification, held)]
    if wanted and not right:
        # The old ones stay as they are until the new one is there.
        return [Action("create", wanted.name, held=held)]
    chosen = right[0] if right else None
    others = [each for each in mine if each is not chosen]
    actions = [Action("disable", each.name, each.id) for each in others if each.enabled]
    if wanted and chosen:
        enabled = not wanted.paused and not held
        if chosen.enabled != enabled:
            actions.append(Action("enable" if enabled else "disable", chosen.name, chosen.id))
    return actions + [
        Action("delete", each.name, each.id) for each in others if not each.enabled and each.id not in busy
    ]


def plan(wanted: Sequence[Wanted], there: Sequence[Kept], busy: Collection[str] = ()) -> list[Action]:
    """Say what is to be done next. When it is done, there may be more: plan again until nothing is left.

    Args:
        wanted: the declared schedules, no two of one name.
        there: the owner's recurring runs on the server.
        busy: ids of those that still have a run alive, as far as they were asked.

    Returns:
        Actions, in their order; none when all is as declared.
    """
    by_name = {schedule.name: schedule for schedule in wanted}
    actions = []
    for name in sorted({*by_name, *(each.name for each in there)}):
        mine = sorted((each for each in there if each.name == name), key=lambda each: (each.created_at, each.id))
        actions += _plan_one(by_name.get(name), mine, busy)
    return actions


def _after(wanted: Sequence[Wanted], there: Sequence[Kept], action: Action) -> list[Kept]:
    """Return what would be there after an action."""
    if action.kind == "create":
        [schedule] = [schedule for schedule in wanted if schedule.name == action.name]
        made = Kept(
            id=f"the new {action.name}",
            name=action.name,
            specification=schedule.specification,
            held=action.held,
            enabled=False,
            created_at=datetime.max.replace(tzinfo=UTC),
        )
        return [*there, made]
    if action.kind == "delete":
        return [each for each in there if each.id != action.id]
    enabled = action.kind == "enable"
    return [replace(each, enabled=enabled) if each.id == action.id else each for each in there]


def forecast(wanted: Sequence[Wanted], there: Sequence[Kept], is_busy: Callable[[str], bool]) -> list[Action]:
    """Say all that `apply` would do, without doing it."""
    actions: list[Action] = []
    busy: set[str] = set()
    while planned := plan(wanted, there, busy):
        for action in planned:
            if action.kind == "delete" and is_busy(action.id):
                busy.add(action.id)
                continue
            there = _after(wanted, there, action)
            actions.append(action)
    return actions


def _parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return inputs with the groups' YAML texts taken apart."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        group = name.removesuffix("_params")
        found |= {name: value} if group == name else dict(flatten({group: yaml.safe_load(str(value))}))
    return found


def difference(wanted: Wanted, there: RecurringRun) -> str:
    """Say how a declared schedule differs from one on the server."""
    now, then = _parameters(wanted.parameters), _parameters(there.parameters)
    told = [f"{there.trigger} -> {wanted.trigger}"] if there.trigger != wanted.trigger else []
    told += [
        f"{name} {then.get(name, 'unset')} -> {now.get(name, 'unset')}"
        for name in sorted(now.keys() | then.keys())
        if now.get(name) != then.get(name)
    ]
    return ", ".join(told) or "code, images or resources"


class _Server:
    """Does actions on a server, making what they need once."""

    def __init__(self, kubeflow: Kubeflow, owner: str, wanted: Sequence[Wanted]) -> None:
        self._kubeflow = kubeflow
        self._owner = owner
        self._wanted = {schedule.name: schedule for schedule in wanted}
        self._experiments: dict[str, str] = {}
        self._versions: dict[str, tuple[str, str]] = {}

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            self._experiments[name] = self._kubeflow.experiment(name)
        return self._experiments[name]

    def _version(self, package: Package) -> tuple[str, str]:
        if package.version not in self._versions:
            self._versions[package.version] = upload(self._kubeflow, package)
        return self._versions[package.version]

    def do(self, action: Action) -> bool:
        """Do an action; return whether it could be done, which a deletion cannot while a run is alive."""
        if action.kind == "create":
            self._create(self._wanted[action.name], held=action.held)
        elif action.kind == "disable":
            self._kubeflow.disable(action.id)
        elif action.kind == "enable":
            self._kubeflow.enable(action.id)
        elif self._kubeflow.alive_runs(action.id):
            return False
        else:
            self._kubeflow.delete(action.id)
        return True

    def _create(self, schedule: Wanted, *, held: bool) -> None:
        for companion in schedule.companions:
            self._version(companion)
        pipeline_id, version_id = self._version(schedule.package)
        self._kubeflow.create_recurring_run(
            name=schedule.name,
            description=_description(self._owner, schedule.name, schedule.specification, held=held),
            experiment_id=self._experiment(schedule.experiment),
            pipeline_id=pipeline_id,
            version_id=version_id,
            parameters=schedule.parameters,
            cron=schedule.cron,
            interval=schedule.interval,
            concurrency=schedule.concurrency,
            catchup=schedule.catchup,
            service_account=schedule.service_account,
        )


def upload(kubeflow: Kubeflow, package: Package) -> tuple[str, str]:
    """Bring a pipeline to a server unless it is there; return the ids of the pipeline and of its version.

    Raises:
        ServiceError: the server is away or refuses.
    """
    pipeline = kubeflow.pipeline(package.pipeline)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pipeline.yaml"
        file.write_bytes(package.content)
        return pipeline, kubeflow.version(pipeline, package.version, file)


def apply(
    kubeflow: Kubeflow,
    owner: str,
    wanted: Sequence[Wanted],
    tell: Callable[[Action], None] = lambda _: None,
) -> list[str]:
    """Make the server's schedules those that are wanted.

    Args:
        kubeflow: the server.
        owner: whose schedules; others' are left alone.
        wanted: all of the owner's schedules.
        tell: called with each action that was done.

    Returns:
        Names of schedules of which an old, disabled recurring run stays, because a run of it is alive. A later apply
        deletes it.

    Raises:
        ServiceError: the server is away or refuses, or somebody else keeps changing the schedules. Apply again: it
            goes on where this one stopped.
    """
    server = _Server(kubeflow, owner, wanted)
    busy: dict[str, str] = {}
    for _ in range(_ROUNDS):
        actions = plan(wanted, kept(kubeflow.recurring_runs(), owner), busy)
        if not actions:
            return sorted(set(busy.values()))
        for action in actions:
            if server.do(action):
                tell(action)
            else:
                busy[action.id] = action.name
    raise ServiceError(f"somebody else keeps changing the schedules of {owner}: see who, and apply again")


def _named(kubeflow: Kubeflow, owner: str, name: str) -> list[Kept]:
    """Return the recurring runs of a schedule, the newest first."""
    ours = kept(kubeflow.recurring_runs(), owner)
    found = [each for each in ours if each.name == name]
    if not found:
        known = ", ".join(sorted({each.name for each in ours})) or "none"
        raise ConfigError(f"there is no schedule {name} of {owner} on the server; known are {known}")
    return sorted(found, key=lambda each: (each.created_at, each.id), reverse=True)


def pause(kubeflow: Kubeflow, owner: str, name: str) -> None:
    """Let a schedule start nothing more, whatever is applied, until it is resumed. Runs under way go on.

    What the server has is copied with a mark, so that nothing else that changed in the file comes along.

    Raises:
        ConfigError: there is no such schedule.
        ServiceError: the server is away or refuses.
    """
    found = _named(kubeflow, owner, name)
    for each in found:
        if each.enabled:
            kubeflow.disable(each.id)
    if not any(each.held for each in found):
        latest = next((each for each in found if each.enabled), found[0])
        kubeflow.copy_recurring_run(latest.id, _description(owner, name, latest.specification, held=True))


def resume(kubeflow: Kubeflow, owner: str, name: str) -> None:
    """Let a schedule that was paused by hand start runs again.

    Raises:
        ConfigError: there is no such schedule, or it was not paused by hand.
        ServiceError: the server is away or refuses. Resume again: it goes on where this one stopped.
    """
    found = _named(kubeflow, owner, name)
    held = [each for each in found if each.held]
    if not held:
        raise ConfigError(f"the schedule {name} is not paused by hand; the file may say that it is paused")
    specification = held[0].specification
    free = [each.id for each in found if not each.held and each.specification == specification]
    kubeflow.enable(
        free[-1]
        if free
        else kubeflow.copy_recurring_run(held[0].id, _description(owner, name, specification, held=False))
    )
    for each in held:
        # It never was enabled, so that no run goes with it.
        kubeflow.delete(each.id)
