"""The columns of the table of faults."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.system.faults import behind, things
from tests.system.faults.things import LEDGER, OLDER, REMOTE, SOURCE, WORKSPACE, of_folder, output


@dataclass(frozen=True)
class Column:
    """Something that one part hands to another."""

    make: Callable[[], Any]
    """What writes it; as a whole, and again if it is missing."""
    use: Callable[[], Any]
    """What reads it; see `tests.system.faults.things`."""
    remove: Callable[[], Any]
    """Takes it away, for `make`."""
    files: Callable[[], list[Path]]
    """The files that are damaged, one after the other."""
    older: Callable[[Path], bytes]
    """The content of an older one in the place of a file."""
    state: Callable[[], Any] | None = None
    """What `make` leaves; by default what `use` returns."""
    use_older: Callable[[], Any] | None = None
    """What finds an older one; by default `use`."""
    ours: bool = True
    """Whether this project makes it, or a person."""
    told: str = ""
    """Pattern of the line by which a user is told that the thing is another, if that is no error."""
    behind: tuple[Callable[[], Any], ...] = ()
    """What writes and reads it where it lies behind a server; see `tests.system.faults.behind`."""


class DatabaseValue:
    """A value in MLflow's database, with the methods of a file's path."""

    def __init__(self, table: str, key: str, value: str, which: dict[str, Any]) -> None:
        self._table, self._value, self._which = table, value, which
        self.name = f"{table} {which[key]}"
        self._where = " AND ".join(f"{name} = ?" for name in which)
        self.parent = Path()

    def __str__(self) -> str:
        return self.name

    def _run(self, statement: str, *values: Any) -> Any:
        with closing(sqlite3.connect(WORKSPACE / "mlflow.db")) as database, database:
            return database.execute(statement, values).fetchone()

    def read_bytes(self) -> bytes:
        text = f"SELECT CAST({self._value} AS BLOB) FROM {self._table} WHERE {self._where}"  # noqa: S608
        return bytes(self._run(text, *self._which.values())[0])

    def exists(self) -> bool:
        text = f"SELECT count(*) FROM {self._table} WHERE {self._where}"  # noqa: S608
        return bool(self._run(text, *self._which.values())[0])

    def unlink(self) -> None:
        self._run(f"DELETE FROM {self._table} WHERE {self._where}", *self._which.values())  # noqa: S608

    def write_bytes(self, content: bytes) -> None:
        self.unlink()
        names = ", ".join([*self._which, self._value])
        marks = ", ".join("?" * len(self._which))
        text = f"INSERT INTO {self._table} ({names}) VALUES ({marks}, CAST(? AS TEXT))"  # noqa: S608
        self._run(text, *self._which.values(), content)


_TAGS = ("weights_sha256", "code_sha256", "verdict_sha256", "verdict", "data_version", "params_hash", "train.params")
_ALIASES = ("champion", "previous")


def _tags() -> list[DatabaseValue]:
    which = [{"name": things.MODEL, "version": 1, "key": tag} for tag in _TAGS]
    return [DatabaseValue("model_version_tags", "key", "value", each) for each in which]


def _aliases() -> list[DatabaseValue]:
    which = {"name": things.MODEL, "alias": "champion"}
    return [DatabaseValue("registered_model_aliases", "alias", "version", which)]


def _database() -> list[Path]:
    return [WORKSPACE / "mlflow.db"]


def _newest_checkpoint() -> list[Path]:
    return list(Path().glob("workspace/checkpoints/train-*/iteration-00000002.checkpoint"))


def _in_dvc_cache() -> list[Path]:
    found = Path("dvc/.dvc/cache/files/md5").glob("*/*")
    return sorted(found, key=lambda path: (path.suffix != ".dir", path.stat().st_size))[::4]


def _cached() -> list[Path]:
    shards = output("patches", "shards")
    return [shards / "shard-000.npy", shards.with_name("shards.sha256")]


def _older_cached(path: Path) -> bytes:
    return (OLDER / path.name if path.suffix == ".sha256" else OLDER / "shards" / path.name).read_bytes()


def _of_first_version(path: Path) -> bytes:
    if path.suffix == ".py":
        return path.read_bytes() + b"\n"
    return (output("train", "challenger") / path.name).read_bytes()


def _other_entry(path: Path) -> bytes:
    return next(other for other in path.parent.iterdir() if other != path).read_bytes()


def _files(pattern: str) -> Callable[[], list[Path]]:
    def find() -> list[Path]:
        found = sorted(Path().glob(pattern))
        assert found, pattern
        return found

    return find


def _in_output(step: str, name: str, *files: str) -> Callable[[], list[Path]]:
    return lambda: [path for file in files for path in sorted(output(step, name).glob(file))]


def _from_older(path: Path) -> bytes:
    """The file of the same name and kind in the folder of older things."""
    return (OLDER / path.parent.name / path.name).read_bytes()


def _photograph_of_older(path: Path) -> bytes:
    return next(
        other for other in sorted((OLDER / "dataset/photographs").iterdir()) if other.name != path.name
    ).read_bytes()


def _copied_photograph() -> list[Path]:
    return [SOURCE / "03.png"]


def _remove_output(step: str, name: str) -> Callable[[], None]:
    return lambda: shutil.rmtree(output(step, name))


def _emptied(step: str, name: str) -> Callable[[], None]:
    """Take what is in a folder, and leave the folder, by which its place is found."""

    def remove() -> None:
        folder = output(step, name)
        shutil.rmtree(folder)
        folder.mkdir()

    return remove


def _first_photographs() -> list[Path]:
    return sorted((output("ingest", "dataset") / "photographs").iterdir())[:3]


def _in_remote() -> list[Path]:
    listed = sorted(REMOTE.glob("files/md5/*/*"))
    return [path for path in listed if path.suffix == ".dir"] + [path for path in listed if not path.suffix][:2]


def _state(step: str, name: str) -> Callable[[], str]:
    return lambda: of_folder(output(step, name))


_dataset = partial(
    Column,
    make=things.make_dataset,
    use=things.read_dataset,
    remove=_emptied("ingest", "dataset"),
    state=_state("ingest", "dataset"),
)
_shards = partial(
    Column,
    make=things.make_shards,
    use=things.read_shards,
    remove=_emptied("patches", "shards"),
    state=_state("patches", "shards"),
    older=_from_older,
)

_challenger = partial(
    Column,
    make=things.make_challenger,
    use=things.judge,
    remove=_emptied("train", "challenger"),
    state=_state("train", "challenger"),
    older=_from_older,
)
_evaluation = partial(
    Column,
    make=things.make_evaluation,
    use=things.register_again,
    remove=_emptied("evaluate", "evaluation"),
    state=things.evaluation,
    older=_from_older,
)
_moves = partial(
    Column,
    make=things.promote_second,
    use=things.run_again,
    remove=things.forget_promotion,
    state=things.champion_state,
    told="holds the alias champion of",
)

COLUMNS: dict[str, Column] = {
    "source": Column(
        make=lambda: things.copy_slowly(OLDER / "photographs/03.png", SOURCE / "03.png"),
        use=things.read_source,
        remove=(SOURCE / "03.png").unlink,
        files=_copied_photograph,
        older=lambda _: (SOURCE / "05.png").read_bytes(),
        told="train: ",
        ours=False,
        behind=(behind.read_source,),
    ),
    "manifest": _dataset(files=_in_output("ingest", "dataset", "manifest.parquet"), older=_from_older),
    "dataset": _dataset(files=_first_photographs, older=_photograph_of_older),
    "shards": _shards(files=_in_output("patches", "shards", "shard-*.npy")),
    "index": _shards(files=_in_output("patches", "shards", "patches.json", "photographs.npy", "windows.npy")),
    "DVC cache": Column(
        make=things.add_to_dvc,
        use=things.read_from_dvc,
        remove=lambda: shutil.rmtree("dvc/.dvc/cache"),
        files=_in_dvc_cache,
        older=_photograph_of_older,
        ours=False,
    ),
    "DVC remote": Column(
        make=things.send_dataset,
        use=things.fetch_dataset,
        remove=lambda: shutil.rmtree(REMOTE),
        files=_in_remote,
        older=_photograph_of_older,
        behind=(behind.send_dataset, behind.fetch_dataset),
    ),
    "start weights": Column(
        make=things.make_start,
        use=things.read_start,
        remove=_emptied("warmup", "generator"),
        state=_state("warmup", "generator"),
        files=_in_output("warmup", "generator", "generator.safetensors"),
        older=_from_older,
        use_older=things.read_start_of_run,
    ),
    "checkpoints": Column(
        make=things.resume,
        use=things.resume,
        remove=lambda: shutil.rmtree(WORKSPACE / "checkpoints"),
        files=_newest_checkpoint,
        older=lambda path: path.with_name("iteration-00000001.checkpoint").read_bytes(),
        behind=(behind.resume,),
    ),
    "challenger": _challenger(files=_in_output("train", "challenger", "generator.safetensors")),
    "history": _challenger(files=_in_output("train", "challenger", "history.jsonl")),
    "metrics": _evaluation(files=_in_output("evaluate", "evaluation", "metrics.json", "per_photograph.csv")),
    "verdict": _evaluation(files=_in_output("evaluate", "evaluation", "verdict.json")),
    "report": Column(
        make=things.make_report,
        use=things.run_again,
        remove=lambda: shutil.rmtree(WORKSPACE / "report"),
        files=_files("workspace/report/[dr]*.*"),
        older=lambda path: (OLDER / "evaluation" / path.name).read_bytes(),
    ),
    "model artifact": Column(
        make=things.register_older,
        use=things.read_model,
        remove=things.forget_second,
        files=things.weights_of_second,
        older=_of_first_version,
        behind=behind.at_tracker(things.read_model),
    ),
    "tags": _moves(
        use=things.verify_first,
        files=_tags,
        older=lambda _: b"older",
        told="not recorded|did not record",
        behind=behind.at_tracker(things.verify_first),
    ),
    "aliases": _moves(files=_aliases, older=lambda _: b"1", behind=behind.at_tracker(things.run_again)),
    "ledger": _moves(
        files=lambda: sorted((LEDGER / things.MODEL).iterdir()),
        older=_other_entry,
        behind=(behind.write_ledger, behind.read_ledger),
    ),
    "database": _moves(
        told="holds the alias champion of|would train: ",
        use=things.read_database,
        files=_database,
        older=lambda _: (OLDER / "mlflow.db").read_bytes(),
        behind=behind.at_tracker(things.read_database),
    ),
    "params": Column(
        make=lambda: things.copy_slowly(OLDER / "params.yaml", Path("params.yaml")),
        use=things.read_params,
        remove=lambda: Path("params.yaml").unlink(),
        files=lambda: [Path("params.yaml")],
        older=lambda path: path.read_bytes().replace(b"seed: 1", b"seed: 3"),
        told="train: ",
        ours=False,
    ),
    "cached outputs": Column(
        make=things.make_cached,
        use=things.read_cached,
        remove=_emptied("patches", "shards"),
        files=_cached,
        older=lambda path: (
            OLDER / path.name if path.suffix == ".sha256" else OLDER / "shards" / path.name
        ).read_bytes(),
    ),
    "fetched weights": Column(
        make=things.read_weights,
        use=things.read_weights,
        remove=lambda: things.fetched_file().unlink(),
        files=lambda: [things.fetched_file()],
        older=lambda path: path.with_name("older.safetensors").read_bytes(),
    ),
    "unsent values": Column(
        make=things.keep_values,
        use=things.send_values,
        remove=things.forget_values,
        files=_files("workspace/untracked/*.jsonl"),
        older=lambda path: path.read_bytes().partition(b"\n")[0] + b"\n",
        state=things.kept_values,
        told="has not ended|damaged",
        behind=behind.at_tracker(things.send_values),
    ),
}
