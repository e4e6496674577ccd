from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bebygan.losses.best_buddy import best_buddy_loss, distance_to_buddies, find_best_buddies, pyramid_levels
from bebygan.settings import BestBuddySettings
from benchmarks import plain


def setting(**changes: Any) -> BestBuddySettings:
    values: dict[str, Any] = {"alpha": 1, "beta": 1, "patch": 3, "stride": 3, "pyramid": "matlab", "chunk": 512}
    return BestBuddySettings(**values | changes)


def images(
    height: int = 48, width: int = 48, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """A blurred SR and two HR images: grey but for a tint, with structure at all scales, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    hr = 0.01 * torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64)
    for cell in (2, 3, 8, 20):
        noise = torch.rand(2, 1, height // cell + 2, width // cell + 2, generator=generator, dtype=torch.float64)
        hr += F.interpolate(noise, size=(height, width), mode="bilinear") * cell**0.5
    hr = (hr - hr.amin()) / (hr.amax() - hr.amin())
    sr = F.avg_pool2d(hr, 7, 1, 3, count_include_pad=False)
    return sr.to(dtype), hr.to(dtype)


@pytest.mark.official("bbl_*")
def test_loss_choice_and_gradient_are_the_official_ones(official: dict[str, np.ndarray]) -> None:
    sr, hr = torch.from_numpy(official["x"]).requires_grad_(), torch.from_numpy(official["gt"])
    exact = sr.dtype == torch.float64
    chosen = setting(
        alpha=float(official["alpha"]),
        beta=float(official["beta"]),
        patch=int(official["ksize"]),
        stride=int(official["stride"]),
        pyramid="official",
    )
    _, half, quarter = pyramid_levels(hr, "official")
    np.testing.assert_allclose(half, official["gt_2"], rtol=0, atol=1e-15 if exact else 1e-6)
    np.testing.assert_allclose(quarter, official["gt_4"], rtol=0, atol=1e-15 if exact else 1e-6)
    buddies = find_best_buddies(sr, hr, chosen)
    clear = official["margin"] > (1e-12 if exact else 1e-5)
    assert clear.mean() > 0.97
    np.testing.assert_array_equal(buddies.index.numpy()[clear], official["index"][clear])
    loss = best_buddy_loss(sr, hr, **vars(chosen))
    loss.backward()
    np.testing.assert_allclose(loss.item(), official["loss"], rtol=0, atol=1e-12 if exact else 1e-6)
    assert sr.grad is not None
    same = (buddies.index.numpy() == official["index"]).all()
    if same:
        np.testing.assert_allclose(sr.grad, official["grad_x"], rtol=0, atol=1e-15 if exact else 1e-9)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(9, 40),
    width=st.integers(9, 40),
    patch=st.integers(1, 4),
    stride=st.integers(1, 5),
    alpha=st.floats(0, 3),
    beta=st.floats(0.1, 3),
    pyramid=st.sampled_from(["matlab", "official"]),
    chunk=st.integers(1, 700),
    seed=st.integers(0, 1000),
)
def test_the_search_finds_what_two_distance_matrices_find(
    *, height: int, width: int, patch: int, stride: int, alpha: float, beta: float, pyramid: Any, chunk: int, seed: int
) -> None:
    sr, hr = images(height, width, seed, torch.float64)
    chosen = setting(alpha=alpha, beta=beta, patch=patch, stride=stride, pyramid=pyramid, chunk=chunk)
    levels = [level for level in pyramid_levels(hr, pyramid) if min(level.shape[-2:]) >= patch]
    loss, index = plain.best_buddy(sr, levels, alpha=alpha, beta=beta, patch=patch, stride=stride)
    torch.testing.assert_close(find_best_buddies(sr, hr, chosen).index, index)
    torch.testing.assert_close(best_buddy_loss(sr, hr, **vars(chosen)), loss, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pyramid", ["matlab", "official"])
def test_an_image_is_at_no_distance_from_itself(pyramid: Any) -> None:
    _, hr = images()
    assert best_buddy_loss(hr, hr, pyramid=pyramid).item() == 0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), noise=st.floats(0, 0.5))
def test_a_buddy_costs_at_most_what_the_patch_at_the_same_place_costs(seed: int, noise: float) -> None:
    sr, hr = images(24, 30, seed, torch.float64)
    sr = sr + noise * torch.randn(sr.shape, dtype=torch.float64)
    mine, twins = (F.unfold(image, 3, stride=3) for image in (sr, hr))
    buddies = find_best_buddies(sr, hr, setting()).patches
    cost = (mine - buddies).square().sum(1) + (twins - buddies).square().sum(1)
    assert (cost <= (mine - twins).square().sum(1) + 1e-12).all()


def test_with_no_weight_on_sr_each_patch_is_its_own_buddy_and_the_loss_is_plain_l1() -> None:
    sr, hr = images(dtype=torch.float64)
    chosen = setting(alpha=0)
    buddies = find_best_buddies(sr, hr, chosen)
    assert buddies.shares()["own"] == 1
    torch.testing.assert_close(best_buddy_loss(sr, hr, **vars(chosen)), (sr - hr).abs().mean())


def test_float32_choices_cost_no_more_than_the_best_ones() -> None:
    sr, hr = images(96, 96)
    index = find_best_buddies(sr, hr, setting()).index
    candidates = torch.cat([F.unfold(level, 3, stride=3) for level in pyramid_levels(hr.double(), "matlab")], 2)
    mine, twins = (F.unfold(image.double(), 3, stride=3) for image in (sr, hr))
    scores = sum(torch.cdist(side.mT, candidates.mT) ** 2 for side in (mine, twins))
    excess = scores.gather(2, index[..., None])[..., 0] - scores.amin(2)
    assert excess.max() < 1e-6


def test_in_a_nearly_flat_sky_the_choices_are_closer_to_float64_than_those_of_the_plain_formula() -> None:
    random = torch.Generator().manual_seed(1)
    hr = torch.ones(1, 3, 96, 96)
    hr[..., 60:] = 0.4 * torch.rand(1, 3, 96, 36, generator=random)
    hr[..., :60][torch.rand(1, 3, 96, 60, generator=random) < 0.01] = 254 / 255
    sr = F.interpolate(F.interpolate(hr, scale_factor=0.25, mode="bicubic"), scale_factor=4, mode="bicubic")
    levels = list(pyramid_levels(hr, "matlab"))
    candidates = torch.cat([F.unfold(level.double(), 3, stride=3) for level in levels], 2)
    mine, twins = (F.unfold(image.double(), 3, stride=3) for image in (sr, hr))
    exactly = "donot_use_mm_for_euclid_dist"
    scores = sum(torch.cdist(side.mT, candidates.mT, compute_mode=exactly) ** 2 for side in (mine, twins))

    def excess(index: Tensor) -> Tensor:
        return scores.gather(2, index[..., None])[..., 0] - scores.amin(2)

    ours = excess(find_best_buddies(sr, hr, setting()).index)
    full = excess(plain.best_buddy(sr, levels, alpha=1, beta=1, patch=3, stride=3)[1])
    assert (ours > 1e-14).sum() <= 0.9 * (full > 1e-14).sum()
    assert ours.sum() < 0.2 * full.sum()


def test_autocast_changes_no_choice_and_no_loss() -> None:
    sr, hr = images()
    outside = find_best_buddies(sr, hr, setting())
    with torch.autocast("cpu", torch.bfloat16):
        inside = find_best_buddies(sr, hr, setting())
        loss = best_buddy_loss(sr, hr)
        product = torch.mm(sr[0, 0], hr[0, 0].T)
    assert product.dtype == torch.bfloat16
    assert torch.equal(inside.index, outside.index)
    assert torch.equal(loss, best_buddy_loss(sr, hr))


def test_the_official_formula_would_change_its_choice_under_autocast() -> None:
    sr, hr = images()
    levels = list(pyramid_levels(hr, "matlab"))
    arguments: dict[str, Any] = {"alpha": 1, "beta": 1, "patch": 3, "stride": 3}
    _, outside = plain.best_buddy(sr, levels, **arguments)
    with torch.autocast("cpu", torch.bfloat16):
        _, inside = plain.best_buddy(sr, levels, **arguments)
    assert (inside != outside).float().mean() > 0.1


def test_half_precision_images_are_searched_in_float32() -> None:
    sr, hr = images()
    sr = sr.bfloat16()
    found = find_best_buddies(sr, hr, setting())
    assert found.patches.dtype == torch.float32
    assert torch.equal(found.index, find_best_buddies(sr.float(), hr, setting()).index)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_a_lowered_matrix_product_precision_changes_no_choice_and_is_left_as_it_was(precision: str) -> None:
    sr, hr = images()
    expected = find_best_buddies(sr, hr, setting()).index
    torch.set_float32_matmul_precision(precision)
    try:
        found = find_best_buddies(sr, hr, setting()).index
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found, expected)


def test_the_gradient_reaches_sr_alone() -> None:
    sr, hr = (image.requires_grad_() for image in images())
    best_buddy_loss(sr, hr).backward()
    assert sr.grad is not None
    assert sr.grad.abs().sum() > 0
    assert hr.grad is None


def test_the_gradient_is_the_sign_of_the_difference_over_the_count() -> None:
    sr, hr = images(dtype=torch.float64)
    sr.requires_grad_()
    buddies = find_best_buddies(sr, hr, setting())
    distance_to_buddies(sr, buddies, setting()).backward()
    assert sr.grad is not None
    signs = torch.sign(F.unfold(sr.detach(), 3, stride=3) - buddies.patches) / sr.numel()
    torch.testing.assert_close(sr.grad, F.fold(signs, (48, 48), 3, stride=3))


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        if isinstance(result, Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


def test_no_distance_matrix_is_kept() -> None:
    sr, hr = images(96, 96)
    with Largest() as ours:
        best_buddy_loss(sr, hr, chunk=64)
    with Largest() as full:
        plain.best_buddy(sr, list(pyramid_levels(hr, "matlab")), alpha=1, beta=1, patch=3, stride=3)
    patches, candidates = 32 * 32, 32 * 32 + 16 * 16 + 8 * 8
    assert full.numbers == 2 * patches * candidates
    assert ours.numbers < patches * candidates / 10


def test_a_level_smaller_than_a_patch_has_no_candidates() -> None:
    sr, hr = images(8, 8)
    buddies = find_best_buddies(sr, hr, setting())
    assert buddies.level_sizes == (4, 1, 0)
    assert buddies.index.max() < 5


def test_shares_name_the_levels_and_sum_to_one() -> None:
    sr, hr = images(96, 96)
    shares = find_best_buddies(sr, hr, setting()).shares()
    assert list(shares) == ["own", "full", "half", "quarter"]
    assert sum(shares.values()).item() == pytest.approx(1)
    assert min(shares.values()) >= 0
    assert find_best_buddies(hr, hr, setting()).shares()["own"] == 1


def test_matlabs_pyramid_is_antialiased_and_the_official_one_is_not() -> None:
    stripes = (torch.arange(32) % 2).float().expand(1, 3, 32, 32)
    for level in pyramid_levels(stripes, "matlab")[1:]:
        assert level[..., 2:-2].std() < 0.05
        assert level.mean() == pytest.approx(0.5, abs=0.02)
    tilted = (torch.arange(32) % 4 < 2).float().expand(1, 3, 32, 32)
    assert pyramid_levels(tilted, "official")[1].std() > pyramid_levels(tilted, "matlab")[1].std() + 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": -1}, "alpha must be at least 0, got -1"),
        ({"alpha": 0, "beta": 0}, "alpha and beta"),
        ({"patch": 0}, "patch must be at least 1"),
        ({"chunk": 0}, "chunk must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        setting(**changes)


def test_images_of_different_or_too_small_size_are_refused() -> None:
    sr, hr = images()
    with pytest.raises(ValueError, match="one shape"):
        best_buddy_loss(sr[..., :24], hr)
    with pytest.raises(ValueError, match="no patch of 3 pixels"):
        best_buddy_loss(sr[..., :2], hr[..., :2])
