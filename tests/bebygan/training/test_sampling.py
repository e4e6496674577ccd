from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bebygan import SCALE
from bebygan.errors import DataError
from bebygan.imaging.shards import Patches, PhotographPair, read_patches, write_shards
from bebygan.training.sampling import batch, sample

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Patches:
    """A photograph whose LR pixels say where they are, and whose HR pixels say to which LR pixel they belong."""
    rows, columns = np.mgrid[0:48, 0:64].astype(np.uint8)
    lr = np.stack((rows, columns, np.zeros_like(rows)), 2)
    hr = lr.repeat(SCALE, 0).repeat(SCALE, 1)
    windows = np.array([(top, left) for top in range(0, 97, 32) for left in range(0, 161, 32)])
    folder: Path = tmp_path_factory.mktemp("patches")
    write_shards(folder, [PhotographPair(hr, lr, "train", windows)], 96, 10**9, {})
    return read_patches(folder, "train")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 10**9), st.sampled_from([48, 64, 96]))
def test_lr_and_hr_show_the_same_place_the_same_way_round(
    patches: Patches, seed: int, position: int, crop: int
) -> None:
    lr, hr = sample(patches, seed, position, crop)

    assert lr.shape == (crop // SCALE, crop // SCALE, 3)
    np.testing.assert_array_equal(lr.repeat(SCALE, 0).repeat(SCALE, 1), hr)


def test_an_epoch_shows_each_patch_once(patches: Patches) -> None:
    full = [sample(patches, 7, position, patches.size)[0] for position in range(len(patches))]

    corners = Counter((int(lr[..., 0].min()), int(lr[..., 1].min())) for lr in full)
    assert len(corners) == len(patches)
    assert set(corners.values()) == {1}


def test_epochs_and_seeds_differ(patches: Patches) -> None:
    def order(seed: int, first: int) -> list[int]:
        pairs = (sample(patches, seed, position, patches.size)[0] for position in range(first, first + len(patches)))
        return [int(lr[..., 0].min()) * 64 + int(lr[..., 1].min()) for lr in pairs]

    assert order(1, 0) != order(1, len(patches))
    assert order(1, 0) != order(2, 0)
    assert sorted(order(1, 0)) == sorted(order(1, len(patches)))


def test_a_batch_does_not_depend_on_how_it_is_split(patches: Patches) -> None:
    whole = batch(patches, 3, 40, 6, crop=48, device=CPU)
    parts = [batch(patches, 3, first, 2, crop=48, device=CPU) for first in (40, 42, 44)]

    assert torch.equal(whole[0], torch.cat([lr for lr, _ in parts]))
    assert torch.equal(whole[1], torch.cat([hr for _, hr in parts]))


def test_a_batch_is_rgb_between_0_and_1(patches: Patches) -> None:
    lr, hr = batch(patches, 3, 0, 2, crop=48, device=CPU)

    assert lr.shape == (2, 3, 12, 12)
    assert hr.shape == (2, 3, 48, 48)
    assert hr.dtype == torch.float32
    assert hr.max() <= 63 / 255


def test_all_eight_orientations_occur(patches: Patches) -> None:
    seen = set()
    for position in range(200):
        lr, _ = sample(patches, 1, position, patches.size)
        down, right = lr[1, 0].astype(int) - lr[0, 0], lr[0, 1].astype(int) - lr[0, 0]
        seen.add((tuple(down[:2]), tuple(right[:2])))

    assert len(seen) == 8


def test_a_crop_larger_than_the_patches_is_refused(patches: Patches) -> None:
    with pytest.raises(DataError, match="crop of 128 does not fit into patches of 96"):
        batch(patches, 1, 0, 1, crop=128, device=CPU)


def test_no_patches_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, [], 48, 10**6, {})

    with pytest.raises(DataError, match="no training patches"):
        batch(read_patches(tmp_path, "train"), 1, 0, 1, crop=48, device=CPU)
