"""Generator, discriminator and the frozen networks of perceptual loss, LPIPS and DISTS; files of their weights."""

from typing import TYPE_CHECKING

from bebygan.lazy import lazy_names
from bebygan.networks.architecture import VggName, discriminator_stages, vgg_layers

if TYPE_CHECKING:
    from bebygan.networks.auto_encoder import AutoEncoder, load_auto_encoder
    from bebygan.networks.discriminator import Discriminator
    from bebygan.networks.dists import Dists, load_dists
    from bebygan.networks.generator import Generator
    from bebygan.networks.naming import Naming, load_generator, save_generator
    from bebygan.networks.perceptual import AlexNet, Vgg, load_alexnet, load_vgg

__all__ = [
    "AlexNet",
    "AutoEncoder",
    "Discriminator",
    "Dists",
    "Generator",
    "Naming",
    "Vgg",
    "VggName",
    "discriminator_stages",
    "load_alexnet",
    "load_auto_encoder",
    "load_dists",
    "load_generator",
    "load_vgg",
    "save_generator",
    "vgg_layers",
]
_MODULES = ["auto_encoder", "discriminator", "dists", "generator", "naming", "perceptual"]
__getattr__, __dir__ = lazy_names(__name__, __all__, _MODULES)
