"""Identify the job of a run on this machine: its photographs, code and weights, and the version that it continues."""

import hashlib

from bebygan.errors import ServiceError
from bebygan.files import sha256_of
from components.checkout import discriminator_beside, start_weights_file
from components.config import Params
from components.job import Job, with_start
from components.progress import say
from components.stores.source import source_version
from components.tracking.provenance import code_hash, environment_hash
from components.tracking.registry import all_versions, champion, find_version, lost_champion


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
    for file in (weights, discriminator_beside(weights)):
        if file and file.is_file():
            digest.update(sha256_of(file).encode())
    return Job(params, source, source_version(source), digest.hexdigest(), start_of(params))
