"""Apply declared schedules to a server of Kubeflow Pipelines.

A recurring run cannot be changed, so its description contains a hash of its whole specification: the compiled pipeline,
its inputs and its trigger. A recurring run that matches no declared schedule is disabled, and deleted when it has no
active run. `apply` plans all changes, makes those of the first stage, and plans again, until no change is left. It can
therefore continue after an interrupted apply, or run beside another one: of two equal recurring runs, the older one
stays.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from bebygan.differences import differences
from bebygan.errors import ConfigError, ServiceError
from components.config import flatten
from pipelines.kubeflow.client import Kubeflow, RecurringRun
from pipelines.kubeflow.requests import DeclaredSchedule

_ROUNDS = 10
"""Plans that `apply` makes before it fails. Without another client, four are enough."""
_MARK = re.compile(r"bebygan schedule (?P<owner>[\w.-]+)/(?P<name>[\w.-]+) (?P<hash>[0-9a-f]{64})(?P<held> paused)?")
_STAGES = {"create": 0, "disable": 1, "enable": 1, "delete": 2}
"""Old recurring runs stay unchanged until all new ones exist."""


@dataclass(frozen=True)
class ServerSchedule:
    """A recurring run on the server that belongs to a schedule of the owner."""

    name: str
    specification: str
    held: bool
    """Paused by hand. It stays paused if the schedule changes, until it is resumed by hand."""
    run: RecurringRun

    @property
    def state(self) -> str:
        """Whether it starts runs, as text."""
        return "paused by hand" if self.held else "enabled" if self.run.enabled else "disabled"


@dataclass(frozen=True)
class Action:
    """One change on the server."""

    kind: Literal["create", "disable", "enable", "delete"]
    name: str
    why: str = ""
    id: str = ""
    """The recurring run; empty for one that does not exist yet."""
    held: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.name}{f' ({self.why})' if self.why else ''}"


def _description(owner: str, name: str, specification: str, *, held: bool) -> str:
    return f"bebygan schedule {owner}/{name} {specification}{' paused' if held else ''}"


def existing(recurring_runs: Iterable[RecurringRun], owner: str) -> list[ServerSchedule]:
    """Return the owner's schedules among all recurring runs of a server, sorted by name and age, the oldest first."""
    found = [
        ServerSchedule(mark["name"], mark["hash"], bool(mark["held"]), each)
        for each in recurring_runs
        if (mark := _MARK.fullmatch(each.description)) and mark["owner"] == owner
    ]
    return sorted(found, key=lambda each: (each.name, each.run.created_at, each.run.id))


def _parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return inputs with flattened parameters; older versions have one input for each group of parameters."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name == "params" or name.endswith("_params"):
            group, content = name.removesuffix("params").rstrip("_"), yaml.safe_load(str(value))
            found |= flatten({group: content} if group else content)
        else:
            found[name] = value
    return found


def _difference(declared: DeclaredSchedule, there: RecurringRun) -> str:
    now, before = _parameters(declared.parameters), _parameters(there.parameters)
    changes = [f"{there.trigger} -> {declared.trigger}"] if there.trigger != declared.trigger else []
    return ", ".join(changes + differences(before, now)) or "code, images or resources"


def _plan_one(name: str, declared: DeclaredSchedule | None, there: Sequence[ServerSchedule]) -> list[Action]:
    held = any(each.held for each in there)
    wanted = declared and (declared.specification, held)
    chosen = next((each for each in there if (each.specification, each.held) == wanted), None)
    others = [each for each in there if each is not chosen]
    actions = []
    if declared and not chosen:
        why = _difference(declared, there[-1].run) if there else f"{declared.pipeline.name}, {declared.trigger}"
        actions.append(Action("create", name, why, held=held))
    why = "replaced" if declared else "no longer declared"
    actions += [Action("disable", name, why, each.run.id) for each in others if each.run.enabled]
    if declared:
        enabled = not declared.paused and not held
        # A new recurring run is created disabled.
        if enabled != (chosen is not None and chosen.run.enabled):
            actions.append(Action("enable" if enabled else "disable", name, id=chosen.run.id if chosen else ""))
    return actions + [Action("delete", name, why, each.run.id) for each in others]


def _plan(kubeflow: Kubeflow, owner: str, declared: Mapping[str, DeclaredSchedule]) -> list[Action]:
    """Return all changes that the server needs, sorted by stage."""
    there = existing(kubeflow.recurring_runs(), owner)
    actions = []
    for name in sorted({*declared, *(each.name for each in there)}):
        actions += _plan_one(name, declared.get(name), [each for each in there if each.name == name])
    return sorted(actions, key=lambda action: _STAGES[action.kind])


def forecast(kubeflow: Kubeflow, owner: str, declared: Iterable[DeclaredSchedule]) -> list[Action]:
    """Return the changes that `apply` would make."""
    actions = _plan(kubeflow, owner, {schedule.name: schedule for schedule in declared})
    return [action for action in actions if action.kind != "delete" or not kubeflow.alive_runs(action.id)]


def apply(
    kubeflow: Kubeflow,
    owner: str,
    declared: Sequence[DeclaredSchedule],
    report: Callable[[Action], None] = lambda _: None,
) -> list[str]:
    """Create, replace, enable, disable and delete an owner's schedules until the server has the declared ones.

    Report each change. Return the names of schedules that still have an old, disabled recurring run, because one of its
    runs is active; a later apply deletes it.

    Raises:
        ServiceError: the server is unreachable or rejects a request, or another client keeps changing the schedules.
            The next apply continues.
    """
    by_name = {schedule.name: schedule for schedule in declared}
    busy: dict[str, str] = {}
    for _ in range(_ROUNDS):
        actions = _plan(kubeflow, owner, by_name)
        actions = [action for action in actions if action.kind != "delete" or action.id not in busy]
        if not actions:
            return sorted(set(busy.values()))
        for action in actions:
            if _STAGES[action.kind] > _STAGES[actions[0].kind]:
                break
            if action.kind == "create":
                schedule = by_name[action.name]
                mark = _description(owner, schedule.name, schedule.specification, held=action.held)
                kubeflow.create_recurring_run(schedule, mark)
            elif action.kind == "delete" and kubeflow.alive_runs(action.id):
                busy[action.id] = action.name
                continue
            else:
                kubeflow.change(action.kind, action.id)
            report(action)
    raise ServiceError(f"another client keeps changing the schedules of {owner}: find it, and apply again")


def _named(kubeflow: Kubeflow, owner: str, name: str) -> list[ServerSchedule]:
    """Return the recurring runs of a schedule, the oldest first."""
    ours = existing(kubeflow.recurring_runs(), owner)
    found = [each for each in ours if each.name == name]
    if not found:
        known = ", ".join(sorted({each.name for each in ours})) or "none"
        raise ConfigError(f"{owner} has no schedule {name} on the server; it has {known}")
    return found


def pause(kubeflow: Kubeflow, owner: str, name: str) -> None:
    """Stop a schedule from starting runs until it is resumed, whatever is applied. Active runs continue.

    This marks a copy of the recurring run on the server, and so applies no other change of the file.

    Raises:
        ConfigError: there is no such schedule.
        ServiceError: the server is unreachable or rejects a request.
    """
    found = _named(kubeflow, owner, name)
    for each in found:
        if each.run.enabled:
            kubeflow.change("disable", each.run.id)
    if not any(each.held for each in found):
        latest = next((each for each in reversed(found) if each.run.enabled), found[-1])
        kubeflow.copy_recurring_run(latest.run.id, _description(owner, name, latest.specification, held=True))


def resume(kubeflow: Kubeflow, owner: str, name: str) -> None:
    """Resume a schedule that was paused by hand.

    Raises:
        ConfigError: there is no such schedule, or it was not paused by hand.
        ServiceError: the server is unreachable or rejects a request. The next call continues.
    """
    found = _named(kubeflow, owner, name)
    held = [each for each in found if each.held]
    if not held:
        raise ConfigError(f"the schedule {name} is not paused by hand; the file may pause it")
    specification = held[-1].specification
    free = [each.run.id for each in found if not each.held and each.specification == specification]
    text = _description(owner, name, specification, held=False)
    kubeflow.change("enable", free[0] if free else kubeflow.copy_recurring_run(held[-1].run.id, text))
    for each in held:
        # A held recurring run was never enabled, so it has no runs.
        kubeflow.change("delete", each.run.id)
