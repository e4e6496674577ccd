"""Train the PSNR-oriented generator that Beby-GAN starts from with L1, or import its weights."""

import shutil
from pathlib import Path

import torch

from bebygan.distributed import rank
from bebygan.errors import WeightsError
from bebygan.files import sha256_of, whole_folder
from bebygan.networks.generator import Generator
from bebygan.networks.naming import load_generator
from bebygan.networks.weights import metadata_of
from bebygan.precision import training_device
from bebygan.pretrained import GENERATORS, KNOWN, weights_file
from bebygan.settings import GeneratorShape
from bebygan.training.state import new_state
from bebygan.training.step import warmup_step
from components.artifacts import write_history
from components.checkout import discriminator_beside, start_weights_file
from components.config import WarmupParams
from components.tracking.registry import find_version, write_start
from components.training import Track, job_of, train_generator, write_generator


def _objective_of(path: Path) -> str:
    """Return what the weights in a file were trained for, or "" if the file does not say it."""
    metadata = metadata_of(path) if path.suffix == ".safetensors" else {}
    # The train step, whose weights carry no objective, trains with the adversarial loss.
    return metadata.get("objective", "perceptual" if metadata.get("step") == "train" else "")


def _first_difference(generator: Generator, shape: GeneratorShape) -> str:
    """Say which key of the weights is the first that a generator of another shape does not have like this."""
    with torch.device("meta"):
        wanted = {key: tuple(value.shape) for key, value in Generator(shape).state_dict().items()}
    found = {key: tuple(value.shape) for key, value in generator.state_dict().items()}
    key = next(key for key in (*wanted, *found) if wanted.get(key) != found.get(key))
    return f"{key} is {found.get(key, 'missing')} in the file and {wanted.get(key, 'missing')} in the generator"


def _check_shape(generator: Generator, where: str | Path, asked: GeneratorShape) -> None:
    if generator.shape != asked:
        raise WeightsError(
            f"{where} holds {generator.shape}, but warmup.generator asks for {asked}: "
            f"{_first_difference(generator, asked)}"
        )


def _continue(reference: str, output: Path, asked: GeneratorShape) -> None:
    """Write the weights of a registered version unchanged, so that their digest shows where they come from."""
    uri, _, expected = reference.partition("#")
    version = find_version(uri, "")
    if expected != version.tags.get("weights_sha256", ""):
        raise WeightsError(f"{uri} has other weights than when this run was decided: run again")
    with whole_folder(output) as folder:
        write_start(version, folder)
        _check_shape(load_generator(folder / "generator.safetensors"), uri, asked)
        write_history(folder, [])


def warm_up(patches: Path, output: Path, checkpoints: str | Path, *, params: WarmupParams, track: Track) -> None:
    """Train or import the warm-up generator, or fetch the weights of a registered version to continue with.

    Args:
        patches: folder that the patches step wrote.
        output: folder, replaced as a whole: generator.safetensors, generator_raw.safetensors, history.jsonl. The
            metadata of the weights say what they were trained for, under `objective`, if that is known. Of a version:
            its generator.safetensors, and discriminator.safetensors if it has one. Weights that are taken as they are
            keep the discriminator.safetensors beside them.
        checkpoints: folder or s3:// prefix for the checkpoints of this and other runs.
        params: of the step.
        track: gets the logged values.

    Raises:
        WeightsError: the given weights are missing, damaged, or of another architecture.
        ServiceError: the registry is unreachable or refuses.
        Preempted, DataError, ConfigError: see `bebygan.training.loop.fit`.
        StorageError: the output cannot be written.
    """
    if (params.weights or "").startswith("models:/"):
        if not rank():
            _continue(str(params.weights), output, params.generator)
        return
    start, objective, beside = "scratch", "psnr", None
    torch.manual_seed(params.seed)
    if params.weights is None:
        generator = Generator(params.generator)
    else:
        known = params.weights in GENERATORS
        path = weights_file(params.weights) if known else start_weights_file(params.weights)
        generator = load_generator(path)
        start = sha256_of(path)
        if not params.iterations:
            beside = discriminator_beside(start_weights_file(params.weights))
            objective = (KNOWN[params.weights].objective or "") if known else _objective_of(path)
        _check_shape(generator, path, params.generator)
    state = new_state(generator, None, params, training_device())
    job = job_of("warmup", params, patches, {"start": start})
    if params.iterations:
        step = warmup_step(params)
        train_generator(state, patches, params, step, checkpoints=checkpoints, job=job, track=track)
    if rank():
        return
    with whole_folder(output) as folder:
        write_generator(folder, state, params, job | ({"objective": objective} if objective else {}))
        if beside:
            shutil.copyfile(beside, folder / beside.name)
