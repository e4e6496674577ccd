import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bebygan
from bebygan.errors import DataError
from bebygan.imaging.tiling import upscale_image
from bebygan.loading import Upscaler
from bebygan.networks import Generator, save_generator
from bebygan.settings import GeneratorShape

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


@pytest.fixture
def upscaler(tmp_path: Path) -> Upscaler:
    torch.manual_seed(0)
    save_generator(Generator(GeneratorShape(blocks=1, features=4, growth=2)), tmp_path / "generator.safetensors")
    return bebygan.load(tmp_path / "generator.safetensors", precision="fp32")


@pytest.fixture
def sr(upscaler: Upscaler) -> np.ndarray:
    return upscale_image(upscaler, RGB)


def test_arrays_and_batches_give_arrays_of_the_same_type(upscaler: Upscaler, sr: np.ndarray) -> None:
    assert np.array_equal(upscaler(RGB), sr)
    assert np.array_equal(upscaler(np.stack([RGB, RGB])), np.stack([sr, sr]))
    assert upscaler(RGB[..., 0]).shape == (24, 36)
    assert upscaler(RGB[..., :1]).shape == (24, 36, 1)
    deep = upscaler(RGB.astype(np.uint16) * 257)
    assert deep.dtype == np.uint16
    assert np.abs(deep / 257 - sr).max() <= 0.51
    floats = upscaler(RGB.astype(np.float32) / 255)
    assert floats.dtype == np.float32
    assert np.abs(floats * 255 - sr).max() <= 0.51


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "I;16"])
def test_pillows_images_keep_their_mode(mode: str, upscaler: Upscaler) -> None:
    image = (
        Image.fromarray(RGB[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(RGB).convert(mode)
    )
    large = upscaler(image)
    assert (large.mode, large.size) == (mode, (36, 24))


def test_paths_bytes_and_lists_are_read(upscaler: Upscaler, sr: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.rot90(RGB, 2)).save(tmp_path / "a.png", exif=exif)
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        assert np.array_equal(np.asarray(upscaler(path)), sr)
    content = upscaler((tmp_path / "a.png").read_bytes())
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), sr)
    one, other = upscaler([RGB, tmp_path / "a.png"])
    assert np.array_equal(one, np.asarray(other))


def test_tensors_are_computed_by_the_network_with_gradients(upscaler: Upscaler, sr: np.ndarray) -> None:
    lr = torch.from_numpy(RGB.transpose(2, 0, 1)).float()[None] / 255
    lr.requires_grad_()
    found = upscaler(lr)
    found.sum().backward()
    assert lr.grad is not None
    plain = Generator(upscaler.shape)
    plain.load_state_dict(upscaler.state_dict())
    assert torch.allclose(found, plain(lr), atol=1e-6)
    assert upscaler(lr[0]).shape == (3, 24, 36)
    whole = upscaler(torch.from_numpy(RGB.transpose(2, 0, 1)))
    assert np.array_equal(whole.numpy().transpose(1, 2, 0), sr)
    assert upscaler.train().training


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (None, "NoneType cannot be upscaled: give a PIL image, a path"),
        (RGB.astype(np.float32), "an array of float32 and values from 0 to 249 cannot be upscaled: give uint8, uint16"),
        (np.full((4, 4, 3), np.nan), "an array of float64 and values from nan to nan"),
        (RGB > 9, "an array of bool cannot be upscaled"),
        (np.zeros((3, 4, 5), np.uint8), r"an array of shape \(3, 4, 5\) cannot be upscaled"),
        (np.zeros((0, 4, 3), np.uint8), r"an array of shape \(0, 4, 3\)"),
        (torch.zeros(1, 4, 8, 8), r"a tensor of shape \(1, 4, 8, 8\) cannot be upscaled"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int32), "a tensor of torch.int32 cannot be upscaled"),
        (Image.new("F", (4, 4)), "its pixels are of Pillow's mode F"),
        (b"text", "the image is no JPEG, PNG"),
        ("nowhere.png", "cannot read nowhere.png"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(wrong: object, said: str, upscaler: Upscaler) -> None:
    with pytest.raises(DataError, match=said) as caught:
        upscaler(wrong)
    assert "\n" not in str(caught.value)
