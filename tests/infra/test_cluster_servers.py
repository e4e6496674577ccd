"""The servers and the backup of the manifests, really started: their commands, variables and secrets, on loopback."""

import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from boto3.session import Session
from botocore.exceptions import ClientError

from components.tracking.ledger import append, entries
from pipelines.kubeflow.manifests import build
from tests.components.moves import FIRST
from tests.conftest import free_ports
from tests.infra.attacks import attack_ledger
from tests.infra.described import Described, ask, client
from tests.infra.manifest_checks import name_of
from tests.servers import STRANGER, answers, listening, mlflow_server, open_to_strangers, postgres, wait_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "infra" / "kubernetes"
PROGRAMS = Path(sys.executable).parent
RESTORER = {"AWS_ACCESS_KEY_ID": "restorer", "AWS_SECRET_ACCESS_KEY": "not-a-secret"}
"""A key that may write every bucket, which no key in the manifests may."""
POD_ADDRESS = "127.0.0.3"
"""Of the S3 store's pod. Nothing else on this machine listens there."""


@pytest.fixture(scope="module")
def described() -> Described:
    script = KUBERNETES / "overlays/single-node/secrets.sh"
    secrets = subprocess.run(["sh", script], capture_output=True, text=True, check=True).stdout
    built = build(KUBERNETES / "overlays/single-node")
    return Described({name_of(each): each for text in (built, secrets) for each in yaml.safe_load_all(text)})


@pytest.fixture(scope="module")
def store(described: Described, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The S3 store with the buckets of docs/cluster.md."""
    folder = tmp_path_factory.mktemp("seaweedfs")
    identities = json.loads(described.values("Secret", "seaweedfs")["s3.json"])
    keys = {"accessKey": RESTORER["AWS_ACCESS_KEY_ID"], "secretKey": RESTORER["AWS_SECRET_ACCESS_KEY"]}
    identities["identities"].append({"name": "restorer", "credentials": [keys], "actions": ["Read", "List", "Write"]})
    (folder / "s3.json").write_text(json.dumps(identities))
    # SeaweedFS looks for the file in its working folder, then where the pod mounts it.
    [mounted] = [each for each in described.template("StatefulSet seaweedfs")["spec"]["volumes"] if "secret" in each]
    for item in mounted["secret"].get("items", []):
        if item["key"] != "s3.json":
            (folder / item["path"]).write_text(described.values("Secret", mounted["secret"]["secretName"])[item["key"]])
    names = ("master", "volume", "filer", "s3")
    ports = dict(zip([*names, *(f"{name}.grpc" for name in names)], free_ports(8), strict=True))
    here = [f"-{key.replace('.grpc', '.port.grpc') if '.' in key else f'{key}.port'}={at}" for key, at in ports.items()]
    container = described.container("StatefulSet seaweedfs", "seaweedfs")
    command, environment = described.command(container), described.environment(container)
    log = folder / "log"
    with log.open("w") as lines:
        server = subprocess.Popen(
            [PROGRAMS / command[0], *command[1:], f"-dir={folder}", f"-s3.config={folder / 's3.json'}",
             f"-s3.ip.bind={POD_ADDRESS}", *here],
            stdout=lines, stderr=lines, cwd=folder, env=os.environ | environment,
        )  # fmt: skip
    try:
        address = f"http://{POD_ADDRESS}:{ports['s3']}"
        wait_for(lambda: answers(f"{address}/healthz"), server, log)
        wanted = ("photographs", "bebygan", "ledger", "mlflow", "backup")
        made = subprocess.run(
            [
                PROGRAMS / "weed", "shell",
                f"-master=127.0.0.1:{ports['master']}.{ports['master.grpc']}",
                f"-filer=127.0.0.1:{ports['filer']}.{ports['filer.grpc']}",
            ],
            input="".join(f"s3.bucket.create -name {bucket}\n" for bucket in wanted),
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        assert all(f"created bucket {bucket}" in made.stdout for bucket in wanted), made.stdout
        yield address
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def database(described: Described) -> Iterator[dict[str, str]]:
    """PostgreSQL: the variables by which it is reached, and a PATH with its programs."""
    container = described.container("StatefulSet postgres", "postgres")
    with postgres({"environment": described.environment(container), "command": container["args"]}) as variables:
        yield variables


@pytest.fixture(scope="module")
def tracker(
    described: Described, store: str, database: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The tracking server on PostgreSQL."""
    server = described.container("Deployment mlflow", "mlflow")
    [port], command = free_ports(1), described.command(server)[1:]
    # MLflow's own client calls it by its address here.
    hosts = [f"{word},127.0.0.1:{port}" if word.startswith("--allowed-hosts=") else word for word in command]
    service = {
        "command": [str(PROGRAMS / "mlflow"), *hosts],
        "environment": described.environment(server),
        "volumes": ["kubernetes/base/basic_auth.ini:/etc/mlflow/basic_auth.ini"],
    }
    folder = tmp_path_factory.mktemp("mlflow")
    with mlflow_server(service, database, store, folder, port) as address:
        yield address


def test_the_pod_of_the_store_answers_nothing_but_s3_without_a_login(store: str) -> None:
    assert len(listening(POD_ADDRESS)) == 2, "S3 and its gRPC port"
    assert open_to_strangers(store) == []
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        Session(**STRANGER, region_name="us-east-1").client("s3", endpoint_url=store).list_buckets()


def test_each_key_opens_only_its_own_buckets(described: Described, store: str) -> None:
    def may(secret: str) -> set[str]:
        s3, found = client(described, store, secret), set()
        for bucket in ("photographs", "bebygan", "ledger", "mlflow", "backup"):
            for right, call in (
                ("list", lambda bucket=bucket: s3.list_objects_v2(Bucket=bucket)),
                ("write", lambda bucket=bucket: s3.put_object(Bucket=bucket, Key="tried", Body=b"")),
            ):
                try:
                    call()
                    found.add(f"{right} {bucket}")
                except ClientError as error:
                    found |= {error.response["Error"]["Code"]} - {"AccessDenied"}
        return found

    assert may("bebygan-s3") == {
        "list photographs", "list bebygan", "write bebygan", "list ledger", "write ledger"
    }  # fmt: skip
    assert may("bebygan-ingest-s3") == {"list photographs", "list bebygan"}
    assert may("bebygan-training-s3") == {"list bebygan"}
    assert may("bebygan-evaluate-s3") == {"list bebygan", "list ledger"}
    assert may("photographer") == {"list photographs", "write photographs"}
    assert may("mlflow-server") == {"list mlflow", "write mlflow"}
    assert may("backup") == {
        "list photographs", "list bebygan", "list ledger", "list mlflow", "list backup", "write backup"
    }  # fmt: skip


def test_register_appends_to_the_ledger_and_can_neither_alter_nor_delete_entries(
    described: Described, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket is locked as docs/cluster.md says."""
    own = {"PATH": os.environ["PATH"], "AWS_ENDPOINT_URL": store, "AWS_DEFAULT_REGION": "us-east-1"}
    lock = [sys.executable, ROOT / "infra/team-server/setup.py", "--ledger", "ledger"]
    for _ in range(2):
        done = subprocess.run(
            lock, env=own | described.values("Secret", "ledger-keeper"), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    for name, value in (own | described.values("Secret", "bebygan-s3")).items():
        monkeypatch.setenv(name, value)
    moves = [FIRST, replace(FIRST, number=2, reason="second")]
    for move in moves:
        assert append("s3://ledger", "bebygan", move)
    attack_ledger(client(described, store, "bebygan-s3"), "ledger")
    assert entries("s3://ledger", "bebygan") == moves
    with pytest.raises(ClientError, match="AccessDenied"):
        client(described, store, "ledger-keeper").list_objects_v2(Bucket="bebygan")


@pytest.mark.parametrize(("step", "own"), [("ingest", "dvc"), ("training", "checkpoints")])
def test_ingest_and_training_write_their_own_folder_of_the_bucket_and_read_no_other(
    step: str, own: str, described: Described, store: str
) -> None:
    steps, key = client(described, store, "bebygan-s3"), client(described, store, f"bebygan-{step}-s3")
    for folder in ("checkpoints", "ledger", "dvc"):
        steps.put_object(Bucket="bebygan", Key=f"{folder}/a", Body=b"1")
    key.put_object(Bucket="bebygan", Key=f"{own}/b", Body=b"1")
    key.upload_fileobj(io.BytesIO(bytes(20_000_000)), "bebygan", f"{own}/large")
    assert key.get_object(Bucket="bebygan", Key=f"{own}/a")["Body"].read() == b"1"
    key.delete_object(Bucket="bebygan", Key=f"{own}/b")
    for folder in {"checkpoints", "ledger", "dvc"} - {own}:
        for call in (key.get_object, key.delete_object, partial(key.put_object, Body=b"2")):
            with pytest.raises(ClientError, match="AccessDenied"):
                call(Bucket="bebygan", Key=f"{folder}/a")
    # Other tests copy the bucket.
    for name in ("checkpoints/a", "ledger/a", "dvc/a", f"{own}/large"):
        steps.delete_object(Bucket="bebygan", Key=name)


def test_evaluate_reads_data_versions_and_the_ledger_and_writes_neither(described: Described, store: str) -> None:
    steps, key = client(described, store, "bebygan-s3"), client(described, store, "bebygan-evaluate-s3")
    for at in ({"Bucket": "bebygan", "Key": "dvc/read"}, {"Bucket": "ledger", "Key": "other/000001.json"}):
        steps.put_object(**at, Body=b"1")
        assert key.get_object(**at)["Body"].read() == b"1"
        for call in (key.delete_object, partial(key.put_object, Body=b"2"), partial(key.put_object, IfNoneMatch="*")):
            with pytest.raises(ClientError, match="AccessDenied"):
                call(**at)
        steps.delete_object(**at)
    assert key.list_object_versions(Bucket="ledger")["ResponseMetadata"]["HTTPStatusCode"] == 200


def test_the_tracking_server_answers_to_its_names_and_accounts(described: Described, tracker: str) -> None:
    admin = f"admin:{described.values('Secret', 'mlflow-server')['MLFLOW_AUTH_ADMIN_PASSWORD']}"
    name, password = described.values("Secret", "bebygan-mlflow").values()
    retrain = f"{name}:{password}"
    search, users = "/api/2.0/mlflow/experiments/search?max_results=1", "/api/2.0/mlflow/users/create"
    # A kubelet asks without a login and under the pod's address, Prometheus with one.
    assert ask(tracker, "/health", host="10.9.9.9:5000")[0] == 200
    assert ask(tracker, search)[0] == 401
    assert ask(tracker, "/api/2.0/mlflow-artifacts/artifacts/1/x/artifacts/weights")[0] == 401
    assert ask(tracker, users, admin, body={"username": name, "password": password})[0] == 200
    for host in ("mlflow:5000", "mlflow.bebygan:5000", "mlflow.bebygan.svc:5000", "10.1.2.3:5000", "localhost:5000"):
        assert ask(tracker, search, retrain, host)[0] == 200, host
    assert ask(tracker, search, retrain, "elsewhere.example:5000")[0] == 403
    assert ask(tracker, "/api/2.0/mlflow/experiments/create", retrain, body={"name": "bebygan"})[0] == 200
    assert ask(tracker, users, retrain, body={"username": "x", "password": "long enough, surely"})[0] == 403
    # MLflow shows its metrics to administrators only, so Prometheus' account is made one.
    name, password = described.values("Secret", "mlflow-metrics").values()
    assert ask(tracker, users, admin, body={"username": name, "password": password})[0] == 200
    assert ask(tracker, "/metrics", f"{name}:{password}")[0] == 403
    promotion = {"username": name, "is_admin": True}
    assert ask(tracker, "/api/2.0/mlflow/users/update-admin", admin, body=promotion, method="PATCH")[0] == 200
    status, metrics = ask(tracker, "/metrics", f"{name}:{password}")
    assert status == 200
    assert b"mlflow_http_request_total" in metrics


def test_the_account_of_training_logs_runs_and_cannot_move_the_champion(
    described: Described, tracker: str, tmp_path: Path
) -> None:
    api = "/api/2.0/mlflow"
    admin = f"admin:{described.values('Secret', 'mlflow-server')['MLFLOW_AUTH_ADMIN_PASSWORD']}"
    retrain, trainer = (list(described.values("Secret", f"bebygan{of}-mlflow").values()) for of in ("", "-training"))

    def done(path: str, **body: str) -> Any:
        status, answer = ask(tracker, path, ":".join(retrain), body=body)
        assert status == 200, answer
        return json.loads(answer)

    # As docs/cluster.md says. The test before has done a part of it, if it ran.
    for name, password in (retrain, trainer):
        ask(tracker, f"{api}/users/create", admin, body={"username": name, "password": password})
    ask(tracker, f"{api}/experiments/create", ":".join(retrain), body={"name": "bebygan"})
    found = json.loads(ask(tracker, f"{api}/experiments/get-by-name?experiment_name=bebygan", ":".join(retrain))[1])
    number = found["experiment"]["experiment_id"]
    grant = {"username": "trainer", "resource_type": "experiment", "resource_id": number, "permission": "EDIT"}
    done("/api/3.0/mlflow/users/permissions/grant", **grant)
    run = done(f"{api}/runs/create", experiment_id=number)["run"]["info"]
    done(f"{api}/registered-models/create", name="bebygan")
    done(f"{api}/model-versions/create", name="bebygan", source=run["artifact_uri"], run_id=run["run_id"])
    done(f"{api}/registered-models/alias", name="bebygan", alias="champion", version="1")

    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "a.txt").write_text("logged")
    environment = {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(tmp_path),
        "MLFLOW_TRACKING_URI": tracker,
        "MLFLOW_TRACKING_USERNAME": trainer[0], "MLFLOW_TRACKING_PASSWORD": trainer[1],
        "BEBYGAN_UNTRACKED": str(tmp_path / "untracked"),
    }  # fmt: skip
    trained = subprocess.run(
        [sys.executable, ROOT / "tests/infra/as_trainer.py", tmp_path / "report"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = "FINISHED {'pixel': 0.5}, 6 attempts refused\nversion 1 of 1 reigns\n"
    assert (trained.returncode, trained.stdout) == (0, said), trained.stderr
    assert "warning" not in trained.stderr


@pytest.mark.parametrize("password", [None, "wrong"])
def test_the_database_asks_for_a_password(database: dict[str, str], password: str | None) -> None:
    environment = {name: value for name, value in database.items() if name != "PGPASSWORD"}
    environment |= {"PGPASSWORD": password} if password else {}
    command = ["psql", "--no-password", "--command=select 1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "password" in done.stderr


def test_the_tracking_server_stores_artifacts_in_its_bucket(described: Described, tracker: str, store: str) -> None:
    admin = f"admin:{described.values('Secret', 'mlflow-server')['MLFLOW_AUTH_ADMIN_PASSWORD']}"
    assert ask(tracker, "/api/2.0/mlflow-artifacts/artifacts/9/a.txt", admin, body=b"weights")[0] == 200
    found = client(described, store, "mlflow-server").get_object(Bucket="mlflow", Key="artifacts/9/a.txt")
    assert found["Body"].read() == b"weights"


def run_container(described: Described, workload: str, name: str, folder: Path, **changes: str) -> Any:
    """Run what a Job runs, with its mounted folders in `folder`."""
    container = described.container(workload, name)
    (folder / "backup.py").write_text(described.values("ConfigMap", "backup-scripts")["backup.py"])
    environment = {"PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}", **described.environment(container), **changes}
    command = [
        re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], word)
        .replace("/dump/", f"{folder}/")
        .replace("/scripts/", f"{folder}/")
        for word in [*container["command"], *container.get("args", [])]
    ]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def back_up(described: Described, store: str, folder: Path, **changes: str) -> Any:
    return run_container(described, "CronJob backup", "buckets", folder, AWS_ENDPOINT_URL=store, **changes)


def restore(described: Described, store: str, folder: Path, **changes: str) -> Any:
    return run_container(described, "CronJob restore", "buckets", folder, AWS_ENDPOINT_URL=store, **changes)


def test_a_backup_contains_everything_and_restores_lost_objects(
    described: Described, store: str, tmp_path: Path
) -> None:
    steps, dump = client(described, store, "bebygan-s3"), tmp_path / "mlflow.dump"

    def put(key: str, body: bytes) -> None:
        steps.put_object(Bucket="bebygan", Key=key, Body=body)

    def get(key: str) -> bytes:
        return bytes(steps.get_object(Bucket="bebygan", Key=key)["Body"].read())

    put("ledger/bebygan/000001.json", b"first")
    put("dvc/files/md5/ab/cd", b"photograph")
    dump.write_bytes(b"database")
    first = back_up(described, store, tmp_path)
    assert first.returncode == 0, first.stderr
    put("ledger/bebygan/000002.json", b"second")
    # Of the same size, within the same second.
    put("dvc/files/md5/ab/cd", b"photoGRAPH")
    assert back_up(described, store, tmp_path).returncode == 0

    steps.delete_object(Bucket="bebygan", Key="dvc/files/md5/ab/cd")
    put("ledger/bebygan/000002.json", b"newer than the backup")
    dump.unlink()
    refused = restore(described, store, tmp_path)
    assert refused.returncode == 1
    assert "AccessDenied" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    restored = restore(described, store, tmp_path, **RESTORER)
    assert restored.returncode == 0, restored.stderr
    assert dump.read_bytes() == b"database"
    assert get("dvc/files/md5/ab/cd") == b"photoGRAPH"
    assert get("ledger/bebygan/000002.json") == b"newer than the backup"

    # What did not change is not copied again, once the second in which it was copied is over.
    time.sleep(1.1)
    assert back_up(described, store, tmp_path).returncode == 0
    assert "bebygan: 0 objects copied" in back_up(described, store, tmp_path).stdout


def test_objects_deleted_during_a_backup_are_left_out(
    described: Described, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = importlib.util.spec_from_file_location("backup", KUBERNETES / "base" / "backup.py")
    assert script
    assert script.loader
    module = importlib.util.module_from_spec(script)
    script.loader.exec_module(module)
    steps, s3 = client(described, store, "bebygan-s3"), client(described, store, "backup")
    for name in ("kept", "gone"):
        steps.put_object(Bucket="bebygan", Key=f"checkpoints/{name}", Body=name.encode())
    copy = s3.copy

    def delete_and_copy(source: dict[str, str], bucket: str, key: str) -> None:
        if key.endswith("gone"):
            steps.delete_object(**source)
        copy(source, bucket, key)

    monkeypatch.setattr(s3, "copy", delete_and_copy)
    assert module.copy(s3, ("bebygan", "checkpoints/"), ("backup", "new/"), overwrite=True) == 1
    assert module.listing(s3, "backup", "new/").keys() == {"kept"}


def test_only_the_newest_dumps_are_kept(described: Described, store: str, tmp_path: Path) -> None:
    dump = tmp_path / "mlflow.dump"
    dump.write_bytes(b"newest")
    s3 = client(described, store, "backup")
    for year in (2001, 2002, 2003):
        s3.put_object(Bucket="backup", Key=f"database/{year}0101T000000Z.dump", Body=b"old")
    assert back_up(described, store, tmp_path, BUCKETS="", DUMPS_KEPT="2").returncode == 0
    kept = [each["Key"] for each in s3.list_objects_v2(Bucket="backup", Prefix="database/")["Contents"]]
    assert len(kept) == 2
    assert not [key for key in kept if key.startswith(("database/2001", "database/2002"))]


def test_an_empty_backup_and_a_missing_bucket_are_reported(described: Described, store: str, tmp_path: Path) -> None:
    nothing = restore(described, store, tmp_path, TARGET="photographs", **RESTORER)
    assert nothing.returncode == 1
    assert nothing.stderr.startswith("backup: s3://photographs/database/ contains no dump")
    (tmp_path / "mlflow.dump").write_bytes(b"database")
    missing = back_up(described, store, tmp_path, TARGET="nowhere")
    assert missing.returncode == 1
    assert "nowhere" in missing.stderr
    assert len(missing.stderr.splitlines()) == 1


def test_the_database_is_saved_restored_and_upgraded(
    described: Described, database: dict[str, str], tracker: str, tmp_path: Path
) -> None:
    def rows(name: str) -> str:
        query = "select (select count(*) from experiments), (select string_agg(username, ',' order by id) from users)"
        command = ["psql", "--no-align", "--tuples-only", f"--command={query}"]
        return subprocess.run(
            command, env=database | {"PGDATABASE": name}, capture_output=True, text=True, check=True
        ).stdout

    assert ask(tracker, "/health")[0] == 200
    saved = run_container(described, "CronJob backup", "database", tmp_path, **database)
    assert saved.returncode == 0, saved.stderr
    subprocess.run(["createdb", "empty"], env=database, check=True)
    elsewhere = database | {"PGDATABASE": "empty"}
    restored = run_container(described, "CronJob restore", "database", tmp_path, **elsewhere)
    assert restored.returncode == 0, restored.stderr
    assert "admin" in rows("empty")
    assert rows("empty") == rows(database["PGDATABASE"])
    # Nothing is changed in a database that is not empty.
    assert run_container(described, "CronJob restore", "database", tmp_path, **elsewhere).returncode != 0
    assert rows("empty") == rows(database["PGDATABASE"])
    with_mlflow = elsewhere | {"PATH": f"{PROGRAMS}{os.pathsep}{database['PATH']}"}
    for container in ("tracking", "login"):
        upgraded = run_container(described, "CronJob upgrade-database", container, tmp_path, **with_mlflow)
        assert upgraded.returncode == 0, upgraded.stderr
    assert rows("empty") == rows(database["PGDATABASE"])
