"""`bebygan run`: run the whole pipeline on this machine."""

import argparse
import logging
import os
import tempfile
from importlib import import_module
from pathlib import Path

from bebygan.errors import DataError
from bebygan.files import storage_errors
from components.artifacts import check_sealed, read_means, read_registration, read_summary, read_verdict
from components.cli import end_quickly
from components.comparison import gain_lines, text_table
from components.config import flatten, plain
from components.detect.step import Decision, decide
from components.identify import job_here
from components.job import Job
from components.preflight.step import Places, checks, preflight
from components.progress import printable, say
from components.stores import absolute
from components.stores.data_version import check_complete
from components.stores.dataset import summary_lines
from components.tracking.address import VARIABLE, tracking_uri
from components.tracking.killed import end_killed_runs
from components.tracking.ledger import last
from components.tracking.registry import champion, check_ledger
from components.tracking.runs import ended_runs, fetch_artifacts
from pipelines.ui import where_shown

_log = logging.getLogger(__name__)
_OF_ANOTHER_RUN = ("BEBYGAN_PARENT_RUN", "KFP_RUN_ID", "MLFLOW_ACTIVE_MODEL_ID", "MLFLOW_RUN_ID")
"""Variables that a shell may still have; the steps would write into that run."""


def _print_data(workspace: Path, data_version: str | None = None) -> None:
    """Print what the data of the last report is, unless another data version is asked for."""
    lists, checks = workspace / "report" / "data.json", workspace / "data-docs" / "index.html"
    if lists.exists():
        summary = read_summary(lists.parent)
        if data_version in (None, summary.data_version):
            first, *others = summary_lines(summary, lists, checks)
            print(f"data:     {first}", *(f"{'':10}{line}" for line in others), sep="\n")


def _champion_line(model: str, version: str | None) -> str:
    return f"champion: {f'{model} version {version}' if version else 'none yet'}"


def _places(options: argparse.Namespace) -> Places:
    """Return where the run reads and writes; create the workspace.

    Raises:
        StorageError: the workspace cannot be created or written.
    """
    workspace = options.workspace
    with storage_errors(workspace):
        workspace.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=workspace).close()
    return Places(
        source=options.source,
        remote=str(workspace / "dvc-remote") if options.remote is None else options.remote,
        ledger=str(workspace / "ledger") if options.ledger is None else options.ledger,
        checkpoints=str(workspace / "checkpoints"),
        workspace=str(workspace),
    )


def _report(job: Job, workspace: Path) -> str:
    """Return the page of the report in the workspace; if it is damaged or missing, restore it from MLflow."""
    page = workspace / "report" / "report.html"
    if page.is_file():
        try:
            check_sealed(page.parent, "evaluate")
        except DataError as error:
            _log.warning("warning: %s, or restored from MLflow", error)
        else:
            return str(page)
    known = ({"fingerprint": job.fingerprint}, {"recipe": job.recipe}, {"fingerprint": job.recipe})
    for finished in (run for same in known for run in ended_runs(same, "FINISHED")):
        with tempfile.TemporaryDirectory() as scratch:
            if found := fetch_artifacts(finished, "evaluate", "evaluation", Path(scratch)):
                # KFP, which this module imports, takes seconds to import.
                local = import_module("pipelines.local.run")
                return f"{local.publish(local.Outcome(found, found), workspace)} (restored from MLflow)"
    return "missing or damaged, and MLflow has no copy: --force makes one"


def _tell_if_moved(model: str, version: str | None, ledger: str) -> None:
    """Warn if the champion is not the one of the newest entry of the ledger."""
    newest = last(ledger, model) if ledger else None
    if newest and newest.version != version:
        holds, recorded = (f"version {number}" if number else "no version" for number in (version, newest.version))
        _log.warning(
            "warning: %s holds the alias champion of %s, but the newest entry of the ledger %s gives it to %s: unless "
            "somebody moved it on purpose, set it again by `bebygan promote`", holds, model, ledger, recorded,
        )  # fmt: skip


def _check_kept(model: str, data_version: str, places: Places) -> None:
    """Check that ledger and DVC remote still hold what the finished run left there."""
    if places.ledger:
        check_ledger(places.ledger, model)
    if places.remote and data_version.endswith(".dir"):
        check_complete(data_version, places.remote)


def _print_nothing_to_do(job: Job, decision: Decision, places: Places) -> None:
    model, workspace = job.params.evaluate.model_name, Path(places.workspace)
    _check_kept(model, decision.data_version, places)
    reigning = champion(model)
    _tell_if_moved(model, reigning.version if reigning else None, places.ledger)
    print(f"nothing to do: {printable(decision.reason)}; --force runs all steps again")
    # It may restore the report, which has the data.
    report = _report(job, workspace)
    _print_data(workspace, decision.data_version)
    print(_champion_line(model, reigning.version if reigning else None))
    print(f"report:   {report}")
    print(f"runs:     {where_shown(workspace, model)}")


def _print_plan(job: Job, decision: Decision, places: Places) -> None:
    print(f"{'would train' if decision.action == 'train' else 'nothing to do'}: {printable(decision.reason)}")
    for name in ("source", "workspace", "remote", "ledger"):
        print(f"{f'{name}:':<11}{absolute(getattr(places, name)) or 'none'}")
    print(f"runs:      {where_shown(Path(places.workspace), job.params.evaluate.model_name)}")
    if job.start:
        print(f"start:     {job.start.partition('#')[0]}")
    print("parameters:")
    for name, value in flatten(plain(job.params)):
        print(f"  {name}: {printable(str(value))}")


def run(options: argparse.Namespace) -> None:
    """Run the pipeline if anything is new, and print the result; with --dry-run, only print what would be done."""
    for name in _OF_ANOTHER_RUN:
        os.environ.pop(name, None)
    # In the environment for the tasks: the default database is in this workspace.
    os.environ[VARIABLE] = tracking_uri(options.workspace)
    places = _places(options)
    containers = import_module("pipelines.local.containers") if options.containers else None
    job = job_here(options.params, options.source, containers.code_of_images() if containers else None)
    decision = decide(job, force=options.force)
    if not options.dry_run:
        end_killed_runs()
    if options.dry_run:
        _print_plan(job, decision, places)
    elif decision.action == "skip":
        _print_nothing_to_do(job, decision, places)
    else:
        say(f"training: {decision.reason}")
    if decision.action == "skip":
        return
    needed = checks(places, job.params_of_steps, gpus=0, look="in images" if containers else "present")
    preflight(needed, report=say if options.dry_run else _log.debug)
    if options.dry_run:
        print("preflight: passed")
        return
    # KFP takes seconds to import.
    local = import_module("pipelines.local.run")
    outcome = local.run(
        job,
        options.workspace,
        places.remote,
        places.ledger,
        reason=decision.reason,
        force=options.force,
        containers=containers,
        network=options.network,
    )
    report = local.publish(outcome, options.workspace)
    registration = read_registration(outcome.registration)
    verdict = read_verdict(outcome.report)
    print(text_table(read_means(outcome.report)))
    print("", *gain_lines(verdict.gains, verdict.confidence), "", sep="\n")
    print(verdict.summary)
    print(f"verdict:  {registration.verdict}")
    for reason in verdict.reasons:
        if reason.startswith("failed: "):
            print(f"failed:   {reason.removeprefix('failed: ')}")
    print(_champion_line(job.params.evaluate.model_name, registration.champion))
    _print_data(options.workspace)
    print(f"report:   {report}")
    print(f"runs:     {where_shown(options.workspace, job.params.evaluate.model_name)}")
    end_quickly()
