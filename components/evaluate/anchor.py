"""The anchor: held-out photographs that stay the same from run to run, so that figures of different runs compare.

It is the test side of a data version: that of the first entry of the ledger, which the first promotion wrote, unless
`evaluate.anchor` names another. The DVC remote keeps its bytes.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from bebygan.errors import DataError
from components.artifacts import Anchor
from components.config import EvaluateParams
from components.progress import say
from components.stores.data_version import read_file
from components.stores.dataset import manifest_of, photographs_of
from components.tracking.ledger import champions, entries
from components.tracking.registry import ANCHOR, ANCHOR_VALUE, all_versions


def _frozen(model: str, anchor: str, ledger: str, current: str) -> str:
    """Return the data version of the anchor; the current one before the first promotion."""
    if anchor != "first":
        return anchor
    first = next(iter(entries(ledger, model)), None) if ledger else None
    return (first.data_version if first else None) or current


def _fetched(anchor: str, remote: str, rows: pd.DataFrame, folder: Path) -> None:
    """Fetch photographs of a data version; each object is compared with its digest."""
    for name in rows["file"]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(read_file(anchor, remote, name))
    rows.to_parquet(folder / "manifest.parquet")


def _rows(anchor: str, remote: str) -> pd.DataFrame:
    manifest = manifest_of(anchor, remote)
    return manifest[manifest["split"] == "test"]


def measured_on_anchor(
    dataset: Path,
    version: str,
    measured: pd.DataFrame,
    measure: Callable[[Path], pd.DataFrame],
    params: EvaluateParams,
    *,
    ledger: str,
    remote: str,
) -> tuple[str, pd.DataFrame] | None:
    """Measure the candidates on the anchor. Photographs that are held out today, too, are not measured again.

    A photograph of the anchor that is trained on or validated on today is left out, which is said.

    Args:
        dataset: of today.
        version: its data version.
        measured: a row per photograph that `dataset` holds out, and candidate.
        measure: measures the photographs that another folder holds out in the same way.
        params: of the step.
        ledger: folder or s3:// prefix; "" for none.
        remote: DVC remote with the anchor's data version; "" for none.

    Returns:
        The anchor's data version, and rows like those of `measured`. None if no anchor is measured: `evaluate.anchor`
        is `none`, or the anchor is another data version and there is no remote.

    Raises:
        DataError: a photograph of the anchor is missing or altered in the remote, or all are trained on now.
        ServiceError: the remote or the ledger is unreachable.
    """
    if params.anchor == "none":
        return None
    anchor = _frozen(params.model_name, params.anchor, ledger, version)
    if anchor == version:
        return anchor, measured
    if not remote:
        say(f"evaluate: the anchor, data version {anchor}, is not measured: no DVC remote is given")
        return None
    seen = set(photographs_of(dataset, ("train", "validation"))["sha256"])
    try:
        held = _rows(anchor, remote)
        left = held[~held["sha256"].isin(seen)]
        new = left[~left["sha256"].isin(measured["sha256"])]
        with tempfile.TemporaryDirectory(prefix="anchor-") as scratch:
            if len(new):
                _fetched(anchor, remote, new, Path(scratch))
            more = [measure(Path(scratch))] if len(new) else []
    except DataError as error:
        raise DataError(
            f"the anchor, the photographs that data version {anchor} holds out, cannot be measured: {error}; restore "
            "it in the remote, or set evaluate.anchor to the data version of a later run"
        ) from error
    if left.empty:
        raise DataError(
            f"all photographs of the anchor, data version {anchor}, are trained on now: set evaluate.anchor to the "
            "data version of a later run"
        )
    if len(left) < len(held):
        say(f"evaluate: {len(held) - len(left)} of {len(held)} photographs of the anchor are trained on now: left out")
    return anchor, pd.concat([measured[measured["sha256"].isin(left["sha256"])], *more])


def anchor_history(anchor: Anchor | None, model: str, ledger: str) -> list[tuple[str, dict[str, float]]]:
    """Return the champions that were measured on this anchor, oldest first: version, and its metrics."""
    if anchor is None or not ledger:
        return []
    versions = {each.version: each.tags for each in all_versions(model)}
    found: dict[str, dict[str, float]] = {}
    for move in champions(entries(ledger, model)):
        tags = versions.get(move.version or "", {})
        if tags.get(ANCHOR) == anchor.data_version:
            known = {name: text for name, text in tags.items() if name.startswith(ANCHOR_VALUE)}
            values = {name.removeprefix(ANCHOR_VALUE): float(text) for name, text in known.items()}
            found[str(move.version)] = values
    return list(found.items())
