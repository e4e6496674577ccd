"""Reading MLflow's model registry."""

import datetime
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import mlflow
from mlflow.entities.model_registry import ModelVersion as MlflowVersion
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException

from bebygan import pretrained
from bebygan.errors import WeightsError
from bebygan.files import sha256_of
from bebygan.registered_model import DISCRIMINATOR, START, WEIGHTS, check_unchanged, damaged
from components.config import Metric
from components.tracking.client import MlflowClient, tracker
from components.tracking.ledger import HEAD, check_complete
from components.tracking.signatures import VERIFYING_KEY, check_signature, configured

Alias = Literal["champion", "challenger", "previous"]


PROMOTED = "promoted"
"""Tag of a version whose promotion is complete. A repeated registration does not promote it again."""
ANCHOR, ANCHOR_VALUE = "anchor", "anchor."
"""Tags of a version: data version of the anchor that it was measured on, and how the names of its means begin."""
ROLLED_BACK = "rolled_back"
"""Tag of a version that a rollback replaced: when, by whom and why. A registration does not promote its weights."""
_LAST_VERSION = 2**31 - 1
"""Largest number that MLflow's databases can be asked for. No version has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """A version of a registered model."""

    model: str
    version: str
    run_id: str
    tags: Mapping[str, str]
    """Provenance, verdict, metrics and the weights' SHA-256; see `components.register.step`."""
    created: datetime.datetime | None = field(default=None, compare=False)
    """UTC."""
    description: str = field(default="", compare=False)

    @property
    def uri(self) -> str:
        """Return the address from which MLflow loads it."""
        return f"models:/{self.model}/{self.version}"


def metric_tags(means: Mapping[Metric, float]) -> dict[str, str]:
    """Return the tags of a version that tell its metrics."""
    return {f"metric.{name}": f"{value:.6g}" for name, value in means.items()}


def as_version(found: MlflowVersion) -> ModelVersion:
    """Convert MLflow's answer."""
    milliseconds = found.creation_timestamp
    return ModelVersion(
        model=found.name,
        version=str(found.version),
        run_id=found.run_id or "",
        tags=dict(found.tags or {}),
        created=datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC) if milliseconds else None,
        description=found.description or "",
    )


def _model(client: MlflowClient, model: str) -> RegisteredModel | None:
    try:
        return client.get_registered_model(model)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def check_ledger(ledger: str, model: str) -> None:
    """Check that a ledger holds the entry that the registry knows as the newest, or newer ones.

    Raises:
        DataError: see `components.tracking.ledger.check_complete`.
        ServiceError: the registry or the bucket is unreachable or refuses.
    """
    with tracker(f"asking for the tags of {model}") as client:
        found = _model(client, model)
    if found and (head := found.tags.get(HEAD)):
        check_complete(ledger, model, head)


def version_with_alias(model: str, alias: Alias) -> ModelVersion | None:
    """Return the version that has an alias, or None.

    Raises:
        ServiceError: the registry is unreachable or refuses.
    """
    with tracker(f"asking for the {alias} of {model}") as client:
        try:
            return as_version(client.get_model_version_by_alias(model, alias))
        except MlflowException as error:
            # MLflow reports an alias that a model does not have as an invalid parameter.
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            # A server with a login denies permission for a model that does not exist.
            if error.error_code == "PERMISSION_DENIED" and _model(client, model) is None:
                return None
            raise


def champion(model: str) -> ModelVersion | None:
    """Return the version that has the alias champion, or None; see `version_with_alias`."""
    return version_with_alias(model, "champion")


def find_version(reference: str, model: str) -> ModelVersion:
    """Return the version that a user names.

    Args:
        reference: a number, an alias such as champion, or MLflow's models:/NAME/NUMBER or models:/NAME@ALIAS.
        model: registered model of a number or an alias.

    Raises:
        WeightsError: there is no such version.
        ServiceError: the registry is unreachable or refuses.
    """
    if match := re.fullmatch(r"models:/([^/@]+)[/@]([^/@]+)", reference):
        model, reference = match[1], match[2]
    by_number = reference.isdecimal()
    what = f"version {reference}" if by_number else reference or "version without a name"
    with tracker(f"looking for {what} of {model}") as client:
        try:
            if by_number:
                found = client.get_model_version(model, str(min(int(reference), _LAST_VERSION)))
            else:
                found = client.get_model_version_by_alias(model, reference)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            named = _model(client, model)
            gone = named.aliases.get(reference) if named else None
            problem = f"has no {what} in this registry"
            if gone:
                problem = f"has the alias {reference} on version {gone}, which does not exist"
            raise WeightsError(
                f"the model {model} {problem}: name one that `bebygan models` shows, or train one with `bebygan run`"
            ) from error
    return as_version(found)


def all_versions(model: str, **tags: str) -> list[ModelVersion]:
    """Return the versions of a model that have all of these tags, oldest first.

    Raises:
        ServiceError: the registry is unreachable or refuses.
    """
    wanted = " and ".join([f"name='{model}'", *(f"tags.{name} = '{value}'" for name, value in tags.items())])
    found: list[ModelVersion] = []
    token = None
    with tracker(f"looking for the versions of {model}") as client:
        while True:
            page = client.search_model_versions(wanted, page_token=token)
            found += map(as_version, page)
            if not (token := page.token):
                return sorted(found, key=lambda version: int(version.version))


def aliases_of(model: str) -> dict[str, str]:
    """Return the version by alias; {} if there is no such model.

    Raises:
        ServiceError: the registry is unreachable or refuses.
    """
    with tracker(f"asking for the aliases of {model}") as client:
        found = _model(client, model)
    return {alias: str(version) for alias, version in found.aliases.items()} if found else {}


def names_of(version: ModelVersion, aliases: Mapping[str, str]) -> list[str]:
    """Return the aliases of a version, given those of `aliases_of`."""
    return sorted(alias for alias, number in aliases.items() if number == version.version)


def lost_champion(model: str) -> str | None:
    """Return what shows that a model without a champion had one, or None if its versions were never promoted.

    Call it for a model that was registered: without versions it has lost them.

    Raises:
        ServiceError: the registry is unreachable or refuses.
    """
    versions = all_versions(model)
    if not versions:
        return "its versions were deleted"
    for version in versions:
        if PROMOTED in version.tags:
            return f"version {version.version} was promoted and lost the alias champion"
        if (before := version.tags.get("compared_with_champion", "none")) != "none":
            return f"version {before}, which version {version.version} was compared with, lost the alias or was deleted"
    return None


def check_rights(model: str) -> None:
    """Check that this user may create versions of a model and move its aliases; leave nothing behind.

    Setting a tag of the model needs the same permission. If there is no model yet, one of another name is created and
    deleted.

    Raises:
        ServiceError: the registry is unreachable or refuses.
    """
    trial = f"preflight-{uuid.uuid4().hex}"
    with tracker(f"trying whether {model} may be changed in the registry") as client:
        if client.search_registered_models(f"name='{model}'"):
            client.set_registered_model_tag(model, trial, "")
            client.delete_registered_model_tag(model, trial)
        else:
            client.create_registered_model(trial)
            client.delete_registered_model(trial)


def download_generator(version: ModelVersion, folder: Path, name: str = WEIGHTS) -> Path:
    """Fetch the generator's weights of a version into a folder and return the file's path.

    Args:
        version: in the registry.
        folder: exists.
        name: `WEIGHTS`, or `START` for the generator that its training started from.

    Raises:
        ServiceError: the registry or its artifact store is unreachable, refuses, or has lost the file.
        WeightsError: the file is not the one that was registered, or a signature is required and does not verify.
        ConfigError: see `components.tracking.signatures.check_keys`.
    """
    if configured(VERIFYING_KEY):
        return _fetch(version, folder) / name
    with tracker(f"fetching the weights of {version.uri}"):
        found = Path(mlflow.artifacts.download_artifacts(f"{version.uri}/{name}", dst_path=str(folder)))
    recorded = "weights_sha256" if name == WEIGHTS else "start_sha256"
    if version.tags.get(recorded, (digest := sha256_of(found))) != digest:
        raise damaged(version.uri, f"its weights have SHA-256 {digest[:12]}..., another was registered")
    return found


def download_start(version: ModelVersion, folder: Path) -> Path:
    """Return the path of the weights that a version's training started from; fetch them into a folder if necessary.

    Raises:
        ServiceError, ConfigError: as `download_generator`.
        WeightsError: they are damaged, or cannot be had.
    """
    tags = version.tags
    if name := tags.get("train.start_name"):
        return pretrained.weights_file(name)
    if "start_sha256" in tags:
        return download_generator(version, folder, START)
    for before in all_versions(version.model, weights_sha256=tags["train.start"]) if "train.start" in tags else ():
        return download_generator(before, folder)
    raise WeightsError(
        f"the weights that the training of {version.uri} started from are not in the registry: leave --fidelity out, "
        "or name a version of a later training"
    )


def _fetch(version: ModelVersion, folder: Path) -> Path:
    with tracker(f"fetching {version.uri}"):
        model = Path(mlflow.artifacts.download_artifacts(version.uri, dst_path=str(folder)))
    check_unchanged(model, version.tags, version.uri)
    check_signature(model, version.uri)
    return model


@contextmanager
def fetched(version: ModelVersion) -> Iterator[Path]:
    """Yield a folder with a version's files, whose weights and code have the digests in its tags.

    Raises:
        ServiceError, ConfigError: as `download_generator`.
        WeightsError: a file is missing, is not the one that was registered, or a required signature does not verify.
    """
    with tempfile.TemporaryDirectory(prefix="model-") as scratch:
        yield _fetch(version, Path(scratch))


def write_start(version: ModelVersion, folder: Path) -> None:
    """Copy the weights from which a training continues into a folder: generator, and discriminator if there is one.

    Raises:
        ServiceError, WeightsError: as `fetched`.
    """
    with fetched(version) as model:
        for name in (WEIGHTS, DISCRIMINATOR):
            if (model / name).is_file():
                shutil.copyfile(model / name, folder / Path(name).name)


def verify(version: ModelVersion) -> None:
    """Fetch a version's files and compare weights and code with the digests in its tags; raises as `fetched`."""
    with fetched(version):
        pass
