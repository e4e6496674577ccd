"""`python -m bebygan.training.auto_encoder`: train the auto-encoder of AESOP (arXiv 2412.00124) on patches.

Its decoder starts from a PSNR-oriented generator. L1 is taken of the result, and of the shrunk image to LR, as in the
authors' code; otherwise the encoder could hide HR in an image that looks like no LR image. A run takes minutes, so it
has no checkpoints.
"""

import argparse
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bebygan.files import whole_file
from bebygan.imaging.shards import Patches, read_patches
from bebygan.networks.auto_encoder import AutoEncoder
from bebygan.networks.naming import load_generator
from bebygan.networks.weights import safetensors_bytes
from bebygan.precision import autocast, training_device
from bebygan.training.sampling import batch
from bebygan.training.state import decay_at, place, update_average

_CROP = 96
_BATCH = 8
_PEAK = 4e-4
_DECAY = 0.999
"""Of the average of the weights, which is what is delivered."""
_LOGGED = 100


def losses(network: AutoEncoder, lr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
    """Return L1 of the result to HR and of the shrunk image to LR.

    Args:
        network: see `AutoEncoder`.
        lr: (N, 3, H, W), RGB in [0, 1].
        hr: (N, 3, 4H, 4W), in [0, 1].
    """
    with autocast("auto", hr.device):
        shrunk = network.encode(hr)
        result = network.decoder(shrunk)
    return F.l1_loss(result.float(), hr), F.l1_loss(shrunk.float(), lr)


def train_auto_encoder(decoder: Path, patches: Patches, iterations: int) -> AutoEncoder:
    """Return the average of the trained weights.

    Args:
        decoder: file of the generator's weights that the decoder starts from.
        patches: of the training split.
        iterations: of Adam, at a rate that falls to 0 by a cosine.

    Raises:
        WeightsError: the file is missing, damaged, or another network's.
        DataError: there are no patches, or they are smaller than a crop.
    """
    device = training_device()
    torch.manual_seed(1)
    start = load_generator(decoder)
    network = AutoEncoder(start.shape)
    network.decoder.load_state_dict(start.state_dict())
    network = place(network, device, channels_last=True)
    average = deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.Adam(network.parameters(), _PEAK)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    for iteration in range(iterations):
        lr, hr = batch(patches, 1, iteration * _BATCH, _BATCH, crop=_CROP, device=device)
        restored, shrunk = losses(network, lr, hr)
        optimiser.zero_grad()
        torch.autograd.backward(restored + shrunk)
        optimiser.step()
        schedule.step()
        update_average(average, network, torch.tensor(1 - decay_at(iteration, _DECAY), device=device))
        if (iteration + 1) % _LOGGED == 0:
            print(f"{iteration + 1}: L1 of HR {restored.item():.4f}, of LR {shrunk.item():.4f}", flush=True)
    return average


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and write the weights in half precision."""
    parser = argparse.ArgumentParser(prog="python -m bebygan.training.auto_encoder", description=main.__doc__)
    parser.add_argument("--patches", type=Path, required=True, help="folder that the patches step wrote")
    parser.add_argument("--decoder", type=Path, required=True, help="weights of a PSNR-oriented generator")
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--output", type=Path, required=True, help="file of weights to write")
    options = parser.parse_args(arguments)
    train, validation = (read_patches(options.patches, split) for split in ("train", "validation"))
    network = train_auto_encoder(options.decoder, train, options.iterations)
    with torch.no_grad():
        pairs = [batch(validation, 1, n, 1, crop=_CROP, device=training_device()) for n in range(len(validation))]
        restored = torch.stack([losses(network, *pair)[0] for pair in pairs]).mean()
    print(f"validation patches: L1 of HR {restored.item():.4f}")
    weights = {name: value.cpu().half().contiguous() for name, value in network.state_dict().items()}
    with whole_file(options.output) as temporary:
        temporary.write_bytes(safetensors_bytes(weights, {}))


if __name__ == "__main__":
    main()
