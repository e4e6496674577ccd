"""Schedules: what a file declares, made so on a server of Kubeflow Pipelines.

A recurring run cannot be changed there, so each carries a hash of its whole specification: the compiled pipeline, its
inputs, and when it starts. What does not carry the hash of a declared schedule is disabled, and deleted once none of
its runs is alive. `plan` says what is to be done from what is declared and what is there, and `apply` does it and looks
again until nothing is left to do. Hence it does not matter where an earlier apply died, nor who else applies: of two
equal recurring runs the older one stays, whoever made it.
"""

import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from bebygan.differences import differences
from bebygan.errors import ConfigError, ServiceError
from components.config import flatten
from pipelines.kubeflow.client import Kubeflow, RecurringRun
from pipelines.kubeflow.schedule_file import Package, Wanted

_ROUNDS = 10
"""Looks at the server before we say that somebody else keeps changing it; three are enough alone."""
_MARK = re.compile(r"bebygan schedule (?P<owner>[\w.-]+)/(?P<name>[\w.-]+) (?P<hash>[0-9a-f]{64})(?P<held> paused)?")


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
    why: str = ""
    """Of what is done to a recurring run that is not the declared one."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}{f' ({self.why})' if self.why else ''}"


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
    why = "an old one" if wanted else "no longer declared"
    actions = [Action("disable", each.name, each.id, why=why) for each in others if each.enabled]
    if wanted and chosen:
        enabled = not wanted.paused and not held
        if chosen.enabled != enabled:
            actions.append(Action("enable" if enabled else "disable", chosen.name, chosen.id))
    return actions + [
        Action("delete", each.name, each.id, why=why) for each in others if not each.enabled and each.id not in busy
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
    return ", ".join(told + differences(then, now)) or "code, images or resources"


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
