from typing import Any

import pytest
import torch
from torch import Tensor

from bebygan.losses.auto_encoded import auto_encoded_loss
from bebygan.losses.locally_discriminative import locally_discriminative_loss
from bebygan.losses.objective import Logits, Perceptual, generator_objective
from bebygan.losses.relativistic import relativistic_discriminator_loss
from bebygan.networks.auto_encoder import AutoEncoder
from bebygan.networks.discriminator import Discriminator
from bebygan.networks.dists import Dists, DistsWeights
from bebygan.networks.generator import Generator
from bebygan.networks.perceptual import Vgg
from bebygan.settings import BestBuddySettings, GeneratorShape, LossWeights

BEST_BUDDY = BestBuddySettings(alpha=1, beta=1, patch=3, stride=3, pyramid="matlab", chunk=512)


def weights(**values: float) -> LossWeights:
    return LossWeights(
        **{"best_buddy": 0.0, "back_projection": 0.0, "perceptual": 0.0, "adversarial": 0.0} | values  # type: ignore[arg-type]
    )


def batch() -> tuple[Tensor, Tensor, Tensor]:
    hr, lr = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 8, 8)
    return torch.rand(2, 3, 32, 32), hr, lr


def objective(*images: Tensor, **arguments: Any) -> dict[str, Tensor]:
    return generator_objective(*images, best_buddy=BEST_BUDDY, **{"perceptual": None, "logits": None} | arguments)


def test_the_total_is_the_weighted_sum_of_the_named_terms() -> None:
    chosen = weights(best_buddy=1, back_projection=0.7, perceptual=0.3, adversarial=0.005)
    terms = objective(
        *batch(),
        weights=chosen,
        perceptual=Perceptual(Vgg("vgg16", "conv1_2"), {"conv1_2": 1.0}),
        logits=Logits(torch.randn(2, 1), torch.randn(2, 1)),
    )
    shares = [terms.pop(name) for name in list(terms) if name.startswith("buddies.")]
    assert sum(shares) == pytest.approx(1)
    assert list(terms) == ["best_buddy", "back_projection", "perceptual", "adversarial", "total"]
    expected = sum(getattr(chosen, name) * term for name, term in terms.items() if name != "total")
    torch.testing.assert_close(terms["total"], expected)


@pytest.mark.parametrize("name", ["best_buddy", "back_projection", "l1"])
def test_a_term_of_weight_zero_is_not_computed(name: str) -> None:
    terms = objective(*batch(), weights=weights(**{name: 2.0}))
    assert [term for term in terms if not term.startswith("buddies.")] == [name, "total"]
    torch.testing.assert_close(terms["total"], 2 * terms[name])


def test_a_term_without_its_network_or_logits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"perceptual loss has weight 1\.0 but no VGG"):
        objective(*batch(), weights=weights(perceptual=1.0))
    with pytest.raises(ValueError, match=r"adversarial loss has weight 0\.005 but no logits"):
        objective(*batch(), weights=weights(adversarial=0.005))
    with pytest.raises(ValueError, match=r"locally discriminative loss has weight 1\.0 but no SR of the averaged"):
        objective(*batch(), weights=weights(locally_discriminative=1.0))
    with pytest.raises(ValueError, match=r"DISTS has weight 0\.1 but its network was not given"):
        objective(*batch(), weights=weights(dists=0.1))
    with pytest.raises(ValueError, match=r"auto-encoded loss has weight 1\.0 but no auto-encoder was given"):
        objective(*batch(), weights=weights(auto_encoded=1.0))


def test_later_objectives_combine_with_best_buddies() -> None:
    sr, hr, lr = batch()
    averaged, network = torch.rand_like(sr), Dists(Vgg("vgg16", "conv5_3"), DistsWeights())
    auto_encoder = AutoEncoder(GeneratorShape(blocks=1, features=4, growth=2))
    chosen = weights(best_buddy=1, l1=0.01, locally_discriminative=2, dists=0.5, auto_encoded=3)
    terms = objective(sr, hr, lr, weights=chosen, averaged=averaged, dists=network, auto_encoder=auto_encoder)
    torch.testing.assert_close(terms["l1"], (sr - hr).abs().mean())
    torch.testing.assert_close(terms["dists"], network(sr, hr).mean())
    torch.testing.assert_close(terms["locally_discriminative"], locally_discriminative_loss(sr, hr, averaged))
    torch.testing.assert_close(terms["auto_encoded"], auto_encoded_loss(sr, hr, auto_encoder))
    wanted = terms["best_buddy"] + 0.01 * terms["l1"] + 2 * terms["locally_discriminative"] + 0.5 * terms["dists"]
    torch.testing.assert_close(terms["total"], wanted + 3 * terms["auto_encoded"])


def test_weights_below_zero_or_all_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="perceptual must be at least 0, got -1"):
        weights(perceptual=-1.0, best_buddy=1.0)
    with pytest.raises(ValueError, match="loss weights must not all be 0"):
        weights()


def test_the_adversarial_loss_alone_moves_the_generator_and_its_counterpart_the_discriminator() -> None:
    generator = Generator(GeneratorShape(blocks=1, features=4, growth=2))
    discriminator = Discriminator(32, 4)
    _, hr, lr = batch()
    sr = generator(lr)
    logits = Logits(discriminator(hr), discriminator(sr))
    total = objective(sr, hr, lr, weights=weights(adversarial=1.0), logits=logits)["total"]
    total.backward(inputs=list(generator.parameters()), retain_graph=True)
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in generator.parameters())
    assert all(parameter.grad is None for parameter in discriminator.parameters())

    before = [parameter.grad.clone() for parameter in generator.parameters() if parameter.grad is not None]
    relativistic_discriminator_loss(logits.real, logits.fake).backward(inputs=list(discriminator.parameters()))
    assert all(parameter.grad is not None for parameter in discriminator.parameters())
    assert all(
        torch.equal(a, b.grad) for a, b in zip(before, generator.parameters(), strict=True) if b.grad is not None
    )
