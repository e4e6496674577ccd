"""PSNR and LPIPS of regions, and artefacts, checked by formulas that do not share code with them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from bebygan.imaging import Image
from bebygan.imaging.colour import luma
from bebygan.metrics import artefact_map, artefacts, load_lpips, psnr_y
from bebygan.metrics.fidelity import psnr_y_in
from bebygan.pretrained import weights_file


@pytest.fixture
def pair(picture: Callable[..., PillowImage.Image]) -> tuple[Image, Image]:
    hr = np.asarray(picture(1, 96, 80)).copy()
    noise = np.random.default_rng(1).normal(0, 6, hr.shape)
    return (hr + noise).clip(0, 255).astype(np.uint8), hr


def test_psnr_of_a_region_is_that_of_its_cut_out_pixels(pair: tuple[Image, Image]) -> None:
    sr, hr = pair
    region = np.zeros(hr.shape[:2], bool)
    region[10:40, 20:60] = True
    # The border of 4 pixels, which psnr_y ignores, lies around the region.
    around = (slice(6, 44), slice(16, 64))
    assert psnr_y_in(sr, hr, region) == pytest.approx(psnr_y(sr[around], hr[around]))
    error = np.square(luma(sr) - luma(hr))[10:40, 20:60].mean()
    assert psnr_y_in(sr, hr, region) == pytest.approx(20 * np.log10(255) - 10 * np.log10(error))
    assert psnr_y_in(sr, hr, np.ones_like(region)) == pytest.approx(psnr_y(sr, hr))
    assert np.isnan(psnr_y_in(sr, hr, np.zeros_like(region)))
    assert psnr_y_in(hr, hr, region) == np.inf


def test_lpips_of_a_region_is_that_of_the_whole_where_the_region_is_whole(pair: tuple[Image, Image]) -> None:
    network = load_lpips(weights_file("alexnet"), weights_file("lpips-alex"))
    sr, hr = (torch.from_numpy(image.transpose(2, 0, 1).copy())[None] / 255 for image in pair)
    half = hr.clone()
    half[..., :48] = sr[..., :48]
    left = np.zeros(hr.shape[-2:], bool)
    left[:, :16] = True
    right = np.zeros_like(left)
    right[:, -16:] = True
    with torch.inference_mode():
        maps = network.maps(network.features(half), network.features(hr))
        assert network.mean_in(maps, np.ones_like(left)) == pytest.approx(float(network(half, hr)), rel=1e-5)
        assert network.mean_in(maps, left) > 20 * network.mean_in(maps, right)


def test_artefacts_follow_their_formula() -> None:
    random = np.random.default_rng(2)
    reference = (128 + random.normal(0, 4, (40, 40, 3))).round().clip(0, 255).astype(np.uint8)
    sr = reference.copy()
    sr[10:30, 10:30] = (128 + random.normal(0, 40, (20, 20, 3))).round().clip(0, 255).astype(np.uint8)
    found = artefact_map(sr, reference)
    for row, column in ((3, 3), (20, 20), (9, 20), (36, 30)):
        window = (slice(row - 3, row + 4), slice(column - 3, column + 4))
        ours, theirs = (image[window].reshape(-1, 3).std(0, ddof=1) / 255 for image in (sr, reference))
        similarity = (2 * ours * theirs + 2e-4) / (ours**2 + theirs**2 + 2e-4)
        assert found[row, column] == ((ours > theirs) & (similarity < 0.5)).any(), (row, column)
    assert found[20, 20]
    assert artefacts(sr, reference) == found.mean()
    assert artefacts(reference, sr) == 0, "a smoother result has no artefacts"
    with pytest.raises(ValueError, match="must have one shape"):
        artefacts(sr, reference[:8])
