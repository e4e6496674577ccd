"""The images as a Docker engine builds them, and the whole pipeline in containers of them."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import pytest
from kfp import dsl, local
from mlflow import MlflowClient

from bebygan.errors import ConfigError
from benchmarks.serving import Registry
from components.cli import FAILURE_FILE
from components.config import load_params
from components.job import Job
from components.tracking.provenance import code_hash
from pipelines.local.containers import in_containers
from pipelines.local.run import _failure_of_task
from tests.infra.conftest import ROOT
from tests.pipelines.serving.asking import until
from tests.servers import new_secrets, services
from tests.system.conftest import Finished, new_project, run, start  # noqa: F401 - a fixture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS = ("ingest", "patches", "warmup", "train", "evaluate", "register")
LIMITS = {"data": 900e6, "torch": 1.6e9}
# Built with what no image may keep: names of indexes, and where this machine's certificates lie.
CHECKSUMS = ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION")
OF_THIS_MACHINE = ("PIP_", "index-url", "find-links", "AWS_", "MLFLOW_TRACKING_PASSWORD", "_CA_BUNDLE")


@pytest.fixture(scope="session")
def engine(images: dict[str, str]) -> Iterator[docker.DockerClient]:  # noqa: ARG001
    """A client of the engine, when it has the images."""
    client = docker.from_env()
    yield client
    client.close()


def said(engine: docker.DockerClient, image: str, *command: str) -> str:
    """Return what a command prints in a container like a task's, but for its folders."""
    printed = engine.containers.run(
        image, list(command), remove=True, read_only=True, network_mode="none", cap_drop=["ALL"]
    )
    return str(printed.decode().strip())


@contextmanager
def containers_seen(engine: docker.DockerClient) -> Iterator[dict[str, dict[str, Any]]]:
    """Yield what the engine says of each container that starts meanwhile, by the step that it runs."""
    seen: dict[str, dict[str, Any]] = {}
    events = engine.events(decode=True, filters={"type": "container", "event": "start"})

    def note() -> None:
        for event in events:
            with contextlib.suppress(docker.errors.NotFound):
                attributes = engine.api.inspect_container(event["id"])
                if (command := attributes["Config"]["Cmd"]).count("--function_to_execute"):
                    seen[command[command.index("--function_to_execute") + 1]] = attributes

    watcher = threading.Thread(target=note)
    watcher.start()
    try:
        yield seen
    finally:
        events.close()
        watcher.join(10)


@pytest.fixture(scope="module")
def project(new_project: Callable[[str], Path]) -> Path:  # noqa: F811
    """A project in which the pipeline runs in containers."""
    return new_project("containers")


@pytest.fixture(scope="module")
def seen(project: Path, engine: docker.DockerClient) -> dict[str, dict[str, Any]]:
    """The first run's containers, by step."""
    with containers_seen(engine) as containers:
        done = run(project, "pipelines.cli", "run", "--containers")
    log = project / "workspace" / "run.log"
    assert done.code == 0, done.err + (log.read_text()[-4000:] if log.exists() else "")
    assert "champion: bebygan version 1\n" in done.out
    return containers


def run_in_containers(project: Path, *arguments: str) -> Finished:
    """Run the pipeline's command."""
    return run(project, "pipelines.cli", "run", "--containers", *arguments)


@pytest.mark.parametrize("step", LIMITS)
def test_an_image_is_not_larger_than_documented(step: str, engine: docker.DockerClient, images: dict[str, str]) -> None:
    assert engine.images.get(images[step]).attrs["Size"] <= LIMITS[step]


@pytest.mark.parametrize("step", LIMITS)
def test_an_image_contains_this_code_and_its_revision(
    step: str, engine: docker.DockerClient, images: dict[str, str]
) -> None:
    program = "from components.tracking.provenance import *; print(code_hash()); print(BUILD_INFO.read_text())"
    inside, built = said(engine, images[step], "python3", "-c", program).split("\n", 1)
    assert inside == code_hash()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=False, capture_output=True, text=True)
    lock = subprocess.run(
        ["sha256sum", f"infra/images/{step}.lock"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    facts = json.loads(built)
    assert facts.keys() == {"git_sha", "git_dirty", "lock_sha256"}
    assert facts["git_sha"] == (head.stdout.strip() or "unknown")
    assert facts["git_dirty"] in ({"true", "false"} if head.returncode == 0 else {"unknown"})
    assert facts["lock_sha256"] == lock.stdout.split()[0]
    labels = engine.images.get(images[step]).labels
    assert labels["org.opencontainers.image.revision"] == facts["git_sha"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


@pytest.mark.parametrize("step", LIMITS)
def test_the_command_in_an_image_finds_the_pipeline_beside_it(
    step: str, engine: docker.DockerClient, images: dict[str, str]
) -> None:
    assert said(engine, images[step], "bebygan", "--help").startswith("usage: bebygan [-h]")


def test_the_image_server_runs_in_its_container_as_in_compose(
    engine: docker.DockerClient, images: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = services(new_secrets())["serve"]
    assert service["image"] == images["torch"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    registry = Registry(tmp_path / "workspace")
    registry.promote(registry.add(1))
    # The registry names files by their paths here, and the database is locked beside itself.
    for path in (registry.workspace, *registry.workspace.rglob("*")):
        path.chmod(0o777)
    container = engine.containers.run(
        images["torch"], service["command"], detach=True, init=True, network_mode="none",
        cap_drop=service["cap_drop"], read_only=service["read_only"], tmpfs=dict.fromkeys(service["tmpfs"], ""),
        user=service["user"], mem_limit=service["mem_limit"],
        environment={"MLFLOW_TRACKING_URI": registry.uri, "HOME": service["environment"]["HOME"]},
        volumes={str(registry.workspace): {"bind": str(registry.workspace), "mode": "rw"}},
    )  # fmt: skip
    ready = "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/readyz', timeout=60)"
    ask = (
        "import io, urllib.request as r; from PIL import Image; f = io.BytesIO(); "
        "Image.new('RGB', (9, 7)).save(f, 'PNG'); "
        "asked = r.Request('http://127.0.0.1:8080/upscale', f.getvalue(), {'Content-Type': 'image/png'}); "
        "print(Image.open(io.BytesIO(r.urlopen(asked, timeout=60).read())).size)"
    )
    try:
        for command in (service["healthcheck"]["test"][1:], ["python3", "-c", ready]):
            until(lambda command=command: container.exec_run(command).exit_code == 0, 120)  # type: ignore[misc]
        assert container.exec_run(["python3", "-c", ask]).output == b"(36, 28)\n"
        container.stop(timeout=45)
        assert container.wait()["StatusCode"] in (0, 128 + signal.SIGTERM)
    finally:
        container.remove(force=True)


@pytest.mark.parametrize("step", LIMITS)
def test_an_image_runs_as_an_ordinary_user_and_has_no_entry_point(
    step: str, engine: docker.DockerClient, images: dict[str, str]
) -> None:
    config = engine.images.get(images[step]).attrs["Config"]
    assert config["User"] == "1000:1000"
    assert not config["Entrypoint"]
    assert config["WorkingDir"] == "/app"
    assert said(engine, images[step], "sh", "-c", "id -u; ls /app") == "1000\ndata\nparams\nparams.yaml"
    writable = said(engine, images[step], "sh", "-c", "find /opt /app /etc -writable ! -type l 2>/dev/null; true")
    assert writable == ""


@pytest.mark.parametrize("step", LIMITS)
def test_an_image_contains_nothing_of_the_machine_that_built_it(
    step: str, engine: docker.DockerClient, images: dict[str, str]
) -> None:
    image = engine.images.get(images[step])
    told = json.dumps([image.attrs["Config"], image.history()])
    for switch in CHECKSUMS:
        assert f"{switch}=when_required" in image.attrs["Config"]["Env"]
        told = told.replace(switch, "")
    assert not [word for word in OF_THIS_MACHINE if word in told]
    assert str(ROOT) not in told
    look = "ls -d /wheels /build /etc/pip.conf /opt/venv/pip.conf ~root/.cache /opt/venv/bin/pip 2>/dev/null; true"
    assert said(engine, images[step], "sh", "-c", look) == ""


@pytest.mark.parametrize(
    ("step", "there", "not_there"),
    [
        ("data", "dvc great_expectations boto3 kfp kubernetes kfp.client", "torch mlflow"),
        ("torch", "torch mlflow boto3 kfp", "dvc great_expectations kubernetes kfp_server_api google.cloud"),
    ],
)
def test_an_image_contains_only_the_packages_that_its_steps_need(
    step: str, there: str, not_there: str, engine: docker.DockerClient, images: dict[str, str]
) -> None:
    program = """
import importlib.util, sys
def found(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
print(*[name for name in sys.argv[1:] if found(name)])
"""
    found = said(engine, images[step], "python3", "-c", program, *there.split(), *not_there.split())
    assert found.split() == there.split()


def test_the_bill_of_materials_lists_the_packages_of_the_image(
    engine: docker.DockerClient, images: dict[str, str], tmp_path: Path
) -> None:
    binaries = os.path.relpath(Path(sys.executable).parent, ROOT)
    subprocess.run(
        ["make", "--silent", "--old-file=.venv/installed", f"BIN={binaries}", f"BILLS={tmp_path}", "sbom"],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    program = "from importlib.metadata import distributions as d; print(*{f'{x.name}=={x.version}' for x in d()})"
    for step, image in images.items():
        named = json.loads((tmp_path / f"bebygan-{step}.cdx.json").read_text())["components"]
        inside = {
            # A local label such as +cpu names a build, not a version.
            package.partition("+")[0].lower().replace("_", "-")
            for package in said(engine, image, "python3", "-c", program).split()
        }
        assert {f"{part['name']}=={part['version']}".lower().replace("_", "-").replace(".", "-") for part in named} == {
            package.replace(".", "-") for package in inside if not package.startswith("bebygan==")
        }


def test_every_step_runs_in_a_container_of_its_own(seen: dict[str, dict[str, Any]], images: dict[str, str]) -> None:
    used = {step: attributes["Config"]["Image"] for step, attributes in seen.items()}
    assert used == {step: images["data" if step in {"ingest", "patches"} else "torch"] for step in STEPS}
    assert len({attributes["Id"] for attributes in seen.values()}) == len(STEPS)


def test_a_container_gets_no_more_permissions_than_it_needs(seen: dict[str, dict[str, Any]], project: Path) -> None:
    for attributes in seen.values():
        host = attributes["HostConfig"]
        assert attributes["Config"]["User"].split(":")[0] not in {"", "0", "root"}
        assert host["ReadonlyRootfs"] is True
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges"]
        assert host["NetworkMode"] == "none"
        assert host["Memory"] > 0
        mounts = {mount["Destination"]: mount["RW"] for mount in attributes["Mounts"]}
        assert mounts["/app/data/sample"] is False
        writable = [Path(path) for path, written in mounts.items() if written and path != "/kfp-workspace"]
        [scratch] = [path for path in writable if not path.is_relative_to(project / "workspace")]
        assert not scratch.exists(), "it goes when the run ends"


def test_the_output_of_containers_exists_and_is_tracked(seen: dict[str, dict[str, Any]], project: Path) -> None:
    assert len(seen) == len(STEPS)
    uri = f"sqlite:///{project / 'workspace' / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    champion = client.get_model_version_by_alias("bebygan", "champion")
    [weights] = (project / "workspace" / "pipeline").glob("*/train/challenger/generator.safetensors")
    assert weights.stat().st_uid == 1000
    tags = client.get_run(champion.run_id).data.tags
    assert tags["image_digest"] == seen["register"]["Image"]
    assert tags["code_hash"] == code_hash()
    assert client.get_run(tags["mlflow.parentRunId"]).info.status == "FINISHED"


def test_a_second_run_has_nothing_to_do(seen: dict[str, dict[str, Any]], project: Path) -> None:
    assert len(seen) == len(STEPS)
    done = run_in_containers(project)
    assert done.code == 0, done.err
    assert done.out.startswith("nothing to do")


@pytest.mark.parametrize(
    ("change", "code", "line"),
    [
        ("patches.texture_threshold=1.0", 3, "error: patches: no training patch"),
        ("warmup.weights=params.yaml", 5, "error: warmup: "),
    ],
)
def test_a_failing_step_ends_the_run_with_its_message_and_exit_code(
    change: str, code: int, line: str, seen: dict[str, dict[str, Any]], project: Path
) -> None:
    assert len(seen) == len(STEPS)
    done = run_in_containers(project, "--set", change)
    assert done.code == code, done.err
    assert line in done.err


@pytest.fixture
def failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a task leaves unless it succeeds."""
    (tmp_path / "workspace").mkdir()
    path = tmp_path / "workspace" / "failure.json"
    monkeypatch.setenv(FAILURE_FILE, str(path))
    monkeypatch.setenv("BEBYGAN_PARENT_RUN", "a-run")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/workspace/mlflow.db")
    return path


def run_task(component: Callable[[], object], workspace: Path) -> bool:
    """Run a component in a container, as the pipeline does; return whether KFP takes it for a success."""
    job = Job(load_params(ROOT / "params.yaml", []), "data/sample", "1", "1")
    with in_containers(job, [workspace], [], None) as runner:
        local.init(runner, pipeline_root=str(workspace / "pipeline"))
        try:
            component()
        except RuntimeError:
            return False
    return True


@pytest.mark.parametrize("step", LIMITS)
def test_a_container_that_fails_at_once_never_counts_as_a_success(  # noqa: PLR0917
    step: str, engine: docker.DockerClient, images: dict[str, str], failure: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """KFP takes a container for a success that the engine removed before KFP asks for its exit code."""

    @dsl.component(base_image=images[step], install_kfp_package=False)
    def fail() -> None:
        import sys

        print("told")
        sys.exit(3)

    started = engine.containers.run
    taken = []
    for late in (0.0, 0.0, 20.0):

        def run_and_wait(*arguments: Any, late: float = late, **named: Any) -> Any:
            container = started(*arguments, **named)
            time.sleep(late)
            return container

        monkeypatch.setattr(type(engine.containers), "run", staticmethod(run_and_wait))
        taken.append(run_task(fail, failure.parent))
        assert failure.read_text() == ""
        assert late or "told" in capsys.readouterr().out
        failure.unlink()
    assert taken[-1], "KFP no longer takes it for a success: kubeflow/pipelines#13332 is fixed"
    assert engine.containers.list(all=True) == []


def test_a_step_that_exceeds_its_memory_limit_is_named(
    engine: docker.DockerClient, images: dict[str, str], failure: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dsl.component(base_image=images["data"], install_kfp_package=False)
    def greedy() -> None:
        from components.cli import task

        with task("train"):
            print(len(bytes(range(256)) * 10**7))

    # Nine tenths are 512 MiB.
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=596523236))
    run_task(greedy, failure.parent)  # KFP may take it for a success (the test above): the failure file decides
    with pytest.raises(ConfigError, match=r"^train ran out of memory \(512 MiB\): lower its batch"):
        raise _failure_of_task(failure, Path("run.log"), stopped=False)
    assert engine.containers.list(all=True) == []


@pytest.mark.parametrize(
    ("source", "remote", "store", "asked", "network"),
    [
        ("photographs", "", "", None, "none"),
        ("s3://photographs", "", "", None, "host"),
        ("photographs", "s3://versions/dvc", "", None, "host"),
        ("photographs", "", "http://127.0.0.1:5000", None, "host"),
        ("s3://photographs", "", "", "team", "team"),
        ("photographs", "", "sqlite:////elsewhere/mlflow.db", None, "refused"),
    ],
)
def test_containers_have_a_network_only_if_a_remote_address_is_given(  # noqa: PLR0917
    source: str, remote: str, store: str, asked: str | None, network: str,
    engine: docker.DockerClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    engine.ping()
    (tmp_path / "photographs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BEBYGAN_PARENT_RUN", "a-run")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store or f"sqlite:///{tmp_path}/workspace/mlflow.db")
    job = Job(load_params(ROOT / "params.yaml", []), source, "1", "1")
    refused = pytest.raises(ConfigError, match=r"containers do not see /elsewhere/mlflow\.db")
    with (
        refused if network == "refused" else contextlib.nullcontext(),
        in_containers(job, [tmp_path / "workspace"], [remote], asked) as runner,
    ):
        assert runner.container_run_args["network_mode"] == network


def test_a_run_that_is_asked_to_stop_saves_its_training(
    seen: dict[str, dict[str, Any]], project: Path, engine: docker.DockerClient
) -> None:
    assert len(seen) == len(STEPS)
    checkpoints = project / "workspace" / "checkpoints"
    before = set(checkpoints.glob("train-*"))
    process = start(project, "pipelines.cli", "run", "--containers", "--set", "train.iterations=5000")
    while not any(path.is_file() for new in set(checkpoints.glob("train-*")) - before for path in new.rglob("*")):
        assert process.poll() is None, process.communicate()
    process.terminate()
    _, told = process.communicate()
    assert process.returncode == 75, told
    assert "error: train: stopped on request after iteration" in told
    assert engine.containers.list(all=True) == []


def test_images_of_other_sources_are_rejected(
    engine: docker.DockerClient,  # noqa: ARG001
    new_project: Callable[[str], Path],  # noqa: F811
) -> None:
    project = new_project("changed")
    with (project / "components" / "ingest" / "step.py").open("a") as file:
        file.write("\n# Changed since.\n")
    done = run_in_containers(project)
    assert done.code == 2
    assert "contains other sources than this machine: rebuild it by `make images`" in done.err
    shutil.rmtree(project)


def test_an_unreachable_engine_and_a_missing_image_are_reported(
    docker_host: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEBYGAN_TORCH_IMAGE", "bebygan-nowhere:1")
    done = run_in_containers(project, "--set", "train.seed=5")
    assert done.code == 4, done.err
    assert "bebygan-nowhere:1" in done.err
    assert "make images" in done.err
    monkeypatch.setenv("DOCKER_HOST", f"{docker_host}-gone")
    done = run_in_containers(project, "--set", "train.seed=5")
    assert done.code == 4, done.err
    assert f"the Docker engine at {docker_host}-gone failed" in done.err
