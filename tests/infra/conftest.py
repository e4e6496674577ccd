"""A Docker engine of our own, the images of the steps built by it, and the manifests of a cluster.

Engine and images stay in the user's cache folder, so that a second test session starts the engine and builds nothing.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipelines.kubeflow.manifests import build
from tests.infra.manifest_checks import Manifest

ROOT = Path(__file__).parents[2]
BASE = "python:3.11-slim"
KUBERNETES = ROOT / "infra" / "kubernetes"
OVERLAYS = ("single-node", "production")
COMPONENTS = sorted(each.parent.name for each in (KUBERNETES / "components").glob("*/kustomization.yaml"))
IMAGES = {"data": "bebygan-data-python:latest", "torch": "bebygan-torch-python:latest"}
# Nobody fetches the public base image here: this is its stand-in, of the same Debian and Python.
DEBOOTSTRAP = ("--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm")
LEFT_OUT = (
    "./dev/*",
    "./usr/share/doc",
    "./usr/share/locale",
    "./usr/share/man",
    "./var/cache/apt",
    "./var/lib/apt/lists",
)


def _install_engine() -> None:
    missing = [program for program in ("dockerd", "docker", "debootstrap") if shutil.which(program) is None]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        pytest.skip(f"there is no {missing[0]} here, and no apt-get to install it with")
    for command in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", "docker.io", "debootstrap"]):
        subprocess.run(["apt-get", *command], check=True, capture_output=True)


def _import_base(folder: Path) -> None:
    root = folder / "base"
    shutil.rmtree(root, ignore_errors=True)
    variant, include, suite = DEBOOTSTRAP
    subprocess.run(["debootstrap", variant, include, suite, str(root)], check=True, capture_output=True)
    packed = subprocess.Popen(
        ["tar", "-C", str(root), *(f"--exclude={path}" for path in LEFT_OUT), "-c", "."], stdout=subprocess.PIPE
    )
    command = ["docker", "import", "--change", 'CMD ["python3"]', "-", BASE]
    subprocess.run(command, stdin=packed.stdout, check=True, capture_output=True)
    assert packed.wait() == 0
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def docker_host() -> Iterator[str]:
    """Address of the engine, which the environment names from now on; it has a base image, and no network."""
    if os.geteuid():
        pytest.skip("starting a Docker engine takes root")
    _install_engine()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bebygan" / "tests" / "docker"
    cache.mkdir(parents=True, exist_ok=True)
    # The address of a socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="docker-"))
    address = f"unix://{folder / 'socket'}"
    with (
        (cache / "lock").open("w") as lock,
        (folder / "log").open("w") as log,
        pytest.MonkeyPatch.context() as environment,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        engine = subprocess.Popen(
            [
                "dockerd", "--host", address, f"--data-root={cache / 'engine'}", f"--exec-root={folder / 'exec'}",
                f"--pidfile={folder / 'pid'}", "--iptables=false", "--ip6tables=false", "--bridge=none",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
        environment.setenv("DOCKER_HOST", address)
        try:
            deadline = time.monotonic() + 60
            while subprocess.run(["docker", "version"], check=False, capture_output=True).returncode:
                assert engine.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
            if subprocess.run(["docker", "image", "inspect", BASE], check=False, capture_output=True).returncode:
                _import_base(cache)
            # What sessions that were killed, and builds of earlier days, left.
            for command in (["container", "prune", "--force"], ["image", "prune", "--force", "--filter", "until=72h"]):
                subprocess.run(["docker", *command], check=True, capture_output=True)
            yield address
        finally:
            engine.terminate()
            engine.wait()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def images(docker_host: str) -> dict[str, str]:  # noqa: ARG001
    """Names of the data image and the torch image, as `make images` has built them."""
    binaries = os.path.relpath(Path(sys.executable).parent, ROOT)
    built = subprocess.run(
        ["make", "--silent", "--old-file=.venv/installed", f"BIN={binaries}", f"BASE={BASE}", "images"],
        cwd=ROOT, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout[-4000:] + built.stderr[-4000:]
    return IMAGES


@pytest.fixture(scope="session")
def secrets() -> list[Manifest]:
    """The Secrets that the single node's script prints, and those that users create."""
    printed = subprocess.run(
        ["sh", KUBERNETES / "overlays/single-node/secrets.sh"], capture_output=True, text=True, check=True
    )
    return list(yaml.safe_load_all(printed.stdout))


def with_every_component(overlay: str, folder: Path) -> list[Manifest]:
    """What an overlay makes with all components, whether it takes them by itself or not."""
    base = KUBERNETES / "overlays" / overlay
    already = yaml.safe_load((base / "kustomization.yaml").read_text()).get("components", [])
    missing = [name for name in COMPONENTS if f"../../components/{name}" not in already]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "bebygan",
        "resources": [os.path.relpath(base, folder)],
        "components": [os.path.relpath(KUBERNETES / "components" / name, folder) for name in missing],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return list(yaml.safe_load_all(build(folder)))


@pytest.fixture(scope="session", params=OVERLAYS)
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    return with_every_component(request.param, tmp_path_factory.mktemp(request.param))
