"""Identity of a run: photographs, code and parameters. It shows whether the same run finished before."""

import hashlib
from dataclasses import dataclass, replace

from components.config import GROUPS, Params, one_line_yaml, to_yaml


@dataclass(frozen=True)
class Job:
    """Identity of a run. Two runs of the same job make the same model."""

    params: Params
    source: str
    """Folder or s3:// prefix of photographs. Their location is not part of the identity, only their content is."""
    source_version: str
    code_version: str
    """On this machine a hash of sources, locked packages and starting weights, on a cluster the images' digests."""
    start: str = ""
    """Registered version whose training it continues; see `components.identify.start_of`."""

    @property
    def recipe(self) -> str:
        """Return the SHA-256 over photographs, code and parameters."""
        parts = (self.source_version, self.code_version, to_yaml(self.params))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 over photographs, code, parameters, and the version that the training continues."""
        return hashlib.sha256(f"{self.recipe}\n{self.start}".encode()).hexdigest() if self.start else self.recipe

    @property
    def tags(self) -> dict[str, str]:
        """Return the tags of the run of the whole pipeline in MLflow, in addition to its provenance."""
        return {
            "fingerprint": self.fingerprint,
            "source": self.source,
            "source_version": self.source_version,
            "code_version": self.code_version,
            **({"recipe": self.recipe, "start": self.start} if self.start else {}),
        }

    @property
    def params_of_steps(self) -> Params:
        """Return the parameters that the steps get."""
        return with_start(self.params, self.start)


def with_start(params: Params, start: str) -> Params:
    """Return parameters with which the warm-up step delivers what `train.start` names.

    Args:
        params: of the run.
        start: from `components.identify.start_of`.
    """
    weights = start or ("" if params.train.start in ("warmup", "champion") else params.train.start)
    return replace(params, warmup=replace(params.warmup, weights=weights, iterations=0)) if weights else params


def groups_of(params: Params) -> dict[str, str]:
    """Return each group of parameters as one line of YAML, by its name, in the order of the steps."""
    return {group: one_line_yaml(getattr(params, group)) for group in GROUPS}


def inputs_of(params: Params) -> dict[str, str]:
    """Return the input of the pipeline for a cluster that holds the parameters, all in one line of YAML."""
    # KFP's compiler writes defaults into a comment, which holds one line.
    return {"params": one_line_yaml(params)}
