"""Where the artifacts of an SQLite database are: in the folder mlartifacts beside it.

MLflow writes the absolute place into its tables. After the folder of both was copied or moved, it would store models in
the original folder, or not find them.
"""

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

from bebygan.errors import ServiceError

_NAME = "mlartifacts"
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_log = logging.getLogger(__name__)


def artifacts_beside(database: Path) -> str:
    """Return the URI of the folder for the artifacts of a database."""
    return database.resolve().with_name(_NAME).as_uri()


def _was_relocated(old: Path, database: Path) -> bool:
    """Return whether a database was copied or moved from the folder that contains `old`, its artifacts.

    Otherwise a person chose this folder.

    Raises:
        ServiceError: the database was copied without its artifacts.
    """
    # Unlike those of Path, these functions return False where permission is denied.
    if not os.path.exists(old):
        return True
    if not os.path.exists(old.with_name(database.name)):
        return False
    if not database.with_name(_NAME).exists():
        raise ServiceError(
            f"{database} was copied without its artifacts: copy {old} to {database.parent}, too, or name an empty "
            "workspace"
        )
    return True


def follow_database(database: Path) -> None:
    """Correct the places of the artifacts in a database that was copied or moved with its folder.

    Raises:
        ServiceError: the database was copied without its artifacts.
        sqlite3.Error: the database cannot be read or written.
    """
    database, here = database.resolve(), artifacts_beside(database)
    with closing(sqlite3.connect(database)) as connection, connection:
        # An experiment without runs has no artifacts.
        used = "SELECT DISTINCT artifact_location FROM experiments JOIN runs USING (experiment_id)"
        found = connection.execute(used).fetchall()
        for (old,) in found:
            path = Path(unquote((old or "").removeprefix("file://")))
            if old == here or path.name != _NAME or not path.is_absolute() or not _was_relocated(path, database):
                continue
            for table, column in _COLUMNS:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 - names above
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (here, len(old) + 1, old, len(old) + 1, f"{old}/"),
                )
            _log.info("%s was in %s: its artifacts are now looked for beside it", database, path.parent)
