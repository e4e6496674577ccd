"""The common part of warm-up and GAN training around the training loop: job identity, history, progress."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch

from bebygan.differences import differences
from bebygan.distributed import joined, rank
from bebygan.errors import DataError
from bebygan.files import sha256_of
from bebygan.imaging import Image
from bebygan.imaging.shards import PATCH_SPLITS, read_patches
from bebygan.metrics.perceptual import load_lpips, lpips
from bebygan.networks.naming import save_generator
from bebygan.networks.weights import metadata_of
from bebygan.pretrained import weights_file
from bebygan.settings import Optimisation
from bebygan.training.checkpoint import RunIdentity
from bebygan.training.delivery import choose_share
from bebygan.training.loop import TrainStep, fit
from bebygan.training.pictures import picture_grid
from bebygan.training.sampling import batch
from bebygan.training.state import TrainState
from bebygan.training.validation import Distance, validate
from components.artifacts import check_data_version, parameters_of_patches, photographs_version, write_history
from components.cli import stoppable
from components.config import digest, flatten, plain
from components.progress import progress_bar, say
from components.stores.checkpoint_store import open_checkpoints
from components.tracking.history import earlier_run
from components.tracking.provenance import code_hash
from components.tracking.runs import step_run

Track = Callable[[int, Mapping[str, float | Image]], None]
"""Called with the number of an iteration and its values and pictures."""
_PICTURED = 3
"""Patches in a picture of training."""


def job_of(step: str, params: object, patches: Path, start: Mapping[str, str]) -> dict[str, str]:
    """Return the identity of a training run: only the same job resumes a checkpoint.

    Args:
        step: name of the step.
        params: of the step.
        patches: folder whose patches.json has the checksums of all pixels.
        start: identity of the initial weights.

    Raises:
        DataError: there are no patches, or patches.json is damaged.
    """
    return {
        "step": step,
        "data_version": photographs_version(patches),
        "patches": sha256_of(patches / "patches.json"),
        "code": code_hash(),
        **{f"params.{name}": str(value) for name, value in flatten(plain(params))},
        **start,
    }


def check_patches(patches: Path, data_version: str, pipeline_run: str | None) -> None:
    """Check that patches were made of the photographs, and with the parameters, of the run that trains on them.

    Args:
        patches: folder that the patches step wrote.
        data_version: of the photographs that the run ingested.
        pipeline_run: id of the run of the whole pipeline, which has its parameters; None if the step runs alone.

    Raises:
        DataError: they were not, or patches.json is missing or damaged.
        ServiceError: the server is unreachable or refuses.
    """
    check_data_version(patches, photographs_version(patches), data_version, "patches")
    pipeline = earlier_run(pipeline_run)
    asked = {name: text for name, text in pipeline.params.items() if name.startswith("patches.")} if pipeline else {}
    made = parameters_of_patches(patches)
    if asked and made and (changed := differences(made, asked, 3)):
        raise DataError(
            f"{patches} was made with other parameters than this run has ({', '.join(changed)}): run patches again"
        )


@contextmanager
def tracked_training(
    step: str, params: Optimisation, data_version: str, patches: Path | None = None
) -> Iterator[Track]:
    """Join the processes of torchrun, if any, and track the step of the first one in MLflow.

    Args:
        step: name of the step.
        params: of the step.
        data_version: of the photographs that the run ingested.
        patches: folder to check, see `check_patches`; None checks nothing.

    Raises:
        ConfigError, ServiceError: see `bebygan.distributed.joined` and `step_run`.
        DataError: see `check_patches`.
        Preempted: the process received SIGTERM, or lost another process.
    """
    # `joined` first: Python runs no signal handler while processes wait for each other. In the loop, the handler of
    # `fit` first finishes an iteration and saves.
    with joined(), stoppable("stopped on request; run again to continue from the last checkpoint"):
        if rank() == 0:
            with step_run(step, params, data_version, machine=True) as track:
                if patches:
                    check_patches(patches, data_version, track.pipeline_run)
                yield track
        else:
            yield lambda *_: None


def _lpips(device: torch.device) -> Distance:
    network = load_lpips(weights_file("alexnet"), weights_file("lpips-alex")).to(device)
    return lambda sr, hr: lpips(sr, hr, network)


def train_generator(
    state: TrainState,
    patches: Path,
    optimisation: Optimisation,
    step: TrainStep,
    *,
    checkpoints: str | Path,
    job: RunIdentity,
    track: Track,
) -> None:
    """Train with a progress bar, resuming the same job from its checkpoints.

    Args:
        state: changed in place.
        patches: folder that the patches step wrote.
        optimisation: how long and how fast.
        step: one iteration.
        checkpoints: see `open_checkpoints`.
        job: see `job_of`.
        track: receives the logged values and pictures.

    Raises:
        Preempted, StorageError, DataError, ConfigError: see `bebygan.training.loop.fit`.
        WeightsError: LPIPS, which validation measures, cannot be loaded.
        ServiceError: the bucket for the checkpoints is unreachable, unknown or refuses.
    """
    # Both splits are in the same files, so verifying them once is enough.
    train, validation = (read_patches(patches, split, verify=split == "train") for split in PATCH_SPLITS)
    device = next(state.generator.parameters()).device
    done = 0
    first = rank() == 0
    with progress_bar(job["step"], "iterations", optimisation.iterations) if first else nullcontext(int) as advance:

        def watch(iteration: int, logged: Mapping[str, float] | None) -> None:
            nonlocal done
            if logged is not None:
                track(iteration, logged)
            if iteration and optimisation.picture_every and iteration % optimisation.picture_every == 0:
                pair = batch(validation or train, 0, 0, _PICTURED, crop=optimisation.crop, device=device)
                track(iteration, {"samples": picture_grid(state.result(), *pair, optimisation)})
            advance(iteration - done)
            done = iteration

        lpips = _lpips(device) if optimisation.validate_every else None
        with open_checkpoints(str(checkpoints), job, first=first) as (folder, saved):
            fit(
                state,
                train,
                optimisation,
                step,
                checkpoints=folder,
                identity=job,
                watch=watch,
                saved=saved,
                validation=validation,
                lpips=lpips,
            )
    if optimisation.start_shares:
        measure = partial(validate, patches=validation, optimisation=optimisation, lpips=lpips)
        found = choose_share(state, measure, optimisation.start_shares, optimisation.deliver)
        if found and first:
            by = optimisation.deliver.by
            values = ", ".join(f"{share:g}: {values[by]:.4f}" for share, values in found.items())
            say(f"{job['step']}: {by} by share of the start is {values}; {state.start_share:g} is delivered")


def is_made(weights: Path, settings: Optimisation, patches: Path, start: Path | None = None) -> bool:
    """Return whether a file of weights is the result of a step with these settings, patches and start."""
    if not weights.is_file():
        return False
    wanted = {
        "params": digest(settings),
        "patches": sha256_of(patches / "patches.json"),
    }
    if start:
        wanted["start"] = sha256_of(start)
    return wanted.items() <= metadata_of(weights).items()


def write_generator(folder: Path, state: TrainState, params: Optimisation, job: RunIdentity) -> None:
    """Write the output of a training step: delivered and raw generator, and the logged values.

    Args:
        folder: exists; gets generator.safetensors (the average that the run delivers), generator_raw.safetensors (the
            generator at the end) and history.jsonl.
        state: after training.
        params: of the step; the metadata of the weights contain their hash and the seed.
        job: see `job_of`; the metadata of the weights contain all of it except the single parameters, and the
            iteration.
    """
    metadata = {name: text for name, text in job.items() if not name.startswith("params.")}
    metadata |= {"params": digest(params), "seed": str(params.seed)}
    delivered, iteration = state.delivered()
    for name, generator, at in (
        ("generator", delivered, iteration),
        ("generator_raw", state.generator, state.iteration),
    ):
        save_generator(generator, folder / f"{name}.safetensors", metadata=metadata | {"iteration": str(at)})
    write_history(folder, state.history)
