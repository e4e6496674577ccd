"""The commands of `bebygan` that speak to a cluster: schedule, submit, runs, logs."""

import argparse
import os
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.cli import add_command, add_params_arguments
from components.config import load_params
from components.progress import say

if TYPE_CHECKING:
    from pipelines.kubeflow.client import RecurringRun
    from pipelines.kubeflow.schedule_file import Wanted
    from pipelines.kubeflow.schedules import Action, Kept

ENVIRONMENT = """environment:
  KFP_HOST                     address of Kubeflow Pipelines (else KF_PIPELINES_ENDPOINT, else that inside a cluster)
  KFP_TOKEN                    token for it, or KF_PIPELINES_SA_TOKEN_PATH, a file that holds one
  KFP_NAMESPACE                your profile, where Kubeflow has several users
  SSL_CERT_FILE                certificate authority of the server, where it is your own
"""
# Kubeflow takes seconds to import, which --help and a wrong file need not wait for: hence imports inside functions.


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    cells = list(rows)
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _age(moment: datetime) -> str:
    seconds = int((datetime.now(UTC) - moment).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{max(seconds, 0)} s"


def _change(action: "Action", wanted: "dict[str, Wanted]", there: "dict[str, RecurringRun]") -> str:
    """Say an action to a person."""
    from pipelines.kubeflow.schedules import difference  # noqa: PLC0415

    if action.kind != "create":
        return str(action)
    schedule = wanted[action.name]
    if action.name in there:
        return f"create {action.name} anew: {difference(schedule, there[action.name])}"
    return f"create {action.name}: {schedule.package.pipeline}, {schedule.trigger}"


def _plan(options: argparse.Namespace) -> None:
    from pipelines.kubeflow.client import connect  # noqa: PLC0415
    from pipelines.kubeflow.schedule_file import load_schedules, wanted_of  # noqa: PLC0415
    from pipelines.kubeflow.schedules import forecast, kept  # noqa: PLC0415

    schedules = load_schedules(options.file)
    wanted = wanted_of(schedules)
    kubeflow = connect()
    recurring_runs = kubeflow.recurring_runs()
    there = kept(recurring_runs, schedules.owner)
    actions = forecast(wanted, there, lambda each: bool(kubeflow.alive_runs(each)))
    names = {each.id: each.name for each in there}
    latest = {names[run.id]: run for run in recurring_runs if run.id in names}
    for action in actions:
        print(_change(action, {schedule.name: schedule for schedule in wanted}, latest))
    changed = {action.name for action in actions}
    print(f"unchanged: {len({schedule.name for schedule in wanted} - changed)} of {len(wanted)}")


def _apply(options: argparse.Namespace) -> None:
    from pipelines.kubeflow.client import connect  # noqa: PLC0415
    from pipelines.kubeflow.schedule_file import load_schedules, wanted_of  # noqa: PLC0415
    from pipelines.kubeflow.schedules import apply  # noqa: PLC0415

    schedules = load_schedules(options.file)
    wanted = wanted_of(schedules)
    changed = set()

    def tell(action: "Action") -> None:
        changed.add(action.name)
        print(action, flush=True)

    waiting = apply(connect(), schedules.owner, wanted, tell)
    print(f"unchanged: {len({schedule.name for schedule in wanted} - changed)} of {len(wanted)}")
    if waiting:
        print(f"a run of an old version goes on, a later apply removes it: {', '.join(waiting)}")


def _state(schedule: "Kept") -> str:
    if schedule.held:
        return "paused by hand"
    return "enabled" if schedule.enabled else "disabled"


def _list(options: argparse.Namespace) -> None:
    from pipelines.kubeflow.client import connect  # noqa: PLC0415
    from pipelines.kubeflow.schedule_file import load_schedules  # noqa: PLC0415
    from pipelines.kubeflow.schedules import kept  # noqa: PLC0415

    owner = load_schedules(options.file).owner
    recurring_runs = connect().recurring_runs()
    triggers = {run.id: run.trigger for run in recurring_runs}
    found = sorted(kept(recurring_runs, owner), key=lambda each: (each.name, each.created_at))
    rows = [(each.name, triggers[each.id], _state(each), _age(each.created_at), each.id) for each in found]
    print(_table([("NAME", "WHEN", "STATE", "AGE", "ID"), *rows]) if rows else f"{owner} has no schedules there")


def _pause_or_resume(options: argparse.Namespace) -> None:
    from pipelines.kubeflow.client import connect  # noqa: PLC0415
    from pipelines.kubeflow.schedule_file import load_schedules  # noqa: PLC0415
    from pipelines.kubeflow.schedules import pause, resume  # noqa: PLC0415

    act = pause if options.action == "pause" else resume
    act(connect(), load_schedules(options.file).owner, options.name)
    print(f"{options.action}d {options.name}")


def _link(host: str, run: str) -> str:
    return f"{os.environ.get('BEBYGAN_CONSOLE') or host}/#/runs/details/{run}"


def _submit(options: argparse.Namespace) -> None:
    params = load_params(options.params, options.set)
    from pipelines.kubeflow.client import connect  # noqa: PLC0415
    from pipelines.kubeflow.runs import submit, wait  # noqa: PLC0415

    kubeflow = connect()
    run = submit(
        kubeflow,
        options.cluster,
        params,
        places={name: getattr(options, name) for name in ("source", "remote", "checkpoints", "ledger")},
        experiment=options.experiment,
        force="always" if options.force else "auto",
        reason=options.reason,
    )
    print(run, flush=True)
    say(_link(kubeflow.host, run))
    if options.wait:
        wait(kubeflow, run, say)


def _runs(options: argparse.Namespace) -> None:
    from pipelines.kubeflow.client import connect  # noqa: PLC0415

    rows = [
        (run.id, run.name, run.state.lower(), _age(run.created_at), run.error)
        for run in islice(connect().runs(), options.number)
    ]
    print(_table([("ID", "NAME", "STATE", "AGE", "ERROR"), *rows]) if rows else "there are no runs")


def _logs(options: argparse.Namespace) -> None:
    from pipelines.kubeflow.client import connect  # noqa: PLC0415
    from pipelines.kubeflow.runs import logs  # noqa: PLC0415

    try:
        for text in logs(connect(), options.run_id, options.task, follow=options.follow):
            print(text, flush=True)
    except BrokenPipeError:
        # `| head` has seen enough. The interpreter's last flush must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _add_schedule(commands: Any) -> None:
    schedule = add_command(commands, "schedule", "keep a cluster's schedules as a file declares them", ENVIRONMENT)
    actions = schedule.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, run, text in (
        ("plan", _plan, "say what apply would change"),
        ("apply", _apply, "make the schedules those of the file"),
        ("list", _list, "list the schedules on the server"),
        ("pause", _pause_or_resume, "let a schedule start nothing until it is resumed, whatever is applied"),
        ("resume", _pause_or_resume, "let a paused schedule start runs again"),
    ):
        action = add_command(actions, name, text, ENVIRONMENT)
        if run is _pause_or_resume:
            action.add_argument("name", help="of the schedule")
        action.add_argument(
            "--file", type=Path, default=Path("infra/schedules.yaml"), help="declared schedules (default: %(default)s)"
        )
        action.set_defaults(run=run)


def add_commands(commands: Any) -> None:
    """Add schedule, submit, runs and logs to the subparsers of `bebygan`."""
    _add_schedule(commands)
    submit = add_command(commands, "submit", "start a training on a cluster now", ENVIRONMENT)
    submit.add_argument("--source", required=True, help="s3://bucket/prefix, or a folder that tasks see")
    submit.add_argument("--remote", default="", help="DVC remote for data versions (default: none)")
    submit.add_argument("--ledger", default="", help="record of all moves of the champion, s3:// (default: none)")
    submit.add_argument(
        "--checkpoints", default="/volume/checkpoints", help="folder that survives a task (default: %(default)s)"
    )
    submit.add_argument(
        "--cluster", type=Path, default=Path("infra/cluster.yaml"), help="what tasks are given (default: %(default)s)"
    )
    submit.add_argument("--experiment", default="bebygan", help="Kubeflow's experiment (default: %(default)s)")
    submit.add_argument("--force", action="store_true", help="train even when nothing changed")
    submit.add_argument("--reason", default="somebody submitted it", help="why; the run logs it")
    submit.add_argument("--wait", action="store_true", help="wait for its end, and fail when it fails")
    add_params_arguments(submit)
    submit.set_defaults(run=_submit)
    runs = add_command(commands, "runs", "list the newest runs on a cluster", ENVIRONMENT)
    runs.add_argument("--number", type=_count, default=20, help="how many (default: %(default)s)")
    runs.set_defaults(run=_runs)
    logs = add_command(commands, "logs", "show what the tasks of a run on a cluster printed", ENVIRONMENT)
    logs.add_argument("run_id", metavar="RUN", help="its id")
    logs.add_argument("--task", help="of this task alone")
    logs.add_argument("--follow", action="store_true", help="go on with what is printed until the run ends")
    logs.set_defaults(run=_logs)
