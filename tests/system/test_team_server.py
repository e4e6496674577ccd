"""A team's server by the settings of infra/compose.yaml: from photographs in a bucket to a restored backup."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg2
import pytest
from boto3.session import Session
from botocore.exceptions import ClientError
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image

from benchmarks.serving import served
from components.stores.data_version import data_version, fetch
from components.tracking.ledger import entries
from tests.conftest import free_ports
from tests.pipelines.serving.asking import asked, file_of, pixels, until
from tests.servers import SCRIPTS, TeamServer, team_server
from tests.system.conftest import ROOT, Finished, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
READER = {"MLFLOW_TRACKING_USERNAME": "reader", "MLFLOW_TRACKING_PASSWORD": "reads-and-no-more"}
LATER = 2
"""Photographs that arrive after the first runs."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeamServer]:
    """PostgreSQL, SeaweedFS and MLflow with login, as in compose.yaml."""
    with team_server(tmp_path_factory.mktemp("team-server")) as started:
        yield started


def script(server: TeamServer, name: str, *arguments: str, **changes: Any) -> subprocess.CompletedProcess[str]:
    """Run a script of infra/team-server in the place of its container."""
    environment = {**server.database, **server.environment("setup"), "BEBYGAN_DIRECT": "1"}
    command = [sys.executable if name.endswith(".py") else "sh", str(SCRIPTS / name), *arguments]
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **changes)


def s3_of(server: TeamServer, who: str) -> Any:
    """Return a client of the store with the keys of `ADMIN`, `PHOTOGRAPHER`, `PIPELINE` or `MLFLOW`."""
    session = Session(server.secrets[f"{who}_KEY_ID"], server.secrets[f"{who}_KEY"], region_name="us-east-1")
    return session.client("s3", endpoint_url=server.store)


def keys(server: TeamServer, bucket: str) -> list[str]:
    pages = s3_of(server, "ADMIN").get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return [found["Key"] for page in pages for found in page.get("Contents", ())]


def query(server: TeamServer, sql: str) -> list[Any]:
    place = {name: server.database[f"PG{name.upper()}"] for name in ("host", "port", "user", "password", "database")}
    connection = psycopg2.connect(**place)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall())
    finally:
        connection.close()


def upscaled(server: TeamServer, folder: Path) -> npt.NDArray[np.uint8]:
    """Upscale a picture by models:/bebygan@champion as a reader would, with MLflow alone."""
    folder.mkdir()
    image = np.random.default_rng(0).integers(0, 256, (1, 21, 18, 3), np.uint8)
    np.save(folder / "image.npy", image)
    environment = server.environment("pipeline", **READER)
    # The client goes through the tracking server; it has no keys of the store.
    reader = {name: value for name, value in environment.items() if name.startswith("MLFLOW_")}
    code = str(ROOT / "components" / "register" / "load_check.py")
    command = [sys.executable, "-I", code, "models:/bebygan@champion", "image.npy", "result.npz"]
    done = subprocess.run(command, cwd=folder, env=reader, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "result.npz") as arrays:
        pixels: npt.NDArray[np.uint8] = arrays["pixels"]
    return pixels


@pytest.fixture(scope="module")
def team(server: TeamServer) -> TeamServer:
    """The servers with buckets and accounts."""
    first = script(server, "setup.py")
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines() == [
        *(f"bucket {name}: made" for name in ("photographs", "bebygan", "ledger", "mlflow")),
        *(f"account {name}: made" for name in ("retrain", "serve")),
    ]
    again = script(server, "setup.py")
    assert (again.returncode, again.stdout) == (0, ""), again.stderr
    for password, said in (("first-of-many", "made"), (READER["MLFLOW_TRACKING_PASSWORD"], "has the new password")):
        account = script(server, "setup.py", "--account", "reader", input=f"{password}\n")
        assert account.stdout == f"account reader: {said}\n", account.stderr
    return server


@pytest.fixture(scope="module")
def project(new_project: Callable[[str], Path], team: TeamServer) -> Path:
    """A project whose photographs lie in the bucket, but for the last ones."""
    folder = new_project("team")
    put(team, sorted((folder / "data" / "sample").iterdir())[:-LATER])
    return folder


def put(team: TeamServer, photographs: list[Path]) -> None:
    for path in photographs:
        s3_of(team, "PHOTOGRAPHER").upload_file(str(path), "photographs", path.name)


def retrain(team: TeamServer, project: Path, **changes: str) -> Finished:
    """Run what the timer runs."""
    program, *command = team.services["pipeline"]["command"]
    assert program == "bebygan"
    return run(project, "pipelines.cli", *command, environment=team.environment("pipeline", **changes))


@pytest.fixture(scope="module")
def first(team: TeamServer, project: Path) -> Finished:
    """The first run."""
    done = retrain(team, project)
    assert done.code == 0, done.err
    return done


@pytest.fixture(scope="module")
def third(team: TeamServer, project: Path, first: Finished) -> Finished:  # noqa: ARG001
    """The run after new photographs arrived."""
    put(team, sorted((project / "data" / "sample").iterdir())[-LATER:])
    done = retrain(team, project)
    assert done.code == 0, done.err
    return done


def test_the_first_run_leaves_everything_with_the_servers(
    team: TeamServer, project: Path, first: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\nchampion: bebygan version 1\n" in first.out
    assert f"\nruns:     {team.tracker}/#/experiments/" in first.out
    for name, value in team.environment("pipeline").items():
        monkeypatch.setenv(name, value)
    [dataset] = (project / "workspace" / "pipeline").glob("*/ingest/dataset")
    version = data_version(dataset)
    fetch(version, "s3://bebygan/dvc", tmp_path / "dataset")
    assert data_version(tmp_path / "dataset") == version
    assert [move.version for move in entries("s3://ledger", "bebygan")] == ["1"]
    assert [name for name in keys(team, "mlflow") if name.endswith("artifacts/generator.safetensors")]
    # A name is the step, the date and the data version.
    runs = {name.split()[0]: status for name, status in query(team, "select name, status from runs")}
    assert runs == dict.fromkeys(("retrain", "warmup", "train", "evaluate", "register"), "FINISHED")
    [tagged] = query(team, "select value from model_version_tags where key = 'data_version' and version = 1")
    assert tagged == (version,)
    # Else a disk of 20 GB is given away before it holds anything.
    assert len(list((team.folder / "seaweedfs").glob("mlflow_*.dat"))) == 1
    assert not list((project / "workspace").glob("*mlflow.db"))
    assert not (project / "workspace" / "ledger").exists()


def test_a_second_run_has_nothing_to_do(team: TeamServer, project: Path, first: Finished) -> None:
    assert first.code == 0
    second = retrain(team, project)
    assert second.code == 0, second.err
    assert second.out.startswith("nothing to do")
    assert "\nchampion: bebygan version 1\n" in second.out


def test_new_photographs_make_the_next_run_train_and_it_says_so(team: TeamServer, third: Finished) -> None:
    assert re.search(r"^training: .*photographs", third.err, re.MULTILINE), third.err
    assert "\nchampion: bebygan version 2\n" in third.out
    names = query(team, "select count(*) from runs where name like 'retrain %'")
    assert names == [(2,)]


def test_each_key_and_account_may_do_its_own_work_and_no_more(
    team: TeamServer, first: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert first.code == 0
    allowed = {("PHOTOGRAPHER", "photographs"), ("PIPELINE", "bebygan"), ("MLFLOW", "mlflow")}
    for who in ("PHOTOGRAPHER", "PIPELINE", "MLFLOW"):
        for bucket in ("photographs", "bebygan", "mlflow"):
            client = s3_of(team, who)
            if (who, bucket) in allowed:
                client.put_object(Bucket=bucket, Key="probe", Body=b"")
                client.delete_object(Bucket=bucket, Key="probe")
            else:
                with pytest.raises(ClientError, match="AccessDenied"):
                    client.put_object(Bucket=bucket, Key="probe", Body=b"")
    with pytest.raises(ClientError, match="AccessDenied"):
        s3_of(team, "MLFLOW").list_objects_v2(Bucket="bebygan")

    for account in (READER, team.environment("serve")):
        for name in READER:
            monkeypatch.setenv(name, account[name])
        reader = MlflowClient(tracking_uri=team.tracker, registry_uri=team.tracker)
        reigning = reader.get_model_version_by_alias("bebygan", "champion")
        with pytest.raises(MlflowException, match="Permission denied"):
            reader.set_registered_model_alias("bebygan", "champion", reigning.version)


def test_the_image_server_serves_the_champion_with_its_account_and_while_the_tracking_server_is_down(
    team: TeamServer, first: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert first.code == 0
    for name in list(os.environ):
        if name.startswith(("AWS_", "MLFLOW_")):
            monkeypatch.delenv(name)
    for name, value in team.environment("serve", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0").items():
        monkeypatch.setenv(name, value)
    image = file_of(Image.fromarray(np.zeros((16, 12, 3), np.uint8)))
    reigning = MlflowClient(tracking_uri=team.tracker).get_model_version_by_alias("bebygan", "champion").version
    with served(tmp_path, "--poll", "0.5") as (port, _):

        def fault() -> str:
            return str(json.loads(asked(port, "GET", "/version")[2])["fault"])

        status, headers, answer = asked(port, "POST", "/upscale", image)
        assert (status, headers["x-model-version"], pixels(answer).shape) == (200, str(reigning), (64, 48, 3))
        team.stop_tracker()
        try:
            until(lambda: "Connection refused" in fault(), 60)
            assert asked(port, "GET", "/readyz")[0] == 200
            assert asked(port, "POST", "/upscale", image)[2] == answer
        finally:
            team.start_tracker()
        until(lambda: fault() == "None", 60)


def test_a_wrong_password_and_a_server_that_is_away_end_with_one_line(
    team: TeamServer, project: Path, first: Finished
) -> None:
    assert first.code == 0
    refused = retrain(team, project, MLFLOW_TRACKING_PASSWORD="wrong-password")
    assert refused.code == 4
    assert re.fullmatch(r"error: .*MLflow.*\n", refused.err), refused.err
    away = retrain(team, project, AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_ports(1)[0]}")
    assert away.code == 4
    assert re.fullmatch(r"error: .* does not answer for s3://photographs: .*\n", away.err), away.err


def test_preflight_finds_everything_and_names_what_an_account_may_not(
    team: TeamServer, project: Path, first: Finished
) -> None:
    assert first.code == 0
    places = [each for each in team.services["pipeline"]["command"] if re.match("--(source|remote|ledger)=", each)]
    command = ("pipelines.cli", "preflight", *places)
    well = run(project, *command, environment=team.environment("pipeline"))
    assert well.code == 0, well.err
    print(f"preflight with every server up: {well.seconds:.1f} s")
    assert ".preflight-" not in " ".join(keys(team, "bebygan"))
    reader = run(project, *command, environment=team.environment("pipeline", **READER))
    assert reader.code == 4
    refused = ("MLflow: storing a file", "model registry: ")
    lines = r"^error: 2 of \d+ checks failed: " + "; ".join(rf"{each}.*permission is denied.*" for each in refused)
    assert re.search(lines, reader.err, re.MULTILINE)


def test_after_everything_is_lost_a_backup_brings_back_the_same_champion(
    team: TeamServer, project: Path, third: Finished, tmp_path: Path
) -> None:
    assert third.code == 0
    before = upscaled(team, tmp_path / "before")
    kept = [keys(team, bucket) for bucket in ("bebygan", "ledger")]
    killed = tmp_path / "backups" / "20260101T000000Z.part"
    killed.mkdir(parents=True)
    for saved, fetched in ((1, r"[1-9]\d*"), (2, "0")):
        backup = script(team, "backup.sh", str(tmp_path / "backups"))
        assert backup.returncode == 0, backup.stderr
        assert re.search(rf"objects saved, {fetched} of them fetched", backup.stdout), backup.stdout
        assert len(list((tmp_path / "backups").glob("*/database.dump"))) == saved
    newest = backup.stdout.splitlines()[-1]
    assert not killed.exists()

    team.stop_tracker()
    admin = s3_of(team, "ADMIN")
    for bucket in ("photographs", "bebygan", "ledger", "mlflow"):
        bypass = {"BypassGovernanceRetention": True} if bucket == "ledger" else {}
        for page in admin.get_paginator("list_object_versions").paginate(Bucket=bucket):
            for each in [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]:
                admin.delete_object(Bucket=bucket, Key=each["Key"], VersionId=each["VersionId"], **bypass)
        admin.delete_bucket(Bucket=bucket)
    for command in ("dropdb", "createdb"):
        subprocess.run([command, team.database["PGDATABASE"]], env=dict(team.database), check=True)
    shutil.rmtree(project / "workspace")

    restored = script(team, "restore.sh", newest)
    assert restored.returncode == 0, restored.stderr
    team.start_tracker()
    assert [keys(team, bucket) for bucket in ("bebygan", "ledger")] == kept
    assert np.array_equal(upscaled(team, tmp_path / "after"), before)
    again = retrain(team, project)
    assert again.code == 0, again.err
    assert again.out.startswith("nothing to do")
    assert "\nchampion: bebygan version 2\n" in again.out

    twice = script(team, "restore.sh", newest)
    assert twice.returncode == 1
    assert twice.stderr == "restore: the database is not empty: nothing was changed\n"
