"""Identity of a run: photographs, code and parameters. It shows whether the same run finished before."""

import hashlib
from dataclasses import dataclass

from bebygan.files import sha256_of
from components.checkout import start_weights_file
from components.config import GROUPS, Params, one_line_yaml, to_yaml
from components.stores.source import source_version
from components.tracking.provenance import code_hash, environment_hash


@dataclass(frozen=True)
class Job:
    """Identity of a run. Two runs of the same job make the same model."""

    params: Params
    source: str
    """Folder or s3:// prefix of photographs. Their location is not part of the identity, only their content is."""
    source_version: str
    code_version: str
    """On this machine a hash of sources, locked packages and starting weights, on a cluster the images' digests."""

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 over photographs, code and parameters."""
        parts = (self.source_version, self.code_version, to_yaml(self.params))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def tags(self) -> dict[str, str]:
        """Return the tags of the run of the whole pipeline in MLflow, in addition to its provenance."""
        return {
            "fingerprint": self.fingerprint,
            "source": self.source,
            "source_version": self.source_version,
            "code_version": self.code_version,
        }


def job_here(params: Params, source: str, code: str | None = None) -> Job:
    """Identify photographs, code and starting weights of a run on this machine.

    Args:
        params: of the run.
        source: see `Job.source`.
        code: identifies the code; None takes the hash of the sources and packages here.

    Raises:
        DataError, ServiceError: the photographs cannot be listed.
    """
    digest = hashlib.sha256((code or code_hash() + environment_hash()).encode())
    weights = start_weights_file(params.warmup.weights or "")
    if weights.is_file():
        digest.update(sha256_of(weights).encode())
    return Job(params, source, source_version(source), digest.hexdigest())


def groups_of(params: Params) -> dict[str, str]:
    """Return each group of parameters as one line of YAML, by its name, in the order of the steps."""
    return {group: one_line_yaml(getattr(params, group)) for group in GROUPS}


def inputs_of(params: Params) -> dict[str, str]:
    """Return the input of the pipeline for a cluster that holds the parameters, all in one line of YAML."""
    # KFP's compiler writes defaults into a comment, which holds one line.
    return {"params": one_line_yaml(params)}
