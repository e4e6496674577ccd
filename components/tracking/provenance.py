"""Provenance of a result: the facts that every run and every model version has as tags."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from functools import cache
from itertools import product
from pathlib import Path

from bebygan.files import checksums, json_digest
from bebygan.metrics.protocol import PROTOCOL
from components.config import digest, flatten, plain

UNKNOWN = "unknown"
BUILD_INFO = Path("/etc/bebygan.json")
"""Written when an image is built: {"git_sha": ..., "git_dirty": "true" or "false"}; there is no git inside."""
_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("bebygan", "components", "pipelines")


@cache
def code_hash() -> str:
    """Return the SHA-256 over paths and contents of all sources, which does not depend on git."""
    kinds = product(_PACKAGES, ("py", "html", "css", "js"))
    sources = (path for package, kind in kinds for path in (_ROOT / package).rglob(f"*.{kind}"))
    return json_digest(checksums(_ROOT, sources))


def environment_hash() -> str:
    """Return the SHA-256 of what the sources run with: the release of torch, and the lock file of this checkout."""
    lock = _ROOT / "requirements.lock"
    return hashlib.sha256(_version("torch").encode() + (lock.read_bytes() if lock.is_file() else b"")).hexdigest()


def _git(*arguments: str) -> str | None:
    """Return the output of git, or None if there is no git or no repository, or git fails."""
    try:
        result = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return None if result.returncode else result.stdout.strip()


def _git_facts() -> dict[str, str]:
    # A copy installed inside another project must not report that project's revision.
    if _git("ls-files", "--error-unmatch", __file__) is not None:
        changes = _git("status", "--porcelain", "--untracked-files=no")
        dirty = UNKNOWN if changes is None else str(bool(changes)).lower()
        return {"git_sha": _git("rev-parse", "HEAD") or UNKNOWN, "git_dirty": dirty}
    try:
        built = json.loads(BUILD_INFO.read_text())
    except (OSError, ValueError):
        built = {}
    return {name: str(built.get(name, UNKNOWN)) for name in ("git_sha", "git_dirty")}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _seed(params: object) -> str:
    seeds = [value for name, value in sorted(flatten(plain(params))) if name.rpartition(".")[2] == "seed"]
    return ", ".join(str(seed) for seed in seeds) or "none"


def provenance(params: object, data_version: str | None = None) -> dict[str, str]:
    """Return the facts of a run of this process, each as text, or "unknown".

    Args:
        params: of the step, a group or all of them.
        data_version: of the photographs, if known.

    Returns:
        git_sha, git_dirty, code_hash, data_version, params_hash, image_digest (environment BEBYGAN_IMAGE), kfp_run_id
        (environment KFP_RUN_ID), seed ("none" if the step has none), metric_protocol (a hash of the definitions),
        python_version, torch_version.
    """
    return {
        **_git_facts(),
        "code_hash": code_hash(),
        "data_version": data_version or UNKNOWN,
        "params_hash": digest(params),
        "image_digest": os.environ.get("BEBYGAN_IMAGE") or UNKNOWN,
        "kfp_run_id": os.environ.get("KFP_RUN_ID") or UNKNOWN,
        "seed": _seed(params),
        "metric_protocol": json_digest(PROTOCOL)[:16],
        "python_version": platform.python_version(),
        "torch_version": _version("torch"),
    }
