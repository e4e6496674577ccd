"""Identity of a run: photographs, code and parameters. It shows whether the same run finished before."""

import hashlib
from dataclasses import dataclass, replace

from bebygan.errors import ServiceError
from bebygan.files import sha256_of
from components.checkout import start_weights_file
from components.config import GROUPS, Params, one_line_yaml, to_yaml
from components.progress import say
from components.stores.source import source_version
from components.tracking.provenance import code_hash, environment_hash
from components.tracking.registry import all_versions, champion, find_version, lost_champion


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
    """Registered version whose training it continues; see `start_of`."""

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


def start_of(params: Params) -> str:
    """Return the registered version that `train.start` means, as models:/NAME/VERSION#SHA-256; "" for another start.

    Raises:
        ServiceError: the registry is unreachable or refuses, or it lost the champion.
        WeightsError: there is no such version.
    """
    model, start = params.evaluate.model_name, params.train.start
    if start.startswith("models:/"):
        version = find_version(start, model)
    elif start != "champion":
        return ""
    elif (reigning := champion(model)) is not None:
        version = reigning
    elif all_versions(model) and (lost := lost_champion(model)):
        raise ServiceError(
            f"train.start is champion, but {model} lost its champion ({lost}): give a version the alias champion, or "
            "set train.start to warmup"
        )
    else:
        say("train.start is champion, and there is no champion yet: training starts from the warm-up")
        return ""
    return f"{version.uri}#{version.tags.get('weights_sha256', '')}"


def with_start(params: Params, start: str) -> Params:
    """Return parameters with which the warm-up step delivers what `train.start` names.

    Args:
        params: of the run.
        start: from `start_of`.
    """
    weights = start or ("" if params.train.start in ("warmup", "champion") else params.train.start)
    return replace(params, warmup=replace(params.warmup, weights=weights, iterations=0)) if weights else params


def job_here(params: Params, source: str, code: str | None = None) -> Job:
    """Identify photographs, code and starting weights of a run on this machine.

    Args:
        params: of the run.
        source: see `Job.source`.
        code: identifies the code; None takes the hash of the sources and packages here.

    Raises:
        DataError, ServiceError: the photographs cannot be listed.
        WeightsError, ServiceError: see `start_of`.
    """
    digest = hashlib.sha256((code or code_hash() + environment_hash()).encode())
    weights = start_weights_file(with_start(params, "").warmup.weights or "")
    if weights.is_file():
        digest.update(sha256_of(weights).encode())
    return Job(params, source, source_version(source), digest.hexdigest(), start_of(params))


def groups_of(params: Params) -> dict[str, str]:
    """Return each group of parameters as one line of YAML, by its name, in the order of the steps."""
    return {group: one_line_yaml(getattr(params, group)) for group in GROUPS}


def inputs_of(params: Params) -> dict[str, str]:
    """Return the input of the pipeline for a cluster that holds the parameters, all in one line of YAML."""
    # KFP's compiler writes defaults into a comment, which holds one line.
    return {"params": one_line_yaml(params)}
