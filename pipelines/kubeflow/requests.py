"""Requests to Kubeflow Pipelines: a compiled pipeline with its inputs, once or on a schedule."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

SERVICE_ACCOUNT = "bebygan-retrain"
"""Kubernetes service account of the pods of a run."""


@dataclass(frozen=True)
class CompiledPipeline:
    """A pipeline compiled for Kubeflow."""

    name: str
    content: bytes
    """YAML."""

    @cached_property
    def version(self) -> str:
        """Name of this version, at most 63 characters, with a hash of the content."""
        return f"{self.name}-{hashlib.sha256(self.content).hexdigest()[:16]}"


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """A run to start."""

    name: str
    """Display name; need not be unique."""
    pipeline: CompiledPipeline
    """Uploaded if this version does not exist on the server."""
    parameters: Mapping[str, str]
    """Inputs of the pipeline."""
    experiment: str
    """Name of Kubeflow's experiment; created if it does not exist."""
    service_account: str = SERVICE_ACCOUNT


@dataclass(frozen=True, kw_only=True)
class DeclaredSchedule(RunRequest):
    """A schedule to create as a recurring run."""

    paused: bool
    cron: str | None
    """Six fields; None if `interval` is given."""
    interval: int | None
    """Seconds from one run to the next; None if `cron` is given."""
    concurrency: int
    """Number of runs that can be active at once, 1 to 10."""
    catchup: bool
    """Whether missed runs are started later."""

    @cached_property
    def specification(self) -> str:
        """SHA-256 of all fields except the name and `paused`, which does not need a new recurring run."""
        content = vars(self) | {"pipeline": self.pipeline.version, "name": None, "paused": None}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=dict).encode()).hexdigest()

    @property
    def trigger(self) -> str:
        """When it starts, as `RecurringRun.trigger`."""
        return self.cron or f"every {self.interval} s"
