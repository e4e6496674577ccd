import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bebygan.imaging.bicubic import downscale
from bebygan.losses.back_projection import back_projection_loss
from benchmarks import plain


@pytest.mark.official("backproj_*")
def test_loss_and_gradient_are_the_official_ones(official: dict[str, np.ndarray]) -> None:
    sr, lr = torch.from_numpy(official["sr"]).requires_grad_(), torch.from_numpy(official["lr"])
    exact = sr.dtype == torch.float64
    np.testing.assert_allclose(downscale(sr, 4).detach(), official["bp_lr"], rtol=0, atol=1e-12 if exact else 1e-6)
    loss = back_projection_loss(sr, lr)
    loss.backward()
    assert sr.grad is not None
    np.testing.assert_allclose(loss.item(), official["loss"], rtol=0, atol=1e-12 if exact else 1e-6)
    np.testing.assert_allclose(sr.grad, official["grad_sr"], rtol=0, atol=1e-15 if exact else 1e-8)


@settings(max_examples=20, deadline=None)
@given(height=st.integers(2, 8), width=st.integers(2, 8), seed=st.integers(0, 1000))
def test_loss_and_gradient_are_those_of_the_plain_convolution(height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sr = torch.rand(2, 3, 4 * height, 4 * width, generator=generator, dtype=torch.float64, requires_grad=True)
    lr = torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64)
    fast = back_projection_loss(sr, lr)
    slow = (plain.matlab_shrink_by_four(sr) - lr).abs().mean()
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
    (ours,), (theirs,) = torch.autograd.grad(fast, sr), torch.autograd.grad(slow, sr)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_an_image_agrees_with_its_own_shrunken_one() -> None:
    hr = torch.rand(1, 3, 32, 48)
    assert back_projection_loss(hr, downscale(hr, 4)).item() < 1e-7


def test_autocast_and_bfloat16_do_not_coarsen_it() -> None:
    sr, lr = torch.rand(1, 3, 32, 32).bfloat16(), torch.rand(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = back_projection_loss(sr, lr)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, back_projection_loss(sr.float(), lr))


def test_sizes_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="is not 4 times"):
        back_projection_loss(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 8, 9))
