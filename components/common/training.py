"""What the warm-up and the GAN phase have in common around the training loop: job identity, history, progress."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from bebygan.errors import DataError
from bebygan.files import sha256_of
from bebygan.imaging.shards import read_patches
from bebygan.networks.naming import save_generator
from bebygan.settings import Optimisation
from bebygan.training.loop import Step, fit
from bebygan.training.state import TrainState
from components.common.config import to_yaml
from components.common.progress import progress_bar
from components.common.provenance import code_hash

Track = Callable[[int, Mapping[str, float]], None]
"""Takes an iteration's number and its logged values."""


def _about(patches: Path) -> Path:
    path = patches / "patches.json"
    if not path.is_file():
        raise DataError(f"{patches} holds no patches.json: run patches first")
    return path


def photographs_version(patches: Path) -> str:
    """Return the data version of the photographs that patches were made from.

    Raises:
        DataError: there are no patches.
    """
    return str(json.loads(_about(patches).read_text())["made_from"]["data_version"])


def job_of(step: str, params: object, patches: Path, start: Mapping[str, str]) -> dict[str, str]:
    """Return what a training run is made of: a checkpoint is resumed only by the same job.

    Args:
        step: name of the step.
        params: of the step.
        patches: folder whose patches.json holds the checksums of all pixels.
        start: identity of the weights that training starts from.

    Raises:
        DataError: there are no patches.
    """
    return {
        "step": step,
        "params": hashlib.sha256(to_yaml(params).encode()).hexdigest(),
        "patches": sha256_of(_about(patches)),
        "code": code_hash(),
        **start,
    }


def checkpoint_folder(root: Path, job: Mapping[str, str]) -> Path:
    """Return the folder of a job's checkpoints: the same for the same job, wherever and whenever it runs."""
    digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()
    return root / f"{job['step']}-{digest[:16]}"


def train_generator(
    state: TrainState,
    patches: Path,
    optimisation: Optimisation,
    step: Step,
    *,
    checkpoints: Path,
    job: Mapping[str, str],
    track: Track,
) -> None:
    """Train with a progress bar, resuming the same job from its checkpoints.

    Args:
        state: changed in place.
        patches: folder that the patches step wrote.
        optimisation: how long and how fast.
        step: one iteration.
        checkpoints: folder under which each job has its own.
        job: see `job_of`.
        track: is given the logged values.

    Raises:
        Preempted, DataError, ConfigError: see `bebygan.training.loop.fit`.
    """
    train = read_patches(patches, "train")
    done = 0
    with progress_bar(job["step"], "iterations", optimisation.iterations) as advance:

        def watch(iteration: int, logged: Mapping[str, float] | None) -> None:
            nonlocal done
            if logged is not None:
                track(iteration, logged)
            advance(iteration - done)
            done = iteration

        folder = checkpoint_folder(checkpoints, job)
        fit(state, train, optimisation, step, checkpoints=folder, job=dict(job), watch=watch)


def write_generator(folder: Path, state: TrainState, metadata: Mapping[str, str]) -> None:
    """Write what a training step delivers: averaged and raw generator, and the logged values.

    Args:
        folder: exists; gets generator.safetensors (the average), generator_raw.safetensors and history.jsonl.
        state: after training.
        metadata: goes into the weights' files.
    """
    save_generator(state.average, folder / "generator.safetensors", metadata=metadata)
    save_generator(state.generator, folder / "generator_raw.safetensors", metadata=metadata)
    lines = (json.dumps(entry) + "\n" for entry in state.history)
    (folder / "history.jsonl").write_text("".join(lines))
