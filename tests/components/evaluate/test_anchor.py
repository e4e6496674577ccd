import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from bebygan.errors import DataError
from components.artifacts import Anchor, read_anchor, write_anchor
from components.config import EvaluateParams, load_params
from components.evaluate.anchor import anchor_history, measured_on_anchor
from components.evaluate.step import held_out
from components.stores.data_version import data_version, push
from components.tracking.client import mlflow_client
from components.tracking.ledger import append
from tests.components.moves import FIRST


def params(anchor: str = "first") -> EvaluateParams:
    return dataclasses.replace(load_params().evaluate, model_name="tests", anchor=anchor)


def measure(dataset: Path) -> pd.DataFrame:
    """Stand in for the measurement: reads every photograph that a folder holds out."""
    rows = held_out(dataset)
    sizes = [(dataset / name).stat().st_size for name in rows["file"]]
    return pd.DataFrame({"photograph": rows["source"], "sha256": rows["sha256"], "size": sizes})


@pytest.fixture
def frozen(dataset: Path, tmp_path: Path) -> str:
    """Freeze the held-out photographs of `dataset` by a first promotion; return its data version."""
    version = push(dataset, str(tmp_path / "remote"))
    append(str(tmp_path / "ledger"), "tests", dataclasses.replace(FIRST, data_version=version))
    return version


@pytest.fixture
def on_anchor(dataset: Path, tmp_path: Path) -> Callable[..., tuple[str, pd.DataFrame] | None]:
    def run(anchor: str = "first", remote: str | None = None) -> tuple[str, pd.DataFrame] | None:
        return measured_on_anchor(
            dataset,
            data_version(dataset),
            measure(dataset),
            measure,
            params(anchor),
            ledger=str(tmp_path / "ledger"),
            remote=str(tmp_path / "remote") if remote is None else remote,
        )

    return run


Measured = Callable[..., tuple[str, pd.DataFrame] | None]


def resplit(dataset: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    path = dataset / "manifest.parquet"
    change(pd.read_parquet(path)).to_parquet(path)


def test_before_the_first_promotion_the_anchor_is_what_is_held_out(on_anchor: Measured, dataset: Path) -> None:
    found = on_anchor()
    assert found is not None
    assert found[0] == data_version(dataset)
    assert found[1].equals(measure(dataset))


def test_photographs_of_the_first_promotion_are_measured_although_other_ones_are_held_out_now(
    on_anchor: Measured, dataset: Path, frozen: str
) -> None:
    before = measure(dataset)
    gone = held_out(dataset).iloc[0]
    # The dataset loses one held-out photograph and holds out another one.
    (dataset / gone["file"]).unlink()
    resplit(dataset, lambda rows: rows[rows["sha256"] != gone["sha256"]].assign(split="test"))
    found = on_anchor()
    assert found is not None
    anchor, rows = found
    assert anchor == frozen
    assert sorted(rows["sha256"]) == sorted(before["sha256"])
    assert dict(zip(rows["sha256"], rows["size"], strict=True)) == dict(
        zip(before["sha256"], before["size"], strict=True)
    )


def test_a_photograph_that_is_trained_on_now_is_left_out_and_said(
    on_anchor: Measured, dataset: Path, frozen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = held_out(dataset).iloc[0]["sha256"]
    resplit(dataset, lambda rows: rows.assign(split=rows["split"].mask(rows["sha256"] == trained, "train")))
    found = on_anchor()
    assert found is not None
    assert (found[0], len(found[1])) == (frozen, 2)
    assert "1 of 3 photographs of the anchor are trained on now: left out" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"altered"])
def test_a_photograph_that_is_missing_or_altered_in_the_remote_is_named(
    content: bytes | None, on_anchor: Measured, dataset: Path, frozen: str, tmp_path: Path
) -> None:
    gone = held_out(dataset).iloc[0]
    bytes_of_it = (dataset / gone["file"]).read_bytes()
    resplit(dataset, lambda rows: rows[rows["sha256"] != gone["sha256"]])
    [kept] = [path for path in (tmp_path / "remote").rglob("*") if path.is_file() and path.read_bytes() == bytes_of_it]
    kept.chmod(0o644)
    if content is None:
        kept.unlink()
    else:
        kept.write_bytes(content)
    with pytest.raises(DataError) as caught:
        on_anchor()
    said = str(caught.value)
    assert said.startswith(f"the anchor, the photographs that data version {frozen} holds out, cannot be measured: ")
    assert kept.name in said
    assert said.endswith("or set evaluate.anchor to the data version of a later run")


def test_the_anchor_can_be_frozen_at_another_data_version_or_left_out(
    on_anchor: Measured, dataset: Path, frozen: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resplit(dataset, lambda rows: rows.iloc[1:])
    later = push(dataset, str(tmp_path / "remote"))
    shutil.rmtree(tmp_path / "ledger")
    found = on_anchor(later)
    assert found is not None
    assert found[0] == later
    assert on_anchor("none") is None
    assert on_anchor(frozen, remote="") is None
    assert f"the anchor, data version {frozen}, is not measured: no DVC remote is given" in capsys.readouterr().err


@pytest.mark.usefixtures("mlflow_store")
def test_the_history_has_the_champions_that_were_measured_on_the_same_anchor(tmp_path: Path) -> None:
    client = mlflow_client()
    client.create_registered_model("tests")
    for anchor, value in (("a.dir", "0.2"), ("b.dir", "0.15"), ("a.dir", "0.1")):
        client.create_model_version("tests", "source", tags={"anchor": anchor, "anchor.lpips": value})
    for number in (1, 2, 3):
        move = dataclasses.replace(FIRST, number=number, version=str(number), previous=str(number - 1))
        append(str(tmp_path / "ledger"), "tests", move)
    anchor = Anchor(data_version="a.dir", photographs=3, means={})
    assert anchor_history(anchor, "tests", str(tmp_path / "ledger")) == [("1", {"lpips": 0.2}), ("3", {"lpips": 0.1})]
    assert anchor_history(anchor, "tests", "") == []
    assert anchor_history(None, "tests", str(tmp_path / "ledger")) == []


def test_the_means_on_the_anchor_are_kept_in_a_file(tmp_path: Path) -> None:
    assert read_anchor(tmp_path) is None
    anchor = Anchor(data_version="a.dir", photographs=3, means={"challenger": {"lpips": 0.1}})
    write_anchor(tmp_path, anchor)
    assert read_anchor(tmp_path) == anchor
    changed = json.loads((tmp_path / "anchor.json").read_text()) | {"photographs": 4}
    (tmp_path / "anchor.json").write_text(json.dumps(changed))
    with pytest.raises(DataError, match=r"anchor\.json is damaged"):
        read_anchor(tmp_path)
