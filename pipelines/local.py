"""Run the pipeline here, through Kubeflow's local runner, as processes of this Python environment."""

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bebygan.errors import BebyganError, ConfigError, DataError, ServiceError, StorageError, WeightsError
from bebygan.files import sha256_of
from components.common.cli import FAILURE_FILE
from components.common.config import GROUPS, Params, to_yaml
from components.common.progress import TERMINAL
from components.common.provenance import code_hash
from components.common.registry import ModelVersion, champion
from components.common.tracking import finished_run, step_run
from components.ingest.source import source_version

_ERRORS: tuple[type[BebyganError], ...] = (ConfigError, DataError, ServiceError, WeightsError, StorageError)


@dataclass(frozen=True)
class Job:
    """What a run is made of. Two runs of the same job make the same model."""

    params: Params
    source: str
    source_version: str
    code_version: str

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 over photographs, code and parameters."""
        parts = (self.source_version, self.code_version, to_yaml(self.params))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What a run left behind."""

    report: Path
    """Folder that the evaluate step wrote."""
    registration: Path
    """Folder that the register step wrote."""


def job(params: Params, source: str) -> Job:
    """Identify a run's photographs, code and starting weights.

    Raises:
        DataError, ServiceError: the photographs cannot be listed.
    """
    digest = hashlib.sha256(code_hash().encode())
    weights = Path(params.warmup.weights or "")
    if weights.is_file():
        digest.update(sha256_of(weights).encode())
    return Job(params, source, source_version(source), digest.hexdigest())


def unchanged(job: Job) -> ModelVersion | None:
    """Return the champion when this very job has run to its end, else None."""
    reigning = champion(job.params.evaluate.model_name)
    return reigning if reigning and finished_run(job.fingerprint) else None


@contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    """Set environment variables, which the tasks inherit, and put back what was there."""
    before = {name: os.environ.get(name) for name in values}

    def apply(wanted: dict[str, str | None]) -> None:
        for name, value in wanted.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    apply(values)
    try:
        yield
    finally:
        apply(before)


def _raise_task_error(path: Path, error: Exception) -> None:
    """Raise what the failed task left for us, in place of the runner's words."""
    if not path.exists():
        return
    failure = json.loads(path.read_text())
    kind = next((kind for kind in _ERRORS if kind.exit_code == failure["exit_code"]), BebyganError)
    raise kind(failure["message"]) from error


def run(job: Job, workspace: Path, remote: str) -> Outcome:
    """Run all steps of a job, tracked as one parent run in MLflow.

    Args:
        job: what to run.
        workspace: folder for the steps' outputs, caches and checkpoints.
        remote: DVC remote that the data version is pushed to; empty to push nowhere.

    Raises:
        BebyganError: the one that a step failed with.
    """
    # Kubeflow takes seconds to import: not before it is needed.
    from kfp import local  # noqa: PLC0415

    from pipelines.retrain import retrain  # noqa: PLC0415

    workspace = workspace.resolve()
    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(workspace / "pipeline"),
        workspace_root=None,
        enable_caching=True,
        cache_root=str(workspace / "cache"),
    )
    logging.getLogger("kfp").setLevel(logging.WARNING)
    terminal = os.ttyname(sys.stderr.fileno()) if sys.stderr.isatty() else None
    with (
        tempfile.TemporaryDirectory() as scratch,
        step_run("retrain", job.params, tags={"fingerprint": job.fingerprint, "source": job.source}) as parent,
        _environment(
            BEBYGAN_PARENT_RUN=parent.run_id, **{FAILURE_FILE: str(Path(scratch) / "failure.json"), TERMINAL: terminal}
        ),
    ):
        try:
            finished = retrain(
                source=job.source,
                source_version=job.source_version,
                code_version=job.code_version,
                remote=remote,
                checkpoints=str(workspace / "checkpoints"),
                **{f"{group}_params": to_yaml(getattr(job.params, group)) for group in GROUPS},
            )
        except RuntimeError as error:
            _raise_task_error(Path(scratch) / "failure.json", error)
            raise
    outputs = {name: Path(artifact.path) for name, artifact in finished.outputs.items()}
    return Outcome(outputs["evaluation"], outputs["registration"])


def publish(outcome: Outcome, workspace: Path) -> Path:
    """Copy the report of a run to where the newest one is always found, and return its page."""
    target = workspace / "report"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(outcome.report, target)
    return target / "report.html"
