"""Address of the tracking server: MLFLOW_TRACKING_URI, or an SQLite database in the workspace."""

import os
import re
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import urlsplit

from bebygan.errors import ConfigError
from bebygan.files import storage_errors

VARIABLE = "MLFLOW_TRACKING_URI"
WORKSPACE = Path("workspace")
_SQLITE = "sqlite:///"
_DATABASES = re.compile(r"(postgresql|mysql|mssql)(\+\w+)?")
_CREDENTIALS = re.compile(r"(?<=://)[^\s'\"]*@|(?<=password=)[^\s'\"&]+")


def without_password(text: str) -> str:
    """Remove users and passwords from all URIs in a text."""
    return _CREDENTIALS.sub("", text)


def _is_known(uri: str) -> bool:
    """Return whether MLflow has a store for an address, except folders, which older versions used."""
    scheme, mark, rest = uri.partition("://")
    if scheme in ("http", "https"):
        try:
            return bool(urlsplit(uri).hostname) and urlsplit(uri).port != 0
        except ValueError:
            return False
    if scheme == "sqlite":
        return rest.startswith("/") and len(rest) > 1
    if scheme in ("databricks", "databricks-uc", "uc"):
        return True
    plugins = {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}
    return bool(mark and rest and (_DATABASES.fullmatch(scheme) or scheme in plugins))


def database_file(uri: str) -> Path | None:
    """Return the file of an SQLite database, or None for other addresses."""
    return Path(uri.removeprefix(_SQLITE).partition("?")[0]) if uri.startswith(_SQLITE) else None


def tracking_uri(workspace: Path = WORKSPACE) -> str:
    """Return MLFLOW_TRACKING_URI, or the address of mlflow.db in the workspace, whose folder is created.

    A relative path of an SQLite database becomes absolute, also in the environment: child processes with another
    working folder must open the same database.

    Raises:
        ConfigError: MLFLOW_TRACKING_URI is not an address that MLflow knows.
        StorageError: the workspace cannot be written.
    """
    uri = os.environ.get(VARIABLE, "").strip()
    if not uri:
        with storage_errors(workspace):
            workspace.mkdir(parents=True, exist_ok=True)
        return f"{_SQLITE}{(workspace / 'mlflow.db').resolve()}"
    if not _is_known(uri):
        raise ConfigError(
            f"{VARIABLE} {without_password(uri)} is not an address of MLflow: name a server (http://host:5000 or "
            "https://host), or a database (sqlite:///path/mlflow.db or postgresql://host/name)"
        )
    if (file := database_file(uri)) and not file.is_absolute():
        uri = f"{_SQLITE}{Path.cwd() / uri.removeprefix(_SQLITE)}"
        os.environ[VARIABLE] = uri
    return uri
