"""The content of the registry for the model that tests register."""

from components.tracking.client import mlflow_client
from components.tracking.registry import version_with_alias


def aliases() -> dict[str, str | None]:
    found = {alias: version_with_alias("tests", alias) for alias in ("champion", "challenger", "previous")}  # type: ignore[arg-type]
    return {alias: version.version if version else None for alias, version in found.items()}


def versions() -> int:
    return len(mlflow_client().search_model_versions("name='tests'"))
