import numpy as np
import pytest
import torch

from bebygan.losses import artefact_map, best_buddy_loss, locally_discriminative_loss


def images(side: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    sr, hr, averaged = torch.rand(3, 2, 3, side, side, dtype=torch.float64)
    return sr, hr, averaged


def plain_map(sr: np.ndarray, hr: np.ndarray, averaged: np.ndarray, window: int) -> np.ndarray:
    """Formulas 4 to 7 of arXiv 2203.09195, pixel by pixel, of one image (C, H, W)."""
    residual, of_averaged = np.abs(hr - sr).sum(0), np.abs(hr - averaged).sum(0)
    padded = np.pad(residual, window // 2, mode="reflect")
    result = np.zeros_like(residual)
    for row, column in np.ndindex(residual.shape):
        if residual[row, column] >= of_averaged[row, column]:
            local = padded[row : row + window, column : column + window]
            result[row, column] = local.var(ddof=1) * residual.var(ddof=1) ** (1 / 5)
    return result


@pytest.mark.parametrize("window", [3, 7])
def test_the_map_and_the_loss_are_those_of_the_paper(window: int) -> None:
    sr, hr, averaged = images()
    found = artefact_map(sr, hr, averaged, window=window)
    expected = np.stack(
        [plain_map(*each, window) for each in zip(sr.numpy(), hr.numpy(), averaged.numpy(), strict=True)]
    )
    assert 0.2 < (expected == 0).mean() < 0.8
    np.testing.assert_allclose(found[:, 0].numpy(), expected, rtol=1e-9, atol=1e-12)
    loss = locally_discriminative_loss(sr, hr, averaged, window=window).item()
    assert loss == pytest.approx((expected[:, None] * np.abs((hr - sr).numpy())).mean())


def test_its_gradient_goes_to_sr_alone_and_takes_the_map_as_constant() -> None:
    sr, hr, averaged = (each.requires_grad_() for each in images())
    weights = artefact_map(sr, hr, averaged)
    assert not weights.requires_grad
    torch.autograd.backward(locally_discriminative_loss(sr, hr, averaged))
    assert hr.grad is not None
    assert averaged.grad is None
    torch.testing.assert_close(sr.grad, weights * (sr - hr).sign() / sr.numel())
    constant = (sr.detach(), hr.detach())
    assert torch.autograd.gradcheck(lambda image: (weights * (constant[1] - image).abs()).mean(), sr)


def test_where_the_averaged_generator_is_worse_nothing_is_an_artefact() -> None:
    sr, hr, _ = images()
    assert artefact_map(sr, hr, 2 + hr).count_nonzero() == 0
    assert artefact_map(sr, hr, hr).count_nonzero() == sr[:, 0].numel()


def test_it_adds_up_with_best_buddies_and_half_precision_is_raised() -> None:
    sr, hr, averaged = (each.float() for each in images())
    leaf = sr.requires_grad_()
    torch.autograd.backward(best_buddy_loss(leaf, hr) + locally_discriminative_loss(leaf, hr, averaged))
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    assert locally_discriminative_loss(sr.bfloat16(), hr, averaged.bfloat16()).dtype == torch.float32


def test_an_even_window_is_refused() -> None:
    with pytest.raises(ValueError, match="must be odd"):
        artefact_map(*images(), window=4)
