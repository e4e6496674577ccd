from pathlib import Path

import numpy as np
import pytest
import torch

from bebygan.losses.best_buddy import find_best_buddies
from bebygan.networks.generator import Generator
from bebygan.settings import BestBuddySettings, GeneratorShape
from bebygan.training.pictures import LEVEL_COLOURS, level_map, picture_grid
from components.config import load_params

BUDDIES = BestBuddySettings(alpha=1, beta=1, patch=3, stride=3, pyramid="matlab", chunk=64)
SIDE = 48
COMPACT = Path(__file__).parents[3] / "params/compact.yaml"


@pytest.fixture
def samples() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.rand(2, 3, SIDE // 4, SIDE // 4), torch.rand(2, 3, SIDE, SIDE)


def panel(grid: np.ndarray, row: int, column: int) -> np.ndarray:
    top, left = row * (SIDE + 4), column * (SIDE + 4)
    return grid[top : top + SIDE, left : left + SIDE]


def test_a_gan_picture_shows_lr_sr_hr_mask_and_levels(samples: tuple[torch.Tensor, torch.Tensor]) -> None:
    lr, hr = samples
    hr[0, :, :, :24] = 0.5
    generator = Generator(GeneratorShape(blocks=1, features=4, growth=2))
    settings = load_params(COMPACT, ["train.crop=48"]).train
    grid = picture_grid(generator, lr, hr, settings)
    assert grid.shape == (2 * SIDE + 4, 5 * SIDE + 4 * 4, 3)
    assert (grid[SIDE : SIDE + 4] == 255).all()
    for row in range(2):
        small = (lr[row] * 255).round().byte().permute(1, 2, 0).numpy()
        assert np.array_equal(panel(grid, row, 0), small.repeat(4, 0).repeat(4, 1))
        assert np.array_equal(panel(grid, row, 2), (hr[row] * 255).round().byte().permute(1, 2, 0).numpy())
    with torch.no_grad():
        sr = (generator(lr)[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.abs(panel(grid, 0, 1).astype(int) - sr).max() <= 1
    mask = panel(grid, 0, 3)
    assert (mask[:, :15] == 0).all()
    assert (mask[:, 30:] == 255).all()
    colours = {tuple(map(int, colour)) for colour in panel(grid, 0, 4).reshape(-1, 3)}
    assert colours <= set(LEVEL_COLOURS.values())


def test_a_warm_up_picture_shows_lr_sr_and_hr(samples: tuple[torch.Tensor, torch.Tensor]) -> None:
    generator = Generator(GeneratorShape(blocks=1, features=4, growth=2))
    grid = picture_grid(generator, *samples, load_params(COMPACT).warmup)
    assert grid.shape == (2 * SIDE + 4, 3 * SIDE + 2 * 4, 3)


def test_the_level_map_counts_as_the_logged_shares(samples: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, hr = samples
    sr = (hr + 0.4 * torch.randn(hr.shape))[:1]
    shares = find_best_buddies(sr, hr[:1], BUDDIES).shares()
    picture = level_map(sr, hr[:1], BUDDIES)
    assert picture.shape == (16, 16, 3)
    for name, colour in LEVEL_COLOURS.items():
        assert (picture == colour).all(2).mean() == pytest.approx(float(shares[name]))
    assert 0 < float(shares["own"]) < 1


def test_a_perfect_image_is_its_own_buddy_everywhere(samples: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, hr = samples
    assert (level_map(hr[:1], hr[:1], BUDDIES) == LEVEL_COLOURS["own"]).all()


def test_taking_a_picture_changes_neither_weights_nor_randomness(samples: tuple[torch.Tensor, torch.Tensor]) -> None:
    generator = Generator(GeneratorShape(blocks=1, features=4, growth=2))
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    random = torch.get_rng_state()
    picture_grid(generator, *samples, load_params(COMPACT, ["train.crop=48"]).train)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    assert generator.training
