import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bebygan.errors import (
    BebyganError,
    ConfigError,
    DataError,
    Preempted,
    ServiceError,
    StorageError,
    WeightsError,
)
from components import progress
from components.cli import EXIT_CODES, FAILURE_FILE, report_errors, run_step, step_parser, stoppable, task
from components.config import Params, load_params

ROOT = Path(__file__).parents[2]
CODES = [
    (ConfigError, 2), (DataError, 3), (ServiceError, 4), (WeightsError, 5), (StorageError, 6), (Preempted, 75),
]  # fmt: skip


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Create the file of messages to the user; return a function that reads it."""
    path = tmp_path / "watched"
    path.touch()
    monkeypatch.setenv(progress.WATCHER, str(path))
    progress._opened.cache_clear()
    yield path.read_text
    progress._opened.cache_clear()


def fail(error: BaseException) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


def seen(*arguments: str) -> Params:
    """Return the parameters that a step gets from its command line."""
    found: list[Params] = []
    parser = step_parser("ingest", "Ingest.")
    arguments = ("--params", str(ROOT / "params.yaml"), *arguments)
    assert run_step(parser, lambda _, params: found.append(params), arguments) == 0
    return found[0]


@pytest.mark.parametrize("option", ["--set=warmup.weights=~/w", "warmup.weights=~/w"])
def test_the_home_folder_is_replaced_in_the_options_of_a_step(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    given = (option,) if option.startswith("--") else ("--set", option)
    assert seen(*given).warmup.weights == "/home/ada/w"
    assert seen("--set=warmup.weights=~").warmup.weights is None, "~ alone is null in YAML"


@pytest.mark.parametrize(("kind", "code"), CODES)
def test_a_bebygan_error_prints_one_line_and_returns_its_code(
    kind: type[BebyganError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_errors(fail(kind("photographs/a.png is gone: bring it back"))) == code
    assert capsys.readouterr() == ("", "error: photographs/a.png is gone: bring it back\n")


def test_help_explains_the_exit_code_of_every_error() -> None:
    assert {kind: kind.exit_code for kind in BebyganError.__subclasses__()} == dict(CODES)
    explained = {int(code) for code in re.findall(r"(?:^|  )(\d+) ", EXIT_CODES, re.MULTILINE)}
    assert explained == {0, 1, *(code for _, code in CODES)}
    assert EXIT_CODES in step_parser("train", "Train.").format_help()


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        report_errors(fail(ZeroDivisionError()))


def test_an_interrupt_ends_with_one_line_and_the_shell_s_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_errors(fail(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_success_returns_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_errors(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


def test_the_step_gets_the_parameters_of_the_file_with_the_changes() -> None:
    assert seen() == load_params(ROOT / "params.yaml")
    assert seen("--set", "train.seed=2", "--set", "train.seed=3").train.seed == 3
    assert seen("--params", str(ROOT / "params" / "paper.yaml")).train.iterations == 600_000


def test_the_example_in_the_help_is_a_parameter() -> None:
    [example] = re.findall(r"e\.g\.\s+(\S+=\S+)", step_parser("train", "Train.").format_help())
    assert seen("--set", example) != seen()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "ingest.test_shar=1"], "there is no parameter ingest.test_shar; did you mean ingest.test_share?"),
        (["--params", "nowhere.yaml"], "cannot read the parameters nowhere.yaml: No such file or directory"),
    ],
)
def test_invalid_parameters_never_reach_the_step(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    at = [] if "--params" in arguments else ["--params", str(ROOT / "params.yaml")]
    assert run_step(step_parser("ingest", "Ingest."), never, [*at, *arguments]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_wrong_usage_exits_with_the_code_of_invalid_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    parser = step_parser("ingest", "Ingest.")
    parser.add_argument("--source", required=True)
    with pytest.raises(SystemExit) as end:
        run_step(parser, lambda *_: None, ["--sauce", "photographs"])
    assert end.value.code == ConfigError.exit_code
    assert "--source" in capsys.readouterr().err


def test_options_of_the_step_reach_it() -> None:
    parser = step_parser("ingest", "Ingest.")
    parser.add_argument("--source", type=Path)
    found: list[argparse.Namespace] = []
    run_step(parser, lambda options, _: found.append(options), ["--params", str(ROOT / "params.yaml"), "--source", "x"])
    assert found[0].source == Path("x")


def test_our_loggers_print_info_and_libraries_only_warnings() -> None:
    code = (
        "import logging\n"
        "from components.cli import report_errors\n"
        "def run():\n"
        "    for name in ('bebygan.x', 'components.x', 'pipelines.x', 'botocore'):\n"
        "        logging.getLogger(name).info('%s says', name)\n"
        "    logging.getLogger('botocore').warning('botocore warns')\n"
        "report_errors(run)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr.splitlines() == ["bebygan.x says", "components.x says", "pipelines.x says", "botocore warns"]


def test_log_lines_escape_names_and_contain_no_password() -> None:
    code = (
        "import logging; from components.cli import report_errors\n"
        "log = lambda: logging.getLogger('library').warning('%s at %s', 'a\\nb\\x1b[2J', 'http://u:secret@host')\n"
        "report_errors(log)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "a\\nb\\x1b[2J at http://host\n"


def test_a_task_reports_its_start_and_its_end(watched: Callable[[], str], capsys: pytest.CaptureFixture[str]) -> None:
    with task("patches"):
        assert watched() == "patches ...\n"
    assert re.fullmatch(r"patches \.\.\.\npatches done in \d+ s\n", watched())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [kind for kind, _ in CODES])
def test_a_failed_task_writes_its_message_and_code(
    kind: type[BebyganError],
    watched: Callable[[], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(FAILURE_FILE, str(tmp_path / "failure.json"))
    with pytest.raises(SystemExit) as end, task("train"):
        raise kind("weights are gone")
    assert end.value.code == kind.exit_code
    assert capsys.readouterr().err == "error: train: weights are gone\n"
    assert json.loads((tmp_path / "failure.json").read_text()) == {
        "step": "train",
        "message": "train: weights are gone",
        "exit_code": kind.exit_code,
    }
    assert "done" not in watched()


def test_a_running_task_writes_its_step_and_a_finished_one_removes_the_file(
    watched: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAILURE_FILE, str(tmp_path / "failure.json"))
    with task("train"):
        assert json.loads((tmp_path / "failure.json").read_text()) == {"step": "train"}
    assert not (tmp_path / "failure.json").exists()
    assert watched().startswith("train ...\ntrain done")


@pytest.mark.usefixtures("watched")
def test_ctrl_c_is_a_stop_request_for_a_task_of_a_local_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAILURE_FILE, str(tmp_path / "failure.json"))
    with pytest.raises(SystemExit) as end, task("train"), stoppable("stopped on request"):
        signal.raise_signal(signal.SIGINT)
    assert end.value.code == 75
    assert json.loads((tmp_path / "failure.json").read_text())["message"] == "train: stopped on request"


def test_a_task_on_a_cluster_exits_with_the_code_and_writes_no_file(
    watched: Callable[[], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(FAILURE_FILE, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end, task("train"):
        raise Preempted("stopped")
    assert end.value.code == 75
    assert watched() == "train ...\n"
    assert {path.name for path in tmp_path.iterdir()} == {"watched"}


def test_a_bug_in_a_task_keeps_its_traceback_and_leaves_no_message(
    watched: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAILURE_FILE, str(tmp_path / "failure.json"))
    with pytest.raises(ZeroDivisionError), task("train"):
        raise ZeroDivisionError
    assert not (tmp_path / "failure.json").exists()
    assert watched() == "train ...\n"


FORGED = "photographs/a\nerror: all is lost\r\x1b[2J\u202e\udcff.png"
SHOWN = r"photographs/a\nerror: all is lost\r\x1b[2J\u202e\udcff.png"


def test_an_error_escapes_control_characters_and_line_breaks_of_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_errors(fail(DataError(f"{FORGED} cannot be read"))) == 3
    assert capsys.readouterr().err == f"error: {SHOWN} cannot be read\n"
    monkeypatch.setenv(FAILURE_FILE, str(tmp_path / "failure.json"))
    with pytest.raises(SystemExit), task("ingest"):
        raise DataError(FORGED)
    assert capsys.readouterr().err.splitlines()[-1] == f"error: ingest: {SHOWN}"
    assert json.loads((tmp_path / "failure.json").read_text())["message"] == f"ingest: {FORGED}"


CODE = """
from components.cli import report_errors, task
from components.progress import say
def run():
    print("champion: 1 \\u2192 2, gr\\xf6\\xdfer")
    say("\\u6b21")
with task("register"):
    run()
raise SystemExit(report_errors(run))
"""


@pytest.mark.parametrize("watched", [True, False])
def test_a_character_that_stdout_cannot_encode_does_not_fail_a_step(watched: bool, tmp_path: Path) -> None:
    variables = {**os.environ, "PYTHONIOENCODING": "latin-1", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    variables |= {progress.WATCHER: str(tmp_path / "watched") if watched else "", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, env=variables, capture_output=True, check=False)
    assert (done.returncode, done.stdout.decode("latin-1")) == (0, "champion: 1 \\u2192 2, größer\n" * 2), done.stderr
    told = (tmp_path / "watched").read_bytes() if watched else done.stderr
    assert told.count(rb"\u6b21") == 2


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_has_seen_enough_causes_no_traceback(lines: int) -> None:
    program = "import sys; from components.cli import report_errors; "
    program += f"sys.exit(report_errors(lambda: print('line ' * {lines})))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_a_task_stops_when_the_run_that_started_it_was_killed() -> None:
    program = "import time; from components.cli import task\nwith task('train'):\n    time.sleep(60)"
    with subprocess.Popen(["sleep", "60"]) as runner:
        environment = os.environ | {"BEBYGAN_RUNNER": str(runner.pid)}
        with subprocess.Popen(
            [sys.executable, "-c", program], env=environment, cwd=ROOT, stderr=subprocess.PIPE
        ) as started:
            assert started.stderr is not None
            assert started.stderr.readline() == b"train ...\n"
            runner.kill()
            runner.wait()
            assert started.wait(30) == -signal.SIGTERM
