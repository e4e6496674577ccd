"""The command line that all steps share: parameters, one-line errors, exit codes."""

import argparse
import gc
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from bebygan.errors import BebyganError, Preempted
from components.checkout import PARAMS_VARIABLE, in_checkout
from components.config import PARAMS_FILE, Params, load_params
from components.environment import make_paths_absolute
from components.outputs import record_digest
from components.progress import printable, say

FAILURE_FILE = "BEBYGAN_FAILURE_FILE"
"""Environment variable: file with the step of a running task, or the message and exit code of a failed one.

KFP's local runner reports neither. A task removes the file unless it raises a `BebyganError` or is killed.
"""
RUNNER = "BEBYGAN_RUNNER"
"""Environment variable: process that runs the pipeline on this machine. Its tasks stop when it was killed."""
EXIT_CODES = """exit codes:
  0 done    1 a bug (traceback)    2 parameters or usage    3 photographs, manifest or patches
  4 bucket, tracker or registry    5 network weights    6 disk full or read-only    75 stopped on request: run again
"""


def step_parser(step: str, description: str) -> argparse.ArgumentParser:
    """Return a parser for `python -m components.<step>` with --params and --set."""
    parser = argparse.ArgumentParser(prog=f"python -m components.{step}", **_help(description, EXIT_CODES))
    add_params_arguments(parser)
    return parser


def add_command(commands: Any, name: str, text: str, epilog: str = EXIT_CODES) -> argparse.ArgumentParser:
    """Add a command to the subparsers of argparse; its help and the list of commands show `text`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, **_help(f"{text[0].upper()}{text[1:]}.", epilog)
    )
    return parser


def _help(description: str, epilog: str) -> dict[str, Any]:
    raw = argparse.RawDescriptionHelpFormatter
    return {"description": description, "epilog": epilog, "formatter_class": raw}


def with_home(arguments: Sequence[str]) -> list[str]:
    """Replace ~ in --option=~/x and name=~/x, which shells pass on unchanged, by the home folder."""
    pattern = re.compile(r"((?:--[\w-]+=)?(?:[\w.]+=)?)(~[\w.-]*/.*)", re.DOTALL)
    found = [(text, pattern.fullmatch(text)) for text in arguments]
    return [match[1] + os.path.expanduser(match[2]) if match else text for text, match in found]


def add_params_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --params and --set."""
    parser.add_argument("--params", type=Path, default=PARAMS_FILE, help="parameters (default: %(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change one, e.g. train.seed=2"
    )


def read_params(options: argparse.Namespace) -> Params:
    """Read the parameters that --params and --set give, and remember the file; raises as `load_params`."""
    os.environ[PARAMS_VARIABLE] = str(in_checkout(options.params).resolve())
    return load_params(options.params, options.set)


def add_training_arguments(parser: argparse.ArgumentParser, output: str) -> None:
    """Add --patches, --output and --checkpoints; `output` is the name of the output."""
    parser.add_argument("--patches", type=Path, required=True, help="folder that the patches step wrote")
    parser.add_argument("--output", type=Path, required=True, help=f"folder for the {output}")
    parser.add_argument(
        "--checkpoints", default="workspace/checkpoints", help="folder or s3:// prefix that survives (%(default)s)"
    )


def _make_printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    return True


def _prepare() -> None:
    """Make paths in the environment absolute, send warnings to stderr, and escape characters that stdout lacks."""
    make_paths_absolute()
    # A message must not fail a step.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_make_printable)
    for ours in ("bebygan", "components", "pipelines"):
        logging.getLogger(ours).setLevel(logging.INFO)


def end_quickly() -> None:
    """Skip the garbage collection at the end of the process: with torch and mlflow it takes a second."""
    gc.freeze()


@contextmanager
def _failure_file(step: str) -> Iterator[None]:
    """Write the file that FAILURE_FILE names, if any, and treat Ctrl-C as a stop request."""
    if not (path := os.environ.get(FAILURE_FILE)):
        yield
        return
    file = Path(path)
    file.write_text(json.dumps({"step": step}))
    previous = signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))
    try:
        yield
    except BebyganError as error:
        file.write_text(json.dumps({"step": step, "message": f"{step}: {error}", "exit_code": error.exit_code}))
        raise
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    finally:
        signal.signal(signal.SIGINT, previous)
    file.unlink(missing_ok=True)


def _stop_without_runner() -> None:
    """Ask this process to stop when the run that started it was killed: a shell is between them and stays."""
    if (runner := os.environ.get(RUNNER)) is None:
        return

    def watch() -> None:
        with suppress(ProcessLookupError):
            while True:
                os.kill(int(runner), 0)
                time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="runner", daemon=True).start()


@contextmanager
def task(step: str, *cached: str) -> Iterator[None]:
    """Report start and duration of a KFP task, and exit with one line and its exit code on a `BebyganError`.

    Args:
        step: name of the step.
        cached: paths of the outputs that later runs may take from KFP's local cache.
    """
    _prepare()
    _stop_without_runner()
    started = time.monotonic()
    say(f"{step} ...")
    try:
        with _failure_file(step):
            yield
            if FAILURE_FILE in os.environ:
                for output in cached:
                    record_digest(Path(output))
    except BebyganError as error:
        print(f"error: {printable(f'{step}: {error}')}", file=sys.stderr)
        sys.exit(error.exit_code)
    say(f"{step} done in {time.monotonic() - started:.0f} s")
    end_quickly()


@contextmanager
def stoppable(message: str) -> Iterator[None]:
    """Raise `Preempted(message)` in the body on SIGTERM; do nothing outside the main thread."""

    def stop(*_: object) -> None:
        raise Preempted(message)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def report_errors(run: Callable[[], None]) -> int:
    """Call `run` and return the exit code; print a `BebyganError` in one line on stderr."""
    _prepare()
    try:
        run()
        sys.stdout.flush()
    except BebyganError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Python would write the rest when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return 0


def run_step(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace, Params], None],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse the command line, read the parameters, run a step, and return its exit code."""
    options = parser.parse_args(with_home(sys.argv[1:] if arguments is None else arguments))
    return report_errors(lambda: run(options, read_params(options)))
