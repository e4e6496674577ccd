"""What a server of Kubeflow Pipelines is asked to run."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

SERVICE_ACCOUNT = "bebygan-retrain"
"""Kubernetes service account of the pods of a run."""


@dataclass(frozen=True)
class CompiledPipeline:
    """A pipeline as Kubeflow reads it."""

    name: str
    content: bytes
    """YAML."""

    @cached_property
    def version(self) -> str:
        """Name of this version, at most 63 characters: the same for the same content, another one for other content."""
        return f"{self.name}-{hashlib.sha256(self.content).hexdigest()[:16]}"


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What a run is to do."""

    name: str
    """Shown to people; need not be unique."""
    pipeline: CompiledPipeline
    """Uploaded if this version does not exist on the server."""
    parameters: Mapping[str, str]
    """Inputs of the pipeline."""
    experiment: str
    """Name of Kubeflow's experiment; created if it does not exist."""
    service_account: str = SERVICE_ACCOUNT


@dataclass(frozen=True, kw_only=True)
class DeclaredSchedule(RunRequest):
    """What a recurring run is to do."""

    paused: bool
    cron: str | None
    """Six fields; None if `interval` is given."""
    interval: int | None
    """Seconds from one run to the next; None if `cron` is given."""
    concurrency: int
    """How many runs can be under way at once, 1 to 10."""
    catchup: bool
    """Whether runs that were missed are made up for."""

    @cached_property
    def specification(self) -> str:
        """SHA-256 over all of it but the name and `paused`, which can be changed in place."""
        content = vars(self) | {"pipeline": self.pipeline.version, "name": None, "paused": None}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=dict).encode()).hexdigest()

    @property
    def trigger(self) -> str:
        """When it starts, as `RecurringRun.trigger`."""
        return self.cron or f"every {self.interval} s"
