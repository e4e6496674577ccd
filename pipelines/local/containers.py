"""Run the tasks of a local pipeline in containers, each in its own, with the images that a cluster uses.

A task is no root, has no capabilities, can write to the workspace and /tmp alone, and reaches a network only where a
bucket or server is named.
"""

import codecs
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from bebygan.errors import ConfigError, ServiceError
from bebygan.files import sha256_of
from components.container_images import DATA_IMAGE, TORCH_IMAGE
from components.job import Job
from components.stores import folder_of
from components.tracking.address import tracking_uri
from components.tracking.provenance import code_hash

if TYPE_CHECKING:
    from docker import DockerClient  # type: ignore[import-untyped]
    from kfp.local import DockerRunner

_FOLDER = Path("/app")
"""Where tasks run inside the images, and what relative paths of theirs start from."""
_USER = 1000
_RUN = "bebygan.run"
"""Label of a container: which run it belongs to."""
_INHERITED = ("AWS_", "BEBYGAN_", "MLFLOW_", "OMP_NUM_THREADS")
_OF_THIS_MACHINE = ("BEBYGAN_CACHE", "BEBYGAN_DATA_IMAGE", "BEBYGAN_TORCH_IMAGE")


@contextmanager
def _engine_errors() -> Iterator[None]:
    """Turn what the engine and its client raise into one line.

    Raises:
        ServiceError: the engine is away or refuses; an image is missing.
    """
    from docker.errors import DockerException, ImageNotFound  # type: ignore[import-untyped] # noqa: PLC0415
    from requests.exceptions import RequestException  # type: ignore[import-untyped] # noqa: PLC0415
    from urllib3.exceptions import HTTPError  # noqa: PLC0415

    try:
        yield
    except ImageNotFound as error:
        raise ServiceError(
            f"the Docker engine has no such image ({error.explanation}): build it by `make images`, or name another in "
            "BEBYGAN_DATA_IMAGE or BEBYGAN_TORCH_IMAGE"
        ) from error
    except (DockerException, RequestException, HTTPError) as error:
        where = os.environ.get("DOCKER_HOST", "its usual socket")
        reason = " ".join(str(error).split())[:300]
        raise ServiceError(
            f"the Docker engine at {where} failed ({reason}): see that it runs and lets you in, or run without "
            "--containers"
        ) from error


@cache
def _client() -> "DockerClient":
    import docker  # noqa: PLC0415

    return docker.from_env()


def _user() -> int:
    """Return who tasks run as: whoever runs us, but never root."""
    return os.getuid() or _USER


def _hand_over(folder: Path) -> None:
    """Let tasks write to a folder where we are root and they are not."""
    if os.getuid():
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, _USER, _USER, follow_symlinks=False)


def _local(place: str) -> bool:
    return folder_of(place) is not None


def _store() -> Path | None:
    """Return the file of MLflow's embedded store, if that is what is used."""
    _, sqlite, database = tracking_uri().partition("sqlite:///")
    return Path(database).resolve() if sqlite else None


def job_in_containers(job: Job) -> Job:
    """Identify the code of a job by the images that will run it, and by its starting weights.

    Raises:
        ServiceError: the engine is away, or lacks an image.
        ConfigError: an image holds other sources than are here.
    """
    digest = hashlib.sha256()
    with _engine_errors():
        for image in (DATA_IMAGE, TORCH_IMAGE):
            digest.update(_client().images.get(image).id.encode())
            inside = _client().containers.run(
                image,
                ["python3", "-c", "from components.tracking.provenance import code_hash; print(code_hash())"],
                remove=True,
                network_mode="none",
            )
            if inside.decode().strip() != code_hash():
                raise ConfigError(
                    f"the image {image} holds other sources than are here: build it anew by `make images`"
                )
    weights = Path(job.params.warmup.weights or "")
    if weights.is_file():
        digest.update(sha256_of(weights).encode())
    return Job(job.params, job.source, job.source_version, digest.hexdigest())


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_INHERITED) and name not in _OF_THIS_MACHINE
    }


def _mounts(written: list[Path], read: Iterable[str]) -> list[Any]:
    """Return mounts of folders that tasks write to, and of what exists of the paths that they are given to read."""
    from docker.types import Mount  # type: ignore[import-untyped] # noqa: PLC0415

    mounts = [Mount(str(folder), str(folder), type="bind") for folder in written]
    for path in {Path(path) for path in read if Path(path).exists()}:
        # A task finds a relative path from its own working folder.
        target = Path(os.path.normpath(_FOLDER / path))
        if not any(target.is_relative_to(folder) for folder in written):
            mounts.append(Mount(str(target), str(path.resolve()), type="bind", read_only=True))
    return mounts


def _run_to_its_end(client: "DockerClient", image: str, command: list[str], **arguments: Any) -> int:
    """Run a container, print what it says, and return its exit code.

    Kubeflow's own function lets the engine remove the container, and takes one that is gone before it could ask for its
    exit code for a success (kubeflow/pipelines#13332).

    Raises:
        ConfigError: the task needed more memory than there is.
        ServiceError: the engine is away or refuses.
    """
    with _engine_errors():
        facts = {"BEBYGAN_IMAGE": client.images.get(image).id}
        environment = {**arguments.pop("environment", {}), **facts}
        container = client.containers.run(image, command, detach=True, environment=environment, **arguments)
        try:
            for text in codecs.iterdecode(container.logs(stream=True), "utf-8", errors="replace"):
                print(text, end="")
            code = int(container.wait()["StatusCode"])
            container.reload()
        finally:
            container.remove(force=True)
    if container.attrs["State"]["OOMKilled"]:
        step = command[command.index("--function_to_execute") + 1]
        raise ConfigError(
            f"{step} ran out of memory ({arguments['mem_limit'] >> 20} MiB): lower its batch, crop or shards"
        )
    return code


@contextmanager
def in_containers(
    job: Job, written: Iterable[Path], places: Iterable[str], network: str | None
) -> Iterator["DockerRunner"]:
    """Prepare the tasks' surroundings and yield the runner that starts them.

    Args:
        job: what is run; its photographs, and its starting weights where they are a file, are mounted read-only.
        written: folders that tasks write to; the first is the workspace. Where we are root they are handed over to the
            tasks' user.
        places: more that tasks write to, folders or addresses.
        network: of the engine; None for none at all where nothing remote is named, else the machine's own.

    Raises:
        ConfigError: MLflow's embedded store lies where containers do not see it.
        ServiceError: the engine is away.
    """
    from kfp import local  # noqa: PLC0415
    from kfp.local import docker_task_handler  # noqa: PLC0415

    workspace, *more = written
    places = list(places)
    folders = [workspace, *more, *(Path(place) for place in places if _local(place))]
    store = _store()
    if store is not None and not store.is_relative_to(workspace):
        raise ConfigError(f"containers do not see {store}: set MLFLOW_TRACKING_URI to a server or into {workspace}")
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        _hand_over(folder)
    environment = _environment()
    named = [value for value in environment.values() if os.path.isabs(value)]
    given = [place for place in (job.source, job.params.warmup.weights or "") if _local(place)]
    remote = store is None or any(place and not _local(place) for place in (job.source, *places))
    memory = psutil.virtual_memory().total
    with _engine_errors():
        _client().ping()
    kubeflows = docker_task_handler.run_docker_container
    docker_task_handler.run_docker_container = _run_to_its_end
    try:
        yield local.DockerRunner(
            user=f"{_user()}:{os.getgid() or _USER}",
            read_only=True,
            # Where torch.compile puts what it runs.
            tmpfs={"/tmp": "exec"},  # noqa: S108 - inside the container
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            network_mode=network or ("host" if remote else "none"),
            mem_limit=memory - memory // 10,
            mounts=_mounts(folders, [*named, *given]),
            environment=environment,
            labels={_RUN: os.environ["BEBYGAN_PARENT_RUN"]},
        )
    finally:
        docker_task_handler.run_docker_container = kubeflows


def ask_containers_to_stop() -> int:
    """Send SIGTERM to the tasks of this run, and return how many there are.

    The first process of a container is a shell, which neither ends by a signal nor passes it on: all others are told.
    """
    run = os.environ["BEBYGAN_PARENT_RUN"]
    with _engine_errors():
        containers = _client().containers.list(filters={"label": f"{_RUN}={run}"})
        for container in containers:
            container.exec_run(["sh", "-c", "kill -TERM -1"])
    return len(containers)
