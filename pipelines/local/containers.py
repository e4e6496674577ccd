"""Run the tasks of a local pipeline in containers, with the images that a cluster uses.

A task is not root, has no capabilities, writes only to the workspace and /tmp, and has a network only if the run uses a
bucket or a server. Import this module only to run containers: it needs Docker's client.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import docker  # type: ignore[import-untyped]
import psutil
from docker.errors import APIError, DockerException, ImageNotFound  # type: ignore[import-untyped]
from docker.types import Mount  # type: ignore[import-untyped]
from kfp.local import DockerRunner
from requests.exceptions import RequestException  # type: ignore[import-untyped]
from urllib3.exceptions import HTTPError

from bebygan.errors import ConfigError, ServiceError
from components.checkout import discriminator_beside, start_weights_file
from components.cli import FAILURE_FILE
from components.container_images import DATA_IMAGE, TORCH_IMAGE
from components.job import Job
from components.stores import folder_of
from components.tracking.address import database_file, tracking_uri
from components.tracking.provenance import code_hash

_FOLDER = Path("/app")
"""Working folder of the tasks in the images; relative paths start here."""
_USER = 1000
_RUN = "bebygan.run"
"""Label of a container: the run that it belongs to."""
_INHERITED = ("AWS_", "BEBYGAN_", "MLFLOW_", "OMP_NUM_THREADS")
_OF_THIS_MACHINE = ("BEBYGAN_CACHE", "BEBYGAN_DATA_IMAGE", "BEBYGAN_TORCH_IMAGE")
_ENTRYPOINT = f"""
failure=${FAILURE_FILE}
[ -e "$failure" ] && exit 1
: > "$failure"
"$@"
code=$?
if [ $code = 0 ]; then rm -f "$failure"; exit; fi
: >> "$failure"
cd /sys/fs/cgroup
if cat memory.events memory/memory.oom_control 2>/dev/null | grep -q '^oom_kill [1-9]'; then
    cat memory.max memory/memory.limit_in_bytes > "$failure.memory" 2>/dev/null
fi
exit $code
"""
"""First process of a container. It leaves a file if the task fails, and one with the limit if memory ran out.

KFP's runner reports success if the engine has removed a failed container before the runner asks for its exit code
(kubeflow/pipelines#13332). Therefore `pipelines.local.run` reads the file, and no later task starts.
"""
_ASK_TO_STOP = """
for process in $(grep -Lx sh /proc/[0-9]*/comm); do process=${process%/comm}; kill -TERM ${process#/proc/}; done
"""
"""The shells around a task must not end: they return its exit code."""


@contextmanager
def _engine_errors() -> Iterator[None]:
    """Translate the errors of the engine and its client.

    Raises:
        ServiceError: the engine is unreachable or refuses a request, or an image is missing.
    """
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
            f"the Docker engine at {where} failed ({reason}): check that it runs and that you may use it, or run "
            "without --containers"
        ) from error


@cache
def _client() -> docker.DockerClient:
    return docker.from_env()


def _hand_over(folder: Path) -> None:
    """Give a folder to the user of the tasks if this process is root; tasks never run as root."""
    if os.getuid():
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, _USER, _USER, follow_symlinks=False)


def code_of_images() -> str:
    """Return the digests of both images, which identify the code of a run in containers.

    Raises:
        ServiceError: the engine is unreachable, or an image is missing.
        ConfigError: an image contains other sources than this machine.
    """
    digests = []
    with _engine_errors():
        for image in (DATA_IMAGE, TORCH_IMAGE):
            digests.append(_client().images.get(image).id)
            inside = _client().containers.run(
                image,
                ["python3", "-c", "from components.tracking.provenance import code_hash; print(code_hash())"],
                remove=True,
                network_mode="none",
            )
            if inside.decode().strip() != code_hash():
                raise ConfigError(
                    f"the image {image} contains other sources than this machine: rebuild it by `make images`"
                )
    return "".join(digests)


def environment_of_tasks(variables: dict[str, str]) -> dict[str, str]:
    """Return the environment variables of this process that tasks inherit."""
    return {
        name: value for name, value in variables.items() if name.startswith(_INHERITED) and name not in _OF_THIS_MACHINE
    }


def mounts(written: list[Path], read: Iterable[str]) -> list[Mount]:
    """Return the mounts of a task.

    Args:
        written: folders that tasks write to.
        read: paths that tasks read, mounted read-only if they exist.
    """
    found = [Mount(str(folder), str(folder), type="bind") for folder in written]
    for path in {Path(path) for path in read if Path(path).exists()}:
        # Relative to the working folder of the task.
        target = Path(os.path.normpath(_FOLDER / path))
        if not any(target.is_relative_to(folder) for folder in written):
            found.append(Mount(str(target), str(path.resolve()), type="bind", read_only=True))
    return found


def network_mode(network: str | None, addresses: Iterable[str], *, server: bool) -> str:
    """Return the network of the tasks.

    Args:
        network: the requested one; None chooses the host's if the run needs one, else none.
        addresses: folders and buckets that the run uses.
        server: whether MLflow is a server.
    """
    needed = server or any(place and not folder_of(place) for place in addresses)
    return network or ("host" if needed else "none")


def _containers_of_this_run(*, running: bool) -> list[docker.models.containers.Container]:
    label = f"{_RUN}={os.environ['BEBYGAN_PARENT_RUN']}"
    found: list[docker.models.containers.Container] = _client().containers.list(
        all=not running, filters={"label": label}, ignore_removed=True
    )
    return found


@contextmanager
def in_containers(
    job: Job, written: Iterable[Path], places: Iterable[str], network: str | None
) -> Iterator[DockerRunner]:
    """Prepare the folders of the tasks, yield the runner that starts them, and remove remaining containers.

    Args:
        job: the job; its photographs, and its initial weights if they are a file, are mounted read-only.
        written: folders that tasks write to; the first is the workspace.
        places: more folders and addresses that tasks write to.
        network: see `network_mode`.

    Raises:
        ConfigError: containers cannot see MLflow's embedded store.
        ServiceError: the engine is unreachable or refuses a request.
    """
    workspace, *more = written
    places = list(places)
    folders = [workspace, *more, *filter(None, map(folder_of, places))]
    store = database_file(tracking_uri())
    if store is not None and not store.resolve().is_relative_to(workspace):
        raise ConfigError(f"containers do not see {store}: set MLFLOW_TRACKING_URI to a server or into {workspace}")
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        _hand_over(folder)
    environment = environment_of_tasks(dict(os.environ))
    named = [value for value in environment.values() if os.path.isabs(value)]
    weights = job.params_of_steps.warmup.weights
    start = start_weights_file(weights) if weights else None
    starts = [str(file) for file in (start, start and discriminator_beside(start)) if file]
    given = [place for place in (job.source, *starts) if folder_of(place)]
    memory = psutil.virtual_memory().total
    with _engine_errors():
        # Only steps in this image record its digest.
        environment["BEBYGAN_IMAGE"] = _client().images.get(TORCH_IMAGE).id
        try:
            yield DockerRunner(
                entrypoint=["sh", "-c", _ENTRYPOINT, "task"],
                user=f"{os.getuid() or _USER}:{os.getgid() or _USER}",
                read_only=True,
                # torch.compile executes files there.
                tmpfs={"/tmp": "exec"},  # noqa: S108 - inside the container
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                network_mode=network_mode(network, (job.source, *places), server=store is None),
                mem_limit=memory - memory // 10,
                mounts=mounts(folders, [*named, *given]),
                environment=environment,
                labels={_RUN: os.environ["BEBYGAN_PARENT_RUN"]},
            )
        finally:
            for container in _containers_of_this_run(running=False):
                # The engine may be removing it already.
                with suppress(APIError):
                    container.remove(force=True)
                with suppress(APIError, RequestException):
                    container.wait(condition="removed", timeout=10)


def ask_containers_to_stop() -> int:
    """Send SIGTERM to the tasks of this run, and return how many there are."""
    with _engine_errors():
        containers = _containers_of_this_run(running=True)
        for container in containers:
            container.exec_run(["sh", "-c", _ASK_TO_STOP])
    return len(containers)
