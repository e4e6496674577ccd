"""Test everything that a run needs concurrently, and report everything that is missing.

`bebygan run` does this before each training, so torch, which takes seconds to import, is imported only where a check
needs it.
"""

import os
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Literal

from bebygan import pretrained
from bebygan.errors import BebyganError, ConfigError, ServiceError, StorageError, WeightsError
from bebygan.pretrained import GENERATORS, cached_weights
from components.checkout import start_weights_file
from components.config import Params
from components.progress import say
from components.stores import check_writable, open_store
from components.stores.source import open_source
from components.tracking.ledger import last
from components.tracking.registry import all_versions, champion, check_ledger, check_rights, find_version, verify
from components.tracking.runs import check_tracker
from components.tracking.signatures import SIGNING_KEY, VERIFYING_KEY, check_keys, configured

_SECONDS_FOR_A_SERVICE = 40.0
_SECONDS_FOR_WEIGHTS = 600.0
"""Longer, because missing weights are downloaded; an unreachable source fails sooner."""
_WRITTEN = (
    "cache", "checkpoints", "data-docs", "dvc-remote", "ledger", "mlartifacts", "mlflow.db", "pipeline", "report",
    "run.log", "untracked",
)  # fmt: skip
"""What a run writes in its workspace. Files in its folders are replaced, which needs a writable folder only."""
Look = Literal["verified", "present", "in images"]
"""How to test pretrained weights: read them, which takes seconds and is what a step does; only see whether they are
cached, and download them if not; or not at all, because the tasks have their own in their images."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a run reads and writes; an empty place is not used."""

    source: str
    remote: str
    checkpoints: str
    ledger: str
    volume: str = ""
    """Folder that is mounted in this task and in trainings, but not in ingest and register."""
    workspace: str = ""
    """Folder with the outputs and caches of earlier runs on this machine."""


@dataclass(frozen=True)
class Check:
    """One check."""

    name: str
    attempt: Callable[[], str]
    """Returns the result as text; raises BebyganError if the check fails."""
    seconds: float
    """Time limit."""


def _outside(volume: str, place: str) -> str:
    if volume and Path(place).is_relative_to(volume):
        raise ConfigError(f"{place} is on the volume, which only trainings mount: name s3://bucket/prefix instead")
    return place


def _photographs(source: str, volume: str) -> str:
    open_source(_outside(volume, source))
    return "can be listed"


def _writable(place: str, volume: str, *, conditional: bool = False) -> str:
    check_writable(open_store(_outside(volume, place), patient=False), conditional=conditional)
    return "can be written"


def _leftovers(workspace: str) -> str:
    """Check that this user may write what earlier runs of other users, such as root, left behind."""
    for folder, folders, _ in os.walk(workspace):
        names = list(folders)
        if folder == workspace:
            # A workspace may hold more, such as photographs on a read-only disk.
            names = [name for name in _WRITTEN if Path(folder, name).exists()]
            folders[:] = [name for name in folders if name in _WRITTEN]
        for name in names:
            path = Path(folder, name)
            if not os.access(path, os.W_OK, follow_symlinks=False):
                raise StorageError(
                    f"{path}, which an earlier run left, belongs to user {path.lstat().st_uid} and cannot be written "
                    f"by this user: run `sudo chown -R {os.getuid()} {shlex.quote(workspace)}`, or choose another "
                    "workspace"
                )
    return "can be written"


def _ledger(place: str, volume: str, model: str) -> str:
    told = _writable(place, volume, conditional=True)
    newest = last(place, model)
    if newest and newest.version and not all_versions(model):
        raise ServiceError(
            f"it made version {newest.version} of {model} champion, but the registry has no version of it: restore the "
            "registry from a backup, or name another ledger"
        )
    return told


def _registry(model: str, ledger: str) -> str:
    check_rights(model)
    if ledger:
        check_ledger(ledger, model)
    reigning = champion(model)
    if reigning is None:
        return f"allows changes of {model}"
    verify(reigning)
    return f"allows changes of {model}, and the files of version {reigning.version} are those that were registered"


def _weights(name: str, look: Look) -> str:
    if look == "in images":
        return "taken from the image, not tested"
    if look == "present" and (cached := cached_weights(name)).is_file():
        return f"at {cached}"
    return f"at {pretrained.weights_file(name)}"


def _start(weights: str, look: Look) -> str:
    if weights in GENERATORS:
        return _weights(weights, look)
    if weights.startswith("models:/"):
        verify(find_version(weights.partition("#")[0], ""))
        return "are those that were registered"
    if not start_weights_file(weights).is_file():
        raise WeightsError(
            f"the file {weights} of warmup.weights does not exist: put it into the image or onto the volume, or "
            f"name one of {', '.join(GENERATORS)}"
        )
    return "exists"


def _gpus(asked: int) -> str:
    torch = import_module("torch")
    found = torch.cuda.device_count()
    if found < asked:
        raise ConfigError(
            f"{asked} GPUs are required but {found} are visible: check that node, driver and image match, "
            "or require fewer"
        )
    for index in range(asked):
        torch.ones(1, device=f"cuda:{index}").sum().item()
    return f"{found} of {asked} work"


def gpus_given() -> int:
    """Return the number of GPUs of this task, from the environment variable BEBYGAN_GPUS."""
    return int(os.environ.get("BEBYGAN_GPUS", "0"))


def checks(places: Places, params: Params, gpus: int, look: Look = "verified") -> list[Check]:
    """Return the checks for everything that a run needs and that can be tested beforehand.

    Args:
        places: where the run reads and writes.
        params: parameters of the run, which name the model and the weights.
        gpus: number of GPUs that this machine must have.
        look: how to test pretrained weights.
    """
    service, source, volume = _SECONDS_FOR_A_SERVICE, places.source, places.volume
    found = [Check(f"photographs in {source}", partial(_photographs, source, volume), service)]
    if places.workspace:
        found.append(Check(f"workspace {places.workspace}", partial(_leftovers, places.workspace), service))
    for name, place, attempt in (
        ("DVC remote", places.remote, partial(_writable, places.remote, volume)),
        ("ledger", places.ledger, partial(_ledger, places.ledger, volume, params.evaluate.model_name)),
        ("checkpoints in", places.checkpoints, partial(_writable, places.checkpoints, "")),
    ):
        if place:
            found.append(Check(f"{name} {place}", attempt, service))
    found.append(Check("MLflow", lambda: f"answers at {check_tracker()}", service))
    found.append(Check("model registry", partial(_registry, params.evaluate.model_name, places.ledger), service))
    perceptual = (params.train.perceptual.network,) if params.train.losses.perceptual else ()
    for name in dict.fromkeys((*perceptual, "alexnet", "lpips-alex", "vgg16", "dists")):
        found.append(Check(f"weights {name}", partial(_weights, name, look), _SECONDS_FOR_WEIGHTS))
    if start := params.warmup.weights:
        found.append(Check(f"weights {start}", partial(_start, start, look), _SECONDS_FOR_WEIGHTS))
    if configured(SIGNING_KEY) or configured(VERIFYING_KEY):
        found.append(Check("keys", check_keys, service))
    if gpus:
        found.append(Check("GPUs", partial(_gpus, gpus), service))
    return found


def _attempted(check: Check, report: Callable[[str], None], outcomes: dict[str, str | Exception]) -> None:
    started = time.monotonic()
    try:
        outcome: str | Exception = check.attempt()
        text = str(outcome)
    except Exception as error:  # noqa: BLE001 - reported below; one check must not hide the results of others
        outcome = error
        text = f"FAILED: {error}"
    outcomes[check.name] = outcome
    report(f"  {check.name}: {text} ({time.monotonic() - started:.1f} s)")


def preflight(needed: Sequence[Check], report: Callable[[str], None] = say) -> None:
    """Run all checks concurrently and report one line for each.

    Raises:
        BebyganError: a check failed. The error has the type of the first failure and names all of them.
    """
    started = time.monotonic()
    outcomes: dict[str, str | Exception] = {}
    # No thread pool: it would wait for a check that hangs.
    threads = {
        check.name: threading.Thread(
            target=_attempted, args=(check, report, outcomes), name=f"preflight {check.name}", daemon=True
        )
        for check in needed
    }
    for thread in threads.values():
        thread.start()
    failures: list[tuple[str, Exception]] = []
    for check in needed:
        threads[check.name].join(max(0.0, started + check.seconds - time.monotonic()))
        outcome = outcomes.get(check.name) or ServiceError(
            f"no answer within {check.seconds:.0f} s: check that it runs and that this task can reach it"
        )
        if isinstance(outcome, Exception):
            if check.name not in outcomes:
                report(f"  {check.name}: FAILED: {outcome}")
            failures.append((check.name, outcome))
    for _, error in failures:
        if not isinstance(error, BebyganError):
            raise error
    if failures:
        reasons = "; ".join(f"{name}: {error}" for name, error in failures)
        kind = type(failures[0][1])
        raise kind(f"{len(failures)} of {len(needed)} checks failed: {reasons}")
