import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bebygan.errors import BebyganError, ConfigError, DataError, ServiceError, StorageError, WeightsError
from bebygan.files import sha256_of
from bebygan.pretrained import DEFAULT
from components.config import Params, load_params
from components.preflight import __main__ as command
from components.preflight import step as module
from components.preflight.step import Check, Places, checks, gpus_given, preflight
from components.tracking.client import mlflow_client
from components.tracking.ledger import HEAD, append
from tests.components.moves import FIRST
from tests.standins.tls import loopback_certificate

ROOT = Path(__file__).parents[3]


@pytest.fixture
def params() -> Params:
    return load_params(ROOT / "params.yaml", [f"warmup.weights={ROOT / 'data/pretrained/rrdb-4x32.safetensors'}"])


@pytest.fixture
def places(bucket: str, tmp_path: Path, mlflow_store: str) -> Places:  # noqa: ARG001 - the store is one of them
    """All of them there, on a real S3 server and a real MLflow store."""
    return Places(
        source=f"s3://{bucket}/photographs",
        remote=f"s3://{bucket}/dvc",
        checkpoints=str(tmp_path / "volume" / "checkpoints"),
        ledger=f"s3://{bucket}/ledger",
    )


def but(places: Places, **changes: str) -> Places:
    return Places(**(vars(places) | changes))


def test_where_everything_is_there_each_is_told_and_nothing_is_left_behind(
    places: Places, params: Params, s3: Any, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    preflight(checks(places, params, 0))
    print(f"preflight: {time.monotonic() - started:.1f} s")
    told, lines = capsys.readouterr()
    assert told
    named = {line.strip().partition(": ")[0] for line in lines.splitlines() if line.startswith("  ")}
    assert named == {
        f"photographs in {places.source}",
        f"DVC remote {places.remote}",
        f"ledger {places.ledger}",
        f"checkpoints in {places.checkpoints}",
        "MLflow",
        "model registry",
        "weights vgg16",
        "weights alexnet",
        "weights lpips-alex",
        "weights dists",
        f"weights {params.warmup.weights}",
    }
    assert "FAILED" not in lines
    assert not s3.list_objects_v2(Bucket=bucket).get("Contents")
    assert not list(Path(places.checkpoints).iterdir())
    assert not mlflow_client().search_registered_models()


def test_the_weights_of_all_metrics_are_needed_without_any_loss_that_uses_them(places: Places) -> None:
    params = load_params(ROOT / "params.yaml", ["train.losses.perceptual=0", "train.losses.dists=0"])
    names = [check.name for check in checks(places, params, 0)]
    for name in ("alexnet", "lpips-alex", "vgg16", "dists"):
        assert names.count(f"weights {name}") == 1


def test_a_model_that_is_there_is_left_as_it_was(places: Places, params: Params) -> None:
    client = mlflow_client()
    client.create_registered_model("bebygan", {"owner": "us"})
    preflight(checks(places, params, 0))
    [model] = client.search_registered_models()
    assert (model.name, model.tags) == ("bebygan", {"owner": "us"})


def failure(places: Places, params: Params, gpus: int = 0) -> BebyganError:
    with pytest.raises(BebyganError) as raised:
        preflight(checks(places, params, gpus))
    return raised.value


def test_a_local_run_tests_everything_without_importing_torch(tmp_path: Path) -> None:
    """`bebygan run` starts with these checks: the import alone takes longer than all of them."""
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in DEFAULT:
        (weights / f"{name}.safetensors").touch()
    program = f"""
import sys
from pathlib import Path
from components.config import load_params
from components.preflight.step import Places, checks, preflight
places = Places(source="data/sample", remote="", ledger="{tmp_path}/ledger", checkpoints="{tmp_path}/checkpoints")
preflight(checks(places, load_params(Path("params.yaml"), []), 0, look="present"))
print("torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "BEBYGAN_CACHE": str(tmp_path), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_the_champion_must_have_the_weights_that_were_registered(
    places: Places, params: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "model" / "artifacts" / "generator.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    client = mlflow_client()
    client.create_registered_model("bebygan")
    client.create_model_version("bebygan", str(tmp_path / "model"), tags={"weights_sha256": sha256_of(weights)})
    client.set_registered_model_alias("bebygan", "champion", "1")
    preflight(checks(places, params, 0))
    assert "the files of version 1 are those that were registered" in capsys.readouterr().err
    weights.write_bytes(b"others")
    error = failure(places, params)
    assert type(error) is WeightsError
    assert str(error).startswith(
        "1 of 11 checks failed: model registry: models:/bebygan/1 is damaged: its weights have SHA-256 "
    )
    weights.unlink()
    with pytest.raises(
        WeightsError, match=r"models:/bebygan/1 is damaged: artifacts/generator\.safetensors is missing"
    ):
        preflight(checks(places, params, 0))


def test_a_ledger_that_lacks_an_entry_which_the_registry_knows_is_refused(places: Places, params: Params) -> None:
    mlflow_client().create_registered_model("bebygan", {HEAD: f"3 {'0' * 64}"})
    error = failure(places, params)
    assert type(error) is DataError
    assert str(error).startswith(f"1 of 11 checks failed: model registry: the ledger {places.ledger} holds no entry 3")


def test_a_registry_that_lost_the_versions_of_the_ledger_is_refused(places: Places, params: Params) -> None:
    append(places.ledger, "bebygan", FIRST)
    error = failure(places, params)
    assert type(error) is ServiceError
    assert str(error).startswith(
        f"1 of 11 checks failed: ledger {places.ledger}: it made version 3 of bebygan champion, but the "
    )


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"source": "s3://no-such-bucket/x"}, ServiceError, "photographs in .*there is no bucket no-such-bucket"),
        ({"source": "/nowhere"}, DataError, "photographs in /nowhere: the source /nowhere does not exist"),
        ({"remote": "s3://no-such-bucket/dvc"}, ServiceError, "DVC remote .*there is no bucket"),
        ({"ledger": "s3://no-such-bucket/l"}, ServiceError, "ledger .*there is no bucket"),
        ({"checkpoints": "/dev/null/x"}, StorageError, "checkpoints in /dev/null/x: cannot write /dev/null/x/"),
        (
            {"remote": "gs://there/dvc"},
            ConfigError,
            "DVC remote gs://there/dvc: gs://there/dvc is neither a folder nor",
        ),
    ],
)
def test_what_is_missing_is_named_alone_with_what_to_do(
    places: Places, params: Params, change: dict[str, str], kind: type[BebyganError], said: str
) -> None:
    error = failure(but(places, **change), params)
    assert type(error) is kind
    assert re.match(rf"1 of 11 checks failed: {said}", str(error)), error
    assert "\n" not in str(error)


def test_what_other_tasks_would_not_find_on_the_volume_is_refused_though_this_one_sees_it(
    places: Places, params: Params, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    (volume / "photographs").mkdir(parents=True)
    lost = but(places, volume=str(volume), source=f"{volume}/photographs", ledger=f"{volume}/ledger")
    error = failure(lost, params)
    assert type(error) is ConfigError
    assert str(error).startswith(f"2 of 11 checks failed: photographs in {lost.source}: {lost.source} is on the volume")
    assert f"; ledger {volume}/ledger: {volume}/ledger is on the volume, which only trainings mount" in str(error)


def test_a_bucket_server_that_is_away_is_named_for_each_place_that_lies_there(
    places: Places, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    error = failure(places, params)
    assert str(error).startswith("3 of 11 checks failed")
    assert str(error).count("http://127.0.0.1:9 does not answer") == 3


def test_a_wrong_secret_is_named(places: Places, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    error = failure(places, params)
    assert str(error).count("refuses access") == 3


def test_a_tracker_that_is_away_is_named_and_its_password_is_not(
    places: Places, params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://us:a-password@127.0.0.1:9")
    started = time.monotonic()
    error = failure(places, params)
    assert time.monotonic() - started < 60
    assert str(error).startswith("2 of 11 checks failed: MLflow: ")
    assert "; model registry: " in str(error)
    assert "MLFLOW_TRACKING_URI" in str(error)
    assert "a-password" not in str(error) + capsys.readouterr().err


def test_a_tracker_that_has_no_place_for_files_is_named(places: Places, params: Params) -> None:
    """It answers all the same, and would be missed after the training."""
    mlflow_client().create_experiment("bebygan", artifact_location="file:///dev/null/artifacts")
    error = failure(places, params)
    assert str(error).startswith("1 of 11 checks failed: MLflow: storing a file failed at MLflow's sqlite:///")
    assert "(Not a directory)" in str(error)


@pytest.fixture
def untrusted(tmp_path: Path) -> Iterator[str]:
    """Address of a server whose certificate nobody trusts."""
    context, _ = loopback_certificate(tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_certificate_that_is_not_trusted_is_told_as_such(
    places: Places, params: Params, untrusted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", untrusted)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", untrusted)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    error = failure(places, params)
    assert str(error).startswith("5 of 11 checks failed")
    assert str(error).count("CERTIFICATE_VERIFY_FAILED") == 5
    assert str(error).count("its authority in AWS_CA_BUNDLE") == 3
    assert str(error).count("its authority in MLFLOW_TRACKING_SERVER_CERT_PATH") == 2
    assert "\n" not in str(error)


def test_weights_that_no_source_has_are_named(
    places: Places, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEBYGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BEBYGAN_WEIGHTS_SOURCES", "folder")
    error = failure(places, params)
    assert type(error) is WeightsError
    assert str(error).startswith("4 of 11 checks failed")
    lost = load_params(ROOT / "params.yaml", ["warmup.weights=lost.safetensors", "train.losses.perceptual=0"])
    error = failure(places, lost)
    assert str(error).startswith("5 of 11 checks failed")
    assert "the file lost.safetensors of warmup.weights does not exist" in str(error)
    assert "weights vgg16" in str(error)


def test_a_gpu_that_is_asked_for_and_not_seen_is_named(
    places: Places, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    error = failure(places, params, gpus=2)
    assert type(error) is ConfigError
    assert "GPUs: 2 GPUs are required but 0 are visible" in str(error)


def test_all_that_is_missing_is_told_at_once_though_one_attempt_hangs(capsys: pytest.CaptureFixture[str]) -> None:
    never = threading.Event()

    def hangs() -> str:
        never.wait()
        return ""

    def refuses() -> str:
        raise WeightsError("no")

    needed = [Check("slow", hangs, 0.3), Check("fast", lambda: "fine", 5), Check("broken", refuses, 5)]
    started = time.monotonic()
    with pytest.raises(ServiceError, match=r"^2 of 3 checks failed: slow: no answer within 0 s: .*; broken: no$"):
        preflight(needed)
    assert time.monotonic() - started < 3
    never.set()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0].strip() for line in lines[:2]] == ["fast", "broken"]
    assert "slow: FAILED" in lines[2]


def test_a_bug_in_a_check_is_no_missing_service(capsys: pytest.CaptureFixture[str]) -> None:
    def bug() -> str:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        preflight([Check("one", bug, 5), Check("two", lambda: "fine", 5)])
    assert "two: fine" in capsys.readouterr().err


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    # Attempts that still hang would go on in the next test.
    for thread in threading.enumerate():
        if thread.name.startswith("preflight "):
            thread.join()


def test_servers_that_never_answer_are_told_within_a_minute(
    places: Places, params: Params, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is left of the minute is for starting Python and the imports.
    assert module._SECONDS_FOR_A_SERVICE <= 40
    monkeypatch.setattr(module, "_SECONDS_FOR_A_SERVICE", 4.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", silent_server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent_server)
    needed = checks(places, params, 0)
    started = time.monotonic()
    with pytest.raises(ServiceError) as raised:
        preflight([check for check in needed if not check.name.startswith("weights")])
    assert time.monotonic() - started < 20
    error = str(raised.value)
    assert error.startswith("5 of 6 checks failed: photographs in")
    assert error.count("no answer within 4 s: check that it runs") == 5


def test_the_command_ends_with_the_exit_code_of_what_is_missing(
    places: Places, params: Params, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["preflight", "--params", str(ROOT / "params.yaml"), "--checkpoints", places.checkpoints]
    arguments += ["--set", f"warmup.weights={params.warmup.weights}", "--source"]
    monkeypatch.setattr("sys.argv", [*arguments, places.source])
    assert command.main() == 0
    monkeypatch.setattr("sys.argv", [*arguments, "s3://no-such-bucket"])
    assert command.main() == 4
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: 1 of 9 checks failed: photographs")


def test_a_task_is_told_its_gpus_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BEBYGAN_GPUS", raising=False)
    assert gpus_given() == 0
    monkeypatch.setenv("BEBYGAN_GPUS", "8")
    assert gpus_given() == 8
