"""`bebygan`: run the retraining pipeline."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from bebygan.files import storage_errors
from components.cli import EXIT_CODES, add_command, add_params_arguments, end_quickly, report_errors
from components.config import load_params
from components.detect.step import decide
from components.job import job_here
from components.preflight.__main__ import add_arguments as add_preflight_arguments
from components.preflight.__main__ import run as run_preflight
from components.progress import say
from components.tracking.registry import champion
from components.tracking.runs import WORKSPACE, tracking_uri, without_password
from pipelines.kubeflow import commands as cluster_commands
from pipelines.kubeflow.manifests import pinned_manifests


def _where_runs_are_shown(uri: str) -> str:
    """Return the address of a server, or the command that shows the embedded store."""
    if uri.startswith("http"):
        return without_password(uri)
    return f"{Path(sys.executable).with_name('mlflow')} ui --backend-store-uri {uri}"


def _champion_line(model: str, version: str | None) -> str:
    return f"champion: {f'{model} version {version}' if version else 'none yet'}"


def _compile(options: argparse.Namespace) -> None:
    # Not at the top: Kubeflow takes seconds that --help and a misspelt parameter need not wait for.
    params = load_params(options.params, options.set)
    from pipelines.kubeflow.compilation import retrain_manifests, retrain_yaml, write_pipeline  # noqa: PLC0415
    from pipelines.kubeflow.resources import load_cluster  # noqa: PLC0415

    cluster = load_cluster(options.cluster)
    if not cluster.images.pinned:
        say(f"warning: {options.cluster} names an image without digest: caches and runs do not see when it changes")
    content = (
        retrain_manifests(cluster, params, options.namespace) if options.manifests else retrain_yaml(cluster, params)
    )
    write_pipeline(options.output, content)
    print(options.output)


def _preflight(options: argparse.Namespace) -> None:
    run_preflight(options, load_params(options.params, options.set))


def _manifests(options: argparse.Namespace) -> None:
    print(pinned_manifests(options.overlay), end="")


def _run(options: argparse.Namespace) -> None:
    # Not at the top: they take seconds that --help and a misspelt parameter need not wait for.
    from components.evaluate.table import text_table  # noqa: PLC0415
    from pipelines.local import run as local  # noqa: PLC0415

    params = load_params(options.params, options.set)
    # The embedded store belongs to the workspace; a server that is named stays.
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{options.workspace.resolve() / 'mlflow.db'}")
    with storage_errors(options.workspace):
        options.workspace.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=options.workspace).close()
    remote = str(options.workspace / "dvc-remote") if options.remote is None else options.remote
    ledger = str(options.workspace / "ledger") if options.ledger is None else options.ledger
    job = job_here(params, options.source)
    if options.containers:
        from pipelines.local.containers import job_in_containers  # noqa: PLC0415

        job = job_in_containers(job)
    model = params.evaluate.model_name
    decision = decide(job, force=options.force)
    if decision.action == "skip":
        reigning = champion(model)
        print(f"nothing to do: {decision.reason}")
        print(_champion_line(model, reigning.version if reigning else None))
        return
    say(f"training: {decision.reason}")
    outcome = local.run(
        job,
        options.workspace,
        remote,
        ledger,
        reason=decision.reason,
        containers=options.containers,
        network=options.network,
    )
    report = local.publish(outcome, options.workspace)
    registration = json.loads((outcome.registration / "registration.json").read_text())
    print(text_table(json.loads((outcome.report / "metrics.json").read_text())))
    print()
    print(f"verdict:  {registration['verdict']}")
    for reason in json.loads((outcome.report / "verdict.json").read_text())["reasons"]:
        if reason.startswith("failed: "):
            print(f"failed:   {reason.removeprefix('failed: ')}")
    print(_champion_line(model, registration["champion"]))
    print(f"report:   {report}")
    print(f"runs:     {_where_runs_are_shown(tracking_uri())}")
    end_quickly()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bebygan",
        description="Retrain Beby-GAN image super-resolution.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = add_command(commands, "run", "run the whole pipeline on this machine")
    run.add_argument("--source", default="data/sample", help="folder or s3://bucket/prefix (default: %(default)s)")
    run.add_argument("--workspace", type=Path, default=WORKSPACE, help="folder for outputs (default: %(default)s)")
    run.add_argument(
        "--remote", help="DVC remote for data versions, folder or s3://; '' for none (default: WORKSPACE/dvc-remote)"
    )
    run.add_argument(
        "--ledger",
        help="record of all moves of the champion, folder or s3://; '' for none (default: WORKSPACE/ledger)",
    )
    run.add_argument(
        "--containers", action="store_true", help="run each step in a container, with the images of `make images`"
    )
    run.add_argument("--network", help="of those containers (default: none, or host where a server or bucket is named)")
    run.add_argument("--force", action="store_true", help="run even when nothing changed")
    add_params_arguments(run)
    run.set_defaults(run=_run)
    compile_ = add_command(commands, "compile", "write the pipeline for Kubeflow")
    compile_.add_argument("output", type=Path, help="YAML file to write")
    compile_.add_argument(
        "--cluster", type=Path, default=Path("infra/cluster.yaml"), help="what tasks are given (default: %(default)s)"
    )
    compile_.add_argument(
        "--manifests", action="store_true", help="write Kubernetes objects, Pipeline and PipelineVersion, instead"
    )
    compile_.add_argument("--namespace", default="bebygan", help="of those objects (default: %(default)s)")
    add_params_arguments(compile_)
    compile_.set_defaults(run=_compile)
    preflight = add_command(commands, "preflight", "try what a run will need, and name all that is missing")
    add_preflight_arguments(preflight)
    add_params_arguments(preflight)
    preflight.set_defaults(run=_preflight)
    manifests = add_command(commands, "manifests", "build a cluster's manifests; every image needs a digest")
    manifests.add_argument("overlay", type=Path, help="e.g. infra/kubernetes/overlays/production")
    manifests.set_defaults(run=_manifests)
    cluster_commands.add_commands(commands)
    return parser


@contextmanager
def _without_validator() -> Iterator[None]:
    """Let Kubernetes' client, which comes with Kubeflow's, not find a validator that it would load and we never ask.

    Where it is installed, as it is for this project's tests, loading it takes more time than compiling a pipeline.
    """
    name = "kubernetes_validate"
    hidden = name not in sys.modules
    if hidden:
        # So an import of it fails as if it were not installed.
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules[name]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    options = _parser().parse_args(arguments)
    with _without_validator():
        return report_errors(lambda: options.run(options))


if __name__ == "__main__":
    sys.exit(main())
