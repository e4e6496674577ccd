"""`bebygan`: run the retraining pipeline.

The parser names the function that runs each command as module:function. A command's module is imported only when the
command runs: some imports take seconds, and --help and usage errors must be quick.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from components.checkout import in_checkout
from components.cli import EXIT_CODES, add_command, add_params_arguments, read_params, report_errors, with_home
from components.preflight.__main__ import add_arguments as add_preflight_arguments

ENVIRONMENT = """environment:
  KFP_HOST         address of Kubeflow Pipelines (else KF_PIPELINES_ENDPOINT, else its address inside a cluster)
  KFP_TOKEN        its token, or KF_PIPELINES_SA_TOKEN_PATH, a file that holds the token
  KFP_NAMESPACE    your profile, if Kubeflow has several users
  SSL_CERT_FILE    certificate authority of the server, if it is your own
"""
_CLUSTER_HELP = "images and resources of the tasks (default: %(default)s)"
_MODELS = {
    "models": ("pipelines.models:models", "list the versions of the model, newest first"),
    "promote": ("pipelines.models:promote", "make a version champion"),
    "rollback": ("pipelines.models:rollback", "make the previous champion champion again"),
    "why": ("pipelines.lineage:why", "show how a version was judged, and when, by whom and why it became champion"),
    "lineage": ("pipelines.lineage:lineage", "show the run, code, parameters and photographs that made a version"),
    "verify": ("pipelines.verification:verify", "check that a version is what registry, ledger and DVC remote record"),
    "ui": ("pipelines.ui:ui", "open MLflow's pages on the runs and the model, until Ctrl-C"),
}
_PRECISIONS = ("auto", "fp32", "bf16")
_PRECISION_HELP = (
    "arithmetic; auto is bf16 where the processor computes it, and fp32 for 16-bit photographs (default: %(default)s)"
)
_SCHEDULE = {
    "plan": "print what apply would change",
    "apply": "make the schedules on the cluster those of the file",
    "list": "list the schedules on the cluster",
    "pause": "stop a schedule from starting runs until it is resumed, whatever is applied",
    "resume": "make a paused schedule start runs again",
}


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return share


def _positive(text: str) -> float:
    if not re.fullmatch(r"\d+\.?\d*|\.\d+", text) or not float(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return float(text)


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT])(i?)B?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500MB or 2GB")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** (1 + "kMGT".index(found[2])))


def _add_workspace(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--workspace", type=Path, default=Path("workspace"), help=f"{what} (default: %(default)s)")


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source", default=str(in_checkout("data/sample")), help="folder or s3://bucket/prefix (default: %(default)s)"
    )


def _add_fidelity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fidelity",
        type=_share,
        metavar="F",
        help="share of the weights that the training started from, 0 to 1: more keeps closer to the photograph, less "
        "gives more detail (default: that of the version, chosen on validation photographs)",
    )


def _add(commands: Any, name: str, function: str, text: str, epilog: str = EXIT_CODES) -> argparse.ArgumentParser:
    """Add a command; `function`, written module:function, runs it."""
    parser = add_command(commands, name, text, epilog)
    parser.set_defaults(function=function, parser=parser)
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bebygan",
        description="Retrain Beby-GAN image super-resolution.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bebygan {version('bebygan')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parser.set_defaults(commands=commands.choices)
    run = _add(commands, "run", "pipelines.local.command:run", "run the whole pipeline on this machine")
    _add_source(run)
    _add_workspace(run, "folder for outputs")
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
    run.add_argument("--network", help="their network (default: none, or host if a server or bucket is named)")
    run.add_argument("--force", action="store_true", help="run even when nothing changed, and use no cached outputs")
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="print whether and why it would train, with which parameters, and whether all it needs is there (exit "
        "code as a run's; 0 also if there is nothing to do), but train nothing",
    )
    add_params_arguments(run)
    _add_upscale_command(commands)
    _add_calibrate_command(commands)
    _add_ablate_command(commands)
    _add_serve_command(commands)
    _add_export_command(commands)
    _add_model_commands(commands)
    function = "pipelines.kubeflow.commands:compile_pipeline"
    compile_ = _add(commands, "compile", function, "write the pipeline for Kubeflow")
    compile_.add_argument("output", type=Path, help="YAML file to write")
    compile_.add_argument("--cluster", type=Path, default=in_checkout("infra/cluster.yaml"), help=_CLUSTER_HELP)
    compile_.add_argument(
        "--manifests", action="store_true", help="write Kubernetes objects, Pipeline and PipelineVersion, instead"
    )
    compile_.add_argument("--namespace", default="bebygan", help="namespace of the objects (default: %(default)s)")
    add_params_arguments(compile_)
    function = "components.preflight.__main__:check"
    preflight = _add(commands, "preflight", function, "check what a run will need, and report all that is missing")
    add_preflight_arguments(preflight)
    add_params_arguments(preflight)
    function = "pipelines.kubeflow.manifests:show"
    manifests = _add(commands, "manifests", function, "build a cluster's manifests; every image needs a digest")
    manifests.add_argument("overlay", type=Path, help="e.g. infra/kubernetes/overlays/production")
    _add_cluster_commands(commands)
    return parser


def benchmark(text: str) -> tuple[str, Path]:
    """Parse NAME=FOLDER, a benchmark."""
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER, such as Set14=photographs/Set14")
    return name, Path(folder)


def _add_calibrate_command(commands: Any) -> None:
    text = "measure by how much trainings with other seeds differ"
    calibrate = _add(commands, "calibrate", "pipelines.calibration:calibrate", text)
    _add_source(calibrate)
    _add_workspace(calibrate, "whose subfolder calibration holds the trainings")
    calibrate.add_argument("--seeds", type=_count, default=8, help="number of trainings (default: %(default)s)")
    add_params_arguments(calibrate)


def _add_ablate_command(commands: Any) -> None:
    text = "train the same network by several objectives and compare them"
    ablate = _add(commands, "ablate", "pipelines.ablation.command:ablate", text)
    ablate.add_argument("ablation", type=Path, help="description of the cells, such as params/ablation.yaml")
    ablate.add_argument(
        "--benchmark", type=benchmark, action="append", required=True, metavar="NAME=FOLDER",
        help="photographs to compare on, which no cell is trained on; may be given several times",
    )  # fmt: skip
    ablate.add_argument(
        "--show", type=benchmark, action="append", default=[], metavar="NAME=FOLDER",
        help="photographs for the pictures, where those of the benchmarks may not be published; may be repeated",
    )  # fmt: skip
    ablate.add_argument("--patches", type=Path, help="folder that the patches step wrote (default: WORKSPACE/patches)")
    _add_workspace(ablate, "of the runs and trainings")
    ablate.add_argument(
        "--output", type=Path, default=Path("docs/ablation.md"), help="page to write (default: %(default)s)"
    )
    ablate.add_argument("--dry-run", action="store_true", help="print how many hours it takes, but train nothing")
    add_params_arguments(ablate)


def _add_upscale_command(commands: Any) -> None:
    upscale = _add(commands, "upscale", "pipelines.upscale:upscale", "make photographs four times as large")
    upscale.add_argument("inputs", type=Path, nargs="+", metavar="IN", help="files, folders and patterns")
    upscale.add_argument(
        "--output", "-o", type=Path, required=True, metavar="OUT", help="folder, or file for a single photograph"
    )
    upscale.add_argument(
        "--model",
        default="champion",
        help="alias or number of a version, models:/NAME/NUMBER, a file of weights, or the name of pretrained weights, "
        "such as bebygan-4x32 (default: %(default)s)",
    )
    _add_fidelity(upscale)
    _add_workspace(upscale, "of the runs that made it")
    upscale.add_argument(
        "--tile",
        type=_count,
        help="largest side of the parts that are computed at once, pixels (default: 448, or what --max-memory allows)",
    )
    upscale.add_argument(
        "--max-memory", type=_bytes, metavar="SIZE", help="memory that all processes together may take, such as 2GB"
    )
    upscale.add_argument("--precision", choices=_PRECISIONS, default="auto", help=_PRECISION_HELP)
    upscale.add_argument(
        "--processes",
        type=_count,
        default=1,
        metavar="N",
        help="photographs upscaled at a time, each with its share of threads and memory (default: %(default)s)",
    )
    upscale.add_argument("--overwrite", action="store_true", help="replace files that exist; otherwise they are kept")
    add_params_arguments(upscale)


def _add_serve_command(commands: Any) -> None:
    serve = _add(commands, "serve", "pipelines.serving.server:serve", "upscale images over HTTP, with a page to try it")
    serve.add_argument(
        "--model", default="champion", help="alias, which is followed, or number of a version (default: %(default)s)"
    )
    _add_workspace(serve, "of the runs that made it")
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for all networks (default: %(default)s)")
    serve.add_argument("--port", type=_count, default=8080, help="default: %(default)s")
    serve.add_argument("--poll", type=_positive, default=2.0, help="seconds between looks at the alias (default: 2)")
    serve.add_argument("--queue", type=_count, default=16, help="images that may wait (default: %(default)s)")
    serve.add_argument(
        "--max-bytes", type=_bytes, default=32_000_000, metavar="SIZE", help="of a request (default: 32MB)"
    )
    serve.add_argument(
        "--max-pixels", type=_positive, default=4.0, metavar="MEGAPIXELS", help="of an image (default: %(default)s)"
    )
    serve.add_argument("--precision", choices=_PRECISIONS, default="auto", help=_PRECISION_HELP)
    add_params_arguments(serve)


def _add_export_command(commands: Any) -> None:
    export = _add(commands, "export", "pipelines.export:export", "write a model as a file for other programs")
    export.add_argument("model", metavar="MODEL", help="as --model of `bebygan upscale`")
    export.add_argument(
        "--to",
        choices=("onnx", "ncnn", "safetensors"),
        required=True,
        help="onnx: opset 17, images of any size; ncnn: a graph, .param, and weights, .bin",
    )
    export.add_argument(
        "--naming",
        choices=("esrgan", "basicsr", "old-esrgan"),
        default="basicsr",
        help="names of the weights in safetensors (default: %(default)s)",
    )
    export.add_argument("--output", "-o", type=Path, required=True, metavar="FILE", help="to write")
    _add_fidelity(export)
    _add_workspace(export, "of the runs that made it")
    add_params_arguments(export)


def _add_model_commands(commands: Any) -> None:
    """Add the commands about versions in the model registry."""
    for name, (function, text) in _MODELS.items():
        command = _add(commands, name, function, text)
        if name not in ("models", "rollback", "ui"):
            command.add_argument("version", metavar="VERSION", help="number or alias of a version")
        if name in ("promote", "rollback"):
            command.add_argument("--reason", required=True, help="why; the ledger records it")
        elif name not in ("ui", "verify"):
            command.add_argument("--json", action="store_true", help="print JSON")
        if name in ("promote", "rollback", "why", "verify"):
            command.add_argument("--ledger", help="record of all moves of the champion (default: WORKSPACE/ledger)")
        if name in ("lineage", "verify"):
            command.add_argument("--remote", help="DVC remote of data versions (default: WORKSPACE/dvc-remote)")
        if name == "verify":
            command.add_argument(
                "--retrain", action="store_true", help="train it again on the CPU; compare the weights"
            )
        _add_workspace(command, "of the runs")
        add_params_arguments(command)


def _add_cluster_commands(commands: Any) -> None:
    """Add the commands that use the API of Kubeflow Pipelines."""
    schedule = add_command(commands, "schedule", "keep a cluster's schedules as a file declares them", ENVIRONMENT)
    actions = schedule.add_subparsers(dest="action", required=True, metavar="ACTION")
    schedule.set_defaults(commands=actions.choices)
    for name, text in _SCHEDULE.items():
        action = _add(actions, name, f"pipelines.kubeflow.commands:schedule_{name}", text, ENVIRONMENT)
        if name in ("pause", "resume"):
            action.add_argument("name", help="name of the schedule")
        action.add_argument(
            "--file",
            type=Path,
            default=in_checkout("infra/schedules.yaml"),
            help="declared schedules (default: %(default)s)",
        )
    function = "pipelines.kubeflow.commands:submit"
    submit = _add(commands, "submit", function, "start a run on a cluster now", ENVIRONMENT)
    submit.add_argument("--source", required=True, help="s3://bucket/prefix, or a folder in the tasks' containers")
    submit.add_argument("--remote", default="", help="DVC remote for data versions (default: none)")
    submit.add_argument("--ledger", default="", help="record of all moves of the champion, s3:// (default: none)")
    submit.add_argument(
        "--checkpoints", default="/volume/checkpoints", help="folder that survives a task (default: %(default)s)"
    )
    submit.add_argument("--cluster", type=Path, default=in_checkout("infra/cluster.yaml"), help=_CLUSTER_HELP)
    submit.add_argument("--experiment", default="bebygan", help="experiment in Kubeflow (default: %(default)s)")
    submit.add_argument("--force", action="store_true", help="train even when nothing changed")
    submit.add_argument("--reason", default="submitted by hand", help="why the run is started; the run logs it")
    submit.add_argument("--wait", action="store_true", help="wait until the run ends, and fail if it fails")
    add_params_arguments(submit)
    runs = _add(commands, "runs", "pipelines.kubeflow.runs:runs", "list the newest runs on a cluster", ENVIRONMENT)
    runs.add_argument("--number", type=_count, default=20, help="how many (default: %(default)s)")
    function = "pipelines.kubeflow.logs:show"
    logs = _add(commands, "logs", function, "show the logs of a run on a cluster", ENVIRONMENT)
    logs.add_argument("run_id", metavar="RUN", help="id of the run")
    logs.add_argument("--task", help="show this task only")
    logs.add_argument("--follow", action="store_true", help="print new lines until the run ends")


def _run(options: argparse.Namespace) -> None:
    if "params" in options:
        # Before the import of the command's module, so that a wrong parameter is reported at once.
        options.params = read_params(options)
    module, _, function = options.function.partition(":")
    getattr(import_module(module), function)(options)


def _hint(word: str, known: Iterable[str]) -> str:
    """Return the nearest known word as a question, or an empty text if no word is near."""
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def _suggest_command(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """End with a usage error if a command is misspelt. argparse reports a command that resembles no other."""
    for word in words:
        commands = parser.get_default("commands") or {}
        if word in commands:
            parser = commands[word]
        elif commands and not word.startswith("-"):
            if hint := _hint(word, commands):
                parser.error(f"there is no command {word}{hint}")
            return


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    parser = _parser()
    arguments = with_home(sys.argv[1:] if arguments is None else arguments)
    _suggest_command(parser, arguments)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = re.findall(r"--[\w-]+", options.parser.format_help())
        hint = _hint(unknown[0].partition("=")[0], known)
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return report_errors(lambda: _run(options))


if __name__ == "__main__":
    sys.exit(main())
