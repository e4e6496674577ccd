"""`bebygan run`: run the whole pipeline on this machine."""

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile

from bebygan.files import storage_errors
from components.artifacts import read_means, read_registration, read_verdict
from components.cli import end_quickly
from components.detect.step import decide
from components.evaluate.table import text_table
from components.job import job_here
from components.progress import say
from components.tracking.address import VARIABLE, tracking_uri, without_password
from components.tracking.registry import champion
from pipelines.local import run as local


def _where_runs_are_shown(uri: str) -> str:
    """Return the address of a server, or the command that serves the embedded store."""
    if uri.startswith("http"):
        return without_password(uri)
    return f"{Path(sys.executable).with_name('mlflow')} ui --backend-store-uri {without_password(uri)}"


def _champion_line(model: str, version: str | None) -> str:
    return f"champion: {f'{model} version {version}' if version else 'none yet'}"


def run(options: argparse.Namespace) -> None:
    """Run the pipeline if anything is new, and print the result."""
    # In the environment for the tasks: the default database is in this workspace.
    os.environ[VARIABLE] = tracking_uri(options.workspace)
    with storage_errors(options.workspace):
        options.workspace.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=options.workspace).close()
    remote = str(options.workspace / "dvc-remote") if options.remote is None else options.remote
    ledger = str(options.workspace / "ledger") if options.ledger is None else options.ledger
    containers = import_module("pipelines.local.containers") if options.containers else None
    job = job_here(options.params, options.source, containers.code_of_images() if containers else None)
    model = options.params.evaluate.model_name
    decision = decide(job, force=options.force)
    if decision.action == "skip":
        reigning = champion(model)
        print(f"nothing to do: {decision.reason}")
        print(_champion_line(model, reigning.version if reigning else None))
        return
    say(f"training: {decision.reason}")
    outcome = local.run(
        job, options.workspace, remote, ledger, reason=decision.reason, containers=containers, network=options.network
    )
    report = local.publish(outcome, options.workspace)
    registration = read_registration(outcome.registration)
    print(text_table(read_means(outcome.report)))
    print()
    print(f"verdict:  {registration.verdict}")
    for reason in read_verdict(outcome.report).reasons:
        if reason.startswith("failed: "):
            print(f"failed:   {reason.removeprefix('failed: ')}")
    print(_champion_line(model, registration.champion))
    print(f"report:   {report}")
    print(f"runs:     {_where_runs_are_shown(tracking_uri())}")
    end_quickly()
