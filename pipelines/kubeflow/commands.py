"""The commands compile, submit and schedule of `bebygan`."""

import argparse
import time

from tabulate import tabulate

from bebygan.errors import ConfigError
from bebygan.files import whole_file
from components.job import inputs_of
from components.progress import say
from pipelines.kubeflow.client import connect
from pipelines.kubeflow.compilation import compiled_retrain, retrain_manifests, retrain_yaml
from pipelines.kubeflow.requests import RunRequest
from pipelines.kubeflow.resources import TASKS, load_cluster
from pipelines.kubeflow.runs import age, wait
from pipelines.kubeflow.schedule_file import PLACES, ScheduleFile, declared_schedules, load_schedules, place, storable
from pipelines.kubeflow.schedules import Action, apply, existing, forecast, pause, resume


def compile_pipeline(options: argparse.Namespace) -> None:
    """Write the pipeline for Kubeflow."""
    cluster = load_cluster(options.cluster)
    if not cluster.images.pinned:
        say(f"warning: {options.cluster} names an image without digest: caches and runs do not notice if it changes")
    content = (
        retrain_manifests(cluster, options.params, options.namespace)
        if options.manifests
        else retrain_yaml(cluster, options.params)
    )
    with whole_file(options.output) as temporary:
        temporary.write_bytes(content)
    print(options.output)


def submit(options: argparse.Namespace) -> None:
    """Start a run of the pipeline; upload this version if it does not exist on the server."""
    places = {name: getattr(options, name) for name in PLACES}
    for name in (*PLACES, "reason", "experiment"):
        check = place if name in PLACES else storable
        try:
            check(getattr(options, name))
        except ValueError as error:
            raise ConfigError(f"--{name}: {error}") from error
    if not options.source:
        raise ConfigError("--source is empty: name a folder or s3://bucket/prefix")
    pipeline = compiled_retrain(load_cluster(options.cluster))
    kubeflow = connect()
    force = "always" if options.force else "auto"
    request = RunRequest(
        name=f"{pipeline.name} {time.strftime('%Y-%m-%d %H:%M', time.gmtime())}",
        pipeline=pipeline,
        parameters={**places, **inputs_of(options.params), "force": force, "reason": options.reason},
        experiment=options.experiment,
    )
    run = kubeflow.create_run(request, options.reason)
    print(run, flush=True)
    say(kubeflow.page(run))
    if options.wait:
        wait(kubeflow, run, TASKS, say)


def schedule_plan(options: argparse.Namespace) -> None:
    """Print what `schedule apply` would change."""
    file = load_schedules(options.file)
    declared = declared_schedules(file)
    actions = forecast(connect(), file.owner, declared)
    for action in actions:
        print(action)
    _print_unchanged(file, actions)


def schedule_apply(options: argparse.Namespace) -> None:
    """Apply the schedules of the file to the server."""
    file = load_schedules(options.file)
    declared = declared_schedules(file)
    actions = list[Action]()

    def report(action: Action) -> None:
        actions.append(action)
        print(action, flush=True)

    waiting = apply(connect(), file.owner, declared, report)
    _print_unchanged(file, actions)
    if waiting:
        print(f"old versions still have active runs, a later apply removes them: {', '.join(waiting)}")


def _print_unchanged(file: ScheduleFile, actions: list[Action]) -> None:
    unchanged = {schedule.name for schedule in file.schedules} - {action.name for action in actions}
    print(f"unchanged: {len(unchanged)} of {len(file.schedules)}")


def schedule_list(options: argparse.Namespace) -> None:
    """Print the schedules of the file's owner on the server."""
    owner = load_schedules(options.file).owner
    rows = [
        (each.name, each.run.trigger, each.state, age(each.run.created_at), each.run.id)
        for each in existing(connect().recurring_runs(), owner)
    ]
    headers = ("NAME", "WHEN", "STATE", "AGE", "ID")
    print(tabulate(rows, headers, tablefmt="plain", disable_numparse=True) if rows else f"{owner} has no schedules")


def schedule_pause(options: argparse.Namespace) -> None:
    """Pause a schedule by hand."""
    pause(connect(), load_schedules(options.file).owner, options.name)
    print(f"paused {options.name}")


def schedule_resume(options: argparse.Namespace) -> None:
    """Resume a schedule that was paused by hand."""
    resume(connect(), load_schedules(options.file).owner, options.name)
    print(f"resumed {options.name}")
