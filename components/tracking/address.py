"""Address of the tracking server: MLFLOW_TRACKING_URI, or an SQLite database in the workspace."""

import os
import re
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bebygan.errors import ConfigError, WeightsError
from bebygan.files import storage_errors

VARIABLE = "MLFLOW_TRACKING_URI"
_REGISTRY = "MLFLOW_REGISTRY_URI"
WORKSPACE = Path("workspace")
_SQLITE = re.compile(r"sqlite(\+pysqlite)?:///([^?]*)")
_DATABASES = re.compile(r"(postgresql|mysql|mssql)(\+\w+)?")


def _names_database(uri: str) -> bool:
    # A tenth of a second to import, and most addresses are not those of a database server.
    sqlalchemy = import_module("sqlalchemy")
    try:
        return bool(sqlalchemy.make_url(uri))
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return False


def _is_known(uri: str) -> bool:
    """Return whether MLflow has a store for an address, except folders, which older versions used."""
    scheme, mark, rest = uri.partition("://")
    try:
        if scheme in ("http", "https"):
            return bool(urlsplit(uri).hostname) and urlsplit(uri).port != 0
        if _DATABASES.fullmatch(scheme):
            return bool(rest) and _names_database(uri)
    except ValueError:
        return False
    if scheme in ("sqlite", "sqlite+pysqlite"):
        return rest.startswith("/") and len(rest) > 1
    if scheme in ("databricks", "databricks-uc", "uc"):
        return True
    plugins = {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}
    return bool(mark and rest and scheme in plugins)


def is_database_server(uri: str) -> bool:
    """Return whether an address is that of a database server, such as PostgreSQL."""
    return bool(_DATABASES.fullmatch(uri.partition("://")[0]))


def with_driver(uri: str) -> str:
    """Name PostgreSQL's driver psycopg2, which the lock file has, if the one that SQLAlchemy would take is missing."""
    scheme, mark, rest = uri.partition("://")
    if scheme == "postgresql" and find_spec("psycopg") is None and find_spec("psycopg2"):
        return f"postgresql+psycopg2{mark}{rest}"
    return uri


def database_file(uri: str) -> Path | None:
    """Return the file of an SQLite database, or None for other addresses."""
    found = _SQLITE.match(uri)
    return Path(unquote(found[2])) if found else None


def database_uri(file: Path) -> str:
    """Return the address of an SQLite database, with an absolute path."""
    path = str(file.resolve())
    # SQLAlchemy decodes %XX and begins the options at a question mark. `without_password` ends a login at "@".
    encoded = path.replace("%", "%25").replace("?", "%3F").replace("@", "%40")
    # MLflow creates the folder of sqlite:/// without decoding its name.
    return f"sqlite{'' if encoded == path else '+pysqlite'}:///{encoded}"


def _make_absolute(variable: str) -> None:
    """Make the path of an SQLite database in an environment variable absolute."""
    uri = os.environ.get(variable, "").strip()
    if (file := database_file(uri)) and not file.is_absolute():
        _, mark, options = uri.partition("?")
        os.environ[variable] = f"{database_uri(Path.cwd() / file)}{mark}{options}"


def tracking_uri(workspace: Path = WORKSPACE) -> str:
    """Return MLFLOW_TRACKING_URI, or the address of mlflow.db in the workspace, whose folder is created.

    A relative path of an SQLite database becomes absolute, also in the environment and in MLFLOW_REGISTRY_URI: child
    processes with another working folder must open the same database.

    Raises:
        ConfigError: MLFLOW_TRACKING_URI is not an address that MLflow knows.
        StorageError: the workspace cannot be written.
    """
    uri = os.environ.get(VARIABLE, "").strip()
    if not uri:
        with storage_errors(workspace):
            workspace.mkdir(parents=True, exist_ok=True)
        return database_uri(workspace / "mlflow.db")
    if not _is_known(uri):
        raise ConfigError(
            f"{VARIABLE} {uri} is not an address of MLflow: name a server (http://host:5000 or "
            "https://host), or a database (sqlite:///path/mlflow.db or postgresql://host/name)"
        )
    for variable in (VARIABLE, _REGISTRY):
        _make_absolute(variable)
    return os.environ[VARIABLE].strip()


def use_registry(workspace: Path) -> None:
    """Let this process use the registry of MLFLOW_TRACKING_URI, or else of the database that is in a workspace.

    Raises:
        ConfigError: as `tracking_uri`.
        WeightsError: the workspace has no database. None is created to find nothing in it.
    """
    if not os.environ.get(VARIABLE) and not (workspace / "mlflow.db").is_file():
        raise WeightsError(
            f"{workspace} has no models yet: train one with `bebygan run`, or name another --workspace or {VARIABLE}"
        )
    os.environ[VARIABLE] = tracking_uri(workspace)
