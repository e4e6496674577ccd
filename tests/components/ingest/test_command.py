import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "components.ingest", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=300
    )


def places(folder: Path) -> list[str]:
    return ["--dataset", str(folder / "dataset"), "--docs", str(folder / "docs"), "--set", "ingest.minimum_side=64"]


def test_the_command_reports_what_it_did_with_the_files(photographs: Path, tmp_path: Path) -> None:
    (photographs / "bad.png").write_text("This is no picture.")
    (photographs / "notes.txt").write_text("Nor is this.")
    done = run("--source", str(photographs), *places(tmp_path), "--set", "ingest.validation_share=0.3")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'dataset'}: 24 photographs (")
    assert lines[1].startswith("quarantined: 1 not-an-image")
    assert lines[2].startswith("  bad.png: not-an-image: its content is no JPEG, ")
    assert lines[3] == "skipped, not pictures: 1"
    assert "Succeeded" in Path(lines[4].removeprefix("checks: ")).read_text()
    assert lines[-1].startswith("data version: ")
    assert lines[-1].endswith(".dir")
    assert "Traceback" not in done.stderr
    assert "Skipping registering" not in done.stderr


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        ("no-such-folder", 3, "error: the source no-such-folder does not exist"),
        ("gs://bucket/photos", 2, "error: gs://bucket/photos is neither a folder nor s3://"),
        ("s3://", 2, "error: s3:// names no bucket"),
    ],
)
def test_an_invalid_source_prints_one_line_and_sets_the_exit_code(
    source: str, code: int, message: str, tmp_path: Path
) -> None:
    done = run("--source", source, *places(tmp_path))
    assert done.returncode == code
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_a_missing_bucket_exits_with_the_code_of_service_errors(tmp_path: Path, s3_environment: dict[str, str]) -> None:
    done = run("--source", "s3://nowhere", *places(tmp_path), **s3_environment)
    assert done.returncode == 4
    assert done.stderr.startswith("error: there is no bucket nowhere")


def test_a_wrong_secret_exits_with_the_code_of_service_errors(
    tmp_path: Path, s3_environment: dict[str, str], bucket: str
) -> None:
    done = run("--source", f"s3://{bucket}", *places(tmp_path), **s3_environment | {"AWS_SECRET_ACCESS_KEY": "wrong"})
    assert done.returncode == 4
    assert "SignatureDoesNotMatch" in done.stderr
    assert "wrong" not in done.stderr


@pytest.mark.parametrize("value", ["1.5", "-1", "many"])
def test_the_error_names_a_parameter_that_is_out_of_range(value: str, photographs: Path, tmp_path: Path) -> None:
    done = run("--source", str(photographs), *places(tmp_path), "--set", f"ingest.test_share={value}")
    assert done.returncode == 2
    assert "ingest.test_share" in done.stderr


def test_help_does_not_wait_for_slow_imports() -> None:
    start = time.monotonic()
    done = run("--help")
    assert done.returncode == 0
    assert "--source" in done.stdout
    assert time.monotonic() - start < 10
