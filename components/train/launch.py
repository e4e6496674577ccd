"""Run the train step on other machines, as a TrainJob whose pods share a volume with this process.

`python -m components.train.launch` needs no torch. It copies patches and warm-up weights to the volume, runs
`components.train` under torchrun, shows the log, and copies the challenger to the output. Run again, it attaches to the
running training, or copies the finished challenger.

Folders on the volume, each written atomically:

    shards/<hash>/                patches, shared by all runs that train on them
    trainjobs/<name>/warmup/      start weights
    trainjobs/<name>/challenger/  output

Folders that no running TrainJob uses may be deleted at any time.
"""

import argparse
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bebygan.errors import ConfigError, DataError, StorageError, WeightsError
from bebygan.files import sha256_of, whole_folder
from bebygan.settings import GanSettings
from components.artifacts import check_data_version, photographs_version
from components.checkout import discriminator_beside
from components.cli import add_training_arguments, run_step, step_parser
from components.config import Params, from_yaml, one_line_yaml, to_yaml
from components.progress import say
from components.stores import folder_of
from components.train.cluster_api import PATIENCE, Patience
from components.train.trainjob import TrainJobSettings, TrainJobSpec, trainjob_name
from components.train.trainjob_run import run_trainjob

VOLUME = Path("/volume")
"""Mount path of the volume, in this task and in the training pods."""
LINEAGE = ("BEBYGAN_PARENT_RUN", "KFP_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID")
"""Environment variables that identify this run, which tracks the training as a part of it."""
_SECONDS_UNTIL_SEEN = 120.0
"""A shared file system may show a new folder to other machines with a delay."""


def _share(source: Path, target: Path) -> None:
    """Copy a folder to the volume, unless it exists there."""
    if target.exists():
        return
    # Another launcher may copy the same folder; a folder that others read must not be replaced.
    with contextlib.suppress(FileExistsError), whole_folder(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        if target.exists():
            raise FileExistsError


def _command(home: Path, shards: Path, checkpoints: str, params: GanSettings) -> tuple[str, ...]:
    """Return the command of the training pods."""
    return (
        *("python", "-m", "components.train.torchrun", "-m", "components.train"),
        *("--set", f"train={one_line_yaml(params)}", "--patches", str(shards), "--warmup", str(home / "warmup")),
        *("--output", str(home / "challenger"), "--checkpoints", checkpoints),
    )


def _wait_until_seen(folder: Path) -> None:
    started = time.monotonic()
    while not folder.is_dir():
        if time.monotonic() - started > _SECONDS_UNTIL_SEEN:
            raise StorageError(
                f"the training is complete, but {folder} is missing: check that this task and the training pods mount "
                "the same volume, then run again"
            )
        time.sleep(1)


def launch(
    patches: Path,
    warmup: Path,
    output: Path,
    checkpoints: str,
    *,
    params: GanSettings,
    settings: TrainJobSettings,
    volume: Path = VOLUME,
    data_version: str | None = None,
    log: Callable[[str], None] = say,
    patience: Patience = PATIENCE,
) -> None:
    """Train the challenger on other machines; see `components.train.step.train` for its output.

    Args:
        patches: folder that the patches step wrote.
        warmup: folder that the warm-up step wrote.
        output: folder, written atomically.
        checkpoints: folder on the volume, or s3://bucket/prefix.
        params: of the step.
        settings: where and on which resources to train.
        volume: mount path of the volume, here and in the pods.
        data_version: of the photographs that the run ingested; None if it is not known.
        log: called with each event and each line of the training's log.
        patience: how long to wait for the API server.

    Raises:
        DataError, WeightsError: there are no patches or no warm-up weights, or the patches are of another data version.
        ConfigError: the checkpoints would be lost with the pod.
        StorageError: the volume or the output cannot be written.
        BebyganError, RuntimeError: see `components.train.trainjob_run.run_trainjob`.
    """
    about, start = patches / "patches.json", warmup / "generator.safetensors"
    if not about.is_file():
        raise DataError(f"{patches} holds no patches.json: run patches first")
    if not start.is_file():
        raise WeightsError(f"no weights at {start}: run warmup first")
    if data_version:
        check_data_version(patches, photographs_version(patches), data_version, "patches")
    folder = folder_of(checkpoints)
    if not checkpoints or (folder and not folder.is_relative_to(volume)):
        raise ConfigError(
            f"checkpoints {checkpoints} would be lost with the pod: they must be below {volume}, or in s3://"
        )
    digest = sha256_of(about)
    beside = [sha256_of(path) for path in [discriminator_beside(start)] if path]
    name = trainjob_name("train", to_yaml(params), digest, sha256_of(start), settings.image, *beside)
    shards, home = volume / "shards" / digest[:16], volume / "trainjobs" / name
    challenger = home / "challenger"
    if challenger.is_dir():
        log(f"{challenger} exists already: nothing to train")
    else:
        _share(patches, shards)
        _share(warmup, home / "warmup")
        spec = TrainJobSpec(
            name=name,
            settings=settings,
            command=_command(home, shards, checkpoints, params),
            environment={
                "BEBYGAN_IMAGE": settings.image,
                "BEBYGAN_CACHE": str(volume / "cache"),
                "BEBYGAN_GPUS": str(settings.gpus),
                "BEBYGAN_UNTRACKED": str(volume / "untracked"),
                "PYTHONUNBUFFERED": "1",
            },
            lineage={variable: os.environ[variable] for variable in LINEAGE if os.environ.get(variable)},
        )
        run_trainjob(spec, log, patience)
        _wait_until_seen(challenger)
    with whole_folder(output) as folder:
        shutil.copytree(challenger, folder, dirs_exist_ok=True)


def _run(options: argparse.Namespace, params: Params) -> None:
    try:
        settings = from_yaml(TrainJobSettings, options.trainjob.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {options.trainjob}: {error.strerror}") from error
    folders = (options.patches, options.warmup, options.output)
    launch(*folders, options.checkpoints, params=params.train, settings=settings, volume=options.volume)
    print(f"{options.output}: challenger")


def main() -> int:
    """Run the step and return its exit code."""
    parser = step_parser("train.launch", "Train Beby-GAN on other machines, as a TrainJob.")
    parser.add_argument("--warmup", type=Path, required=True, help="folder that the warm-up step wrote")
    add_training_arguments(parser, "challenger")
    parser.add_argument("--trainjob", type=Path, required=True, help="YAML file of settings: see TrainJobSettings")
    parser.add_argument("--volume", type=Path, default=VOLUME, help="mount path of the volume (%(default)s)")
    return run_step(parser, _run)


if __name__ == "__main__":
    sys.exit(main())
