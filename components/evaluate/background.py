"""When a run began, and in which photographs and parameters it differs from the run that made the champion."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bebygan.errors import BebyganError, without_password
from components.stores.dataset import SPLITS, manifest_of, photographs_of
from components.tracking.address import tracking_uri
from components.tracking.history import EarlierRun, earlier_run
from components.tracking.registry import ModelVersion

_NOT_COMPARED = ("evaluate.", "register.")
"""What the names of parameters begin with that do not change a model."""


@dataclass(frozen=True, kw_only=True)
class Background:
    """What is known; the defaults are those of a comparison without a champion and without a run in MLflow."""

    began: datetime.datetime | None = None
    """UTC."""
    run_id: str = ""
    """Of the whole pipeline, in MLflow."""
    link: str = ""
    """Address of the run, if MLflow is a server."""
    parameters: Mapping[str, tuple[str, str]] | None = None
    """Champion's value and today's of the parameters of the training that differ; None if they are not known."""
    new: Mapping[str, tuple[str, ...]] | None = None
    """Photographs that the champion's data version does not have, by split; None if they are not known."""
    gone: int = 0
    """Number of photographs that only the champion's data version has."""
    unknown: str = ""
    """Why `new` is not known."""


def _parameters(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    names = sorted(name for name in before.keys() | now.keys() if not name.startswith(_NOT_COMPARED))
    values = {name: (before.get(name, "-"), now.get(name, "-")) for name in names}
    return {name: pair for name, pair in values.items() if pair[0] != pair[1]}


def _link(run: EarlierRun) -> str:
    address = without_password(tracking_uri())
    return f"{address}/#/experiments/{run.experiment_id}/runs/{run.run_id}" if address.startswith("http") else ""


def background(dataset: Path, champion: ModelVersion | None, pipeline_run: str | None, remote: str) -> Background:
    """Return what is known about a run.

    Args:
        dataset: folder that ingest wrote.
        champion: that the challenger is compared with.
        pipeline_run: id of the run of the whole pipeline in MLflow.
        remote: DVC remote with the champion's data version; "" for none.

    Raises:
        DataError: the dataset is damaged.
        ServiceError: MLflow is unreachable.
    """
    run = earlier_run(pipeline_run)
    trained = earlier_run(champion.tags.get("parent_run")) if champion else None
    new, gone, unknown = None, 0, ""
    version = champion.tags.get("data_version") if champion else None
    if version and remote:
        try:
            before = set(manifest_of(version, remote)["sha256"])
        except BebyganError as error:
            # The report says it: that a list is missing must not cost the comparison.
            unknown = str(error)
        else:
            today = photographs_of(dataset, SPLITS)
            fresh = today[~today["sha256"].isin(before)]
            new = {split: tuple(sorted(fresh.loc[fresh["split"] == split, "source"])) for split in SPLITS}
            gone = len(before - set(today["sha256"]))
    elif version:
        unknown = "no DVC remote is given"
    return Background(
        began=run.started if run else None,
        run_id=run.run_id if run else "",
        link=_link(run) if run else "",
        parameters=_parameters(trained.params, run.params) if trained and run else None,
        new=new,
        gone=gone,
        unknown=unknown,
    )
