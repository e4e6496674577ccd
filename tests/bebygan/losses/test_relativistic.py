import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bebygan.losses.relativistic import relativistic_discriminator_loss, relativistic_generator_loss
from bebygan.networks.discriminator import Discriminator
from benchmarks import plain


@pytest.mark.official("adversarial")
def test_both_losses_are_the_official_ones(official: dict[str, np.ndarray]) -> None:
    real, fake = torch.from_numpy(official["real"]), torch.from_numpy(official["fake"])
    assert relativistic_generator_loss(real, fake).item() == pytest.approx(official["vanilla_G"], abs=1e-6)
    assert relativistic_discriminator_loss(real, fake).item() == pytest.approx(official["vanilla_D"], abs=1e-6)


def test_two_passes_give_the_gradients_of_the_official_five() -> None:
    ours = Discriminator(32, 4).double()
    theirs = copy.deepcopy(ours)
    hr = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    sr = torch.rand(3, 3, 32, 32, dtype=torch.float64, requires_grad=True)

    real, fake = ours(hr), ours(sr)
    relativistic_generator_loss(real, fake).backward(inputs=[sr], retain_graph=True)
    loss = relativistic_discriminator_loss(real, fake)
    loss.backward(inputs=list(ours.parameters()))
    assert sr.grad is not None

    (expected,) = torch.autograd.grad(plain.generator_adversarial(theirs, sr, hr), sr)
    expected_loss = plain.discriminator_step(theirs, sr, hr)
    torch.testing.assert_close(sr.grad, expected, rtol=0, atol=1e-16)
    assert loss.item() == pytest.approx(expected_loss, abs=1e-15)
    for (name, parameter), reference in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, reference.grad, rtol=0, atol=1e-14, msg=name)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=8), st.floats(-5, 5))
def test_only_differences_of_logits_count_and_the_two_sides_mirror_each_other(
    pairs: list[tuple[float, float]], shift: float
) -> None:
    real, fake = torch.tensor(pairs, dtype=torch.float64).T[..., None]
    loss = relativistic_generator_loss(real, fake)
    torch.testing.assert_close(relativistic_generator_loss(real + shift, fake + shift), loss)
    torch.testing.assert_close(relativistic_discriminator_loss(fake, real), loss)
    assert loss >= 0


def test_equal_logits_cost_the_logarithm_of_two() -> None:
    logits = torch.full((4, 1), 3.0)
    for loss in (relativistic_generator_loss, relativistic_discriminator_loss):
        assert loss(logits, logits).item() == pytest.approx(np.log(2))


def test_logits_far_apart_stay_finite_in_half_precision() -> None:
    real, fake = torch.full((2, 1), 3e4).half(), torch.full((2, 1), -3e4).half()
    assert torch.isfinite(relativistic_generator_loss(real, fake))
    assert relativistic_discriminator_loss(real, fake) == 0


def test_the_mean_may_be_that_of_all_processes() -> None:
    real, fake = torch.randn(8, 1, dtype=torch.float64), torch.randn(8, 1, dtype=torch.float64, requires_grad=True)

    def mean_of_all(local: Tensor) -> Tensor:
        return (fake if local.requires_grad else real).mean()

    whole = relativistic_generator_loss(real, fake)
    first = relativistic_generator_loss(real[:4], fake[:4], mean_of_all)
    second = relativistic_generator_loss(real[4:], fake[4:], mean_of_all)
    torch.testing.assert_close((first + second) / 2, whole)
    local = (relativistic_generator_loss(real[:4], fake[:4]) + relativistic_generator_loss(real[4:], fake[4:])) / 2
    assert not torch.isclose(local, whole)
