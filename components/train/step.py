"""Train Beby-GAN from the warm-up generator."""

import shutil
from pathlib import Path

import torch

from bebygan.distributed import rank
from bebygan.errors import WeightsError
from bebygan.files import sha256_of, whole_folder
from bebygan.losses.objective import Perceptual
from bebygan.networks.auto_encoder import AutoEncoder, load_auto_encoder
from bebygan.networks.discriminator import Discriminator
from bebygan.networks.dists import Dists, load_dists
from bebygan.networks.naming import load_generator
from bebygan.networks.perceptual import load_vgg
from bebygan.networks.weights import load_exactly, metadata_of, read_state, safetensors_bytes
from bebygan.precision import resolve, training_device
from bebygan.pretrained import name_of, weights_file
from bebygan.settings import GanSettings
from bebygan.training.loop import TrainStep
from bebygan.training.state import TrainState, new_state, place
from bebygan.training.step import gan_step
from components.artifacts import read_patchless, seal, write_patchless
from components.checkout import DISCRIMINATOR, discriminator_beside
from components.progress import say
from components.training import Track, job_of, train_generator, write_generator

START = "start.safetensors"


def _perceptual(params: GanSettings, device: torch.device) -> Perceptual | None:
    if not params.losses.perceptual:
        return None
    taps = params.perceptual.weights
    # The names sort in the order of the layers.
    vgg = load_vgg(weights_file(params.perceptual.network), last=max(taps))
    return Perceptual(place(vgg, device, channels_last=params.channels_last), taps)


def _dists(params: GanSettings, device: torch.device) -> Dists | None:
    if not params.losses.dists:
        return None
    network = load_dists(weights_file("vgg16"), weights_file("dists"))
    return place(network, device, channels_last=params.channels_last)


def _auto_encoder(params: GanSettings, device: torch.device) -> AutoEncoder | None:
    if not params.losses.auto_encoded:
        return None
    network = load_auto_encoder(weights_file("auto-encoder-4x32"))
    return place(network, device, channels_last=params.channels_last)


def continued_discriminator(start: Path, params: GanSettings) -> Path | None:
    """Return the file of the discriminator that training from a generator's weights continues with, or None.

    One that this project trained for known weights is only continued with where it fits.

    Raises:
        WeightsError: a file is damaged.
    """
    beside = discriminator_beside(start) if params.losses.adversarial else None
    if beside is None:
        return None
    with torch.device("meta"):
        wanted = Discriminator(params.crop, params.discriminator_width).state_dict()
    found = read_state(beside)
    fits = {key: value.shape for key, value in wanted.items()} == {key: value.shape for key, value in found.items()}
    return beside if fits or not name_of(read_state(start)) else None


def prepared(start: Path, params: GanSettings) -> tuple[TrainState, TrainStep]:
    """Return the state before the first iteration, on the device of training, and the iteration.

    Args:
        start: file of the generator's weights. A discriminator beside it is continued with.
        params: of the step.

    Raises:
        WeightsError: the generator, or a network that a loss needs, is unavailable, or the discriminator
            has another shape.
    """
    device = training_device()
    generator = load_generator(start)
    torch.manual_seed(params.seed)
    discriminator = Discriminator(params.crop, params.discriminator_width) if params.losses.adversarial else None
    if discriminator is not None and (beside := continued_discriminator(start, params)):
        try:
            load_exactly(discriminator, read_state(beside), beside)
        except WeightsError as error:
            raise WeightsError(
                f"{error}; to continue with it, set train.crop and train.discriminator_width to those that it was "
                "trained with, start from a copy of the generator alone, or set train.start to warmup"
            ) from error
    state = new_state(generator, discriminator, params, device)
    frozen = _perceptual(params, device), _dists(params, device), _auto_encoder(params, device)
    return state, gan_step(params, *frozen)


def _about_start(start: Path, folder: Path, share: float) -> dict[str, str]:
    """Return what the delivered weights tell about the start; copy the start unless it can be had from elsewhere.

    Known weights are downloaded by their name, and those of a registered version, which alone come from a train step,
    are in the registry.
    """
    told, name = {"start_share": f"{share:g}"}, name_of(read_state(start))
    if not name and metadata_of(start).get("step") != "train":
        shutil.copyfile(start, folder / START)
    return told | ({"start_name": name} if name else {})


def train(
    patches: Path, warmup: Path, output: Path, checkpoints: str | Path, *, params: GanSettings, track: Track
) -> None:
    """Train the challenger.

    Args:
        patches: folder that the patches step wrote.
        warmup: folder that the warm-up step wrote.
        output: folder, written atomically: generator.safetensors (the average), generator_raw.safetensors,
            discriminator.safetensors if the adversarial loss has a weight, history.jsonl, start.safetensors (the start,
            if neither a name of known weights nor a registered version gives it), patchless.json of the patches, and
            checksums.json about all of these.
        checkpoints: folder or s3:// prefix.
        params: of the step.
        track: receives the logged values.

    Raises:
        WeightsError: see `prepared`.
        ConfigError: the checkpoints belong to another run.
        Preempted, DataError: see `bebygan.training.loop.fit`.
        StorageError: the output cannot be written.
    """
    device = training_device()
    if params.precision == "auto" and device.type == "cpu" and resolve("auto", device) == "fp32" and not rank():
        say(
            "train: this processor does not compute bfloat16, so iterations in float32 take longer; for a shorter "
            "training set train.iterations, or take --params params/compact.yaml"
        )
    start = warmup / "generator.safetensors"
    state, step = prepared(start, params)
    digests = {"start": sha256_of(start)}
    if beside := continued_discriminator(start, params):
        digests["start_discriminator"] = sha256_of(beside)
    elif discriminator_beside(start) and params.losses.adversarial and not rank():
        say(
            "train: the discriminator that comes with the start judges other crops or has another width, so a new one "
            "is trained: let it learn first (train.discriminator_first), in large batches"
        )
    job = job_of("train", params, patches, digests)
    train_generator(state, patches, params, step, checkpoints=checkpoints, job=job, track=track)
    if rank():
        return
    with whole_folder(output) as folder:
        write_generator(folder, state, params, job | _about_start(start, folder, state.start_share))
        if state.discriminator is not None:
            weights = {key: value.cpu().contiguous() for key, value in state.discriminator.state_dict().items()}
            (folder / DISCRIMINATOR).write_bytes(safetensors_bytes(weights, {}))
        # Evaluate, which does not receive the patches, reports these photographs.
        if patchless := read_patchless(patches):
            write_patchless(folder, patchless)
        seal(folder)
