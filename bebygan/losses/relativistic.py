"""The relativistic average adversarial loss (arXiv 1807.00734; ESRGAN formulas 1 and 2; arXiv 2103.15295 section 3.4).

Each logit is compared with the mean logit of the other side. Both objectives below take the same two logit tensors,
so one iteration needs two passes of the discriminator, not the official five:

    real = D(mask * hr)                  # graph to D
    fake = D(mask * sr)                  # graph to D and, through sr, to G
    generator_total = ... + weight * relativistic_generator_loss(real, fake)
    generator_total.backward(inputs=list(G.parameters()), retain_graph=True)    # D's .grad stays untouched
    relativistic_discriminator_loss(real, fake).backward(inputs=list(D.parameters()))        # G's .grad stays untouched

Both gradients are taken before either optimiser steps. They are those of five passes, because D's weights do not change
between the official passes; only the running statistics of its batch norms, which training never reads, are updated
twice instead of five times.

The mean of the official code is that of the local batch, which makes the loss depend on the number of GPUs. `mean` may
be any differentiable mean, such as one over all processes: a scalar from the local logits.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from bebygan.precision import at_least_float32

Mean = Callable[[Tensor], Tensor]


def _cross_entropy(logits: Tensor, *, real: bool) -> Tensor:
    """Binary cross entropy of logits against all real or all fake: log(1 + exp(-x)) or log(1 + exp(x)), averaged."""
    return F.softplus(-logits if real else logits).mean()


def relativistic_generator_loss(real: Tensor, fake: Tensor, mean: Mean = Tensor.mean) -> Tensor:
    """Return half of CE(real - mean fake, fake) + CE(fake - mean real, real), a scalar.

    Args:
        real: logits (N, 1) of HR images; no gradient flows back through them.
        fake: logits (N, 1) of SR images.
        mean: mean of logits over the batch.
    """
    real, fake = at_least_float32(real).detach(), at_least_float32(fake)
    return (_cross_entropy(real - mean(fake), real=False) + _cross_entropy(fake - mean(real), real=True)) / 2


def relativistic_discriminator_loss(real: Tensor, fake: Tensor, mean: Mean = Tensor.mean) -> Tensor:
    """Return half of CE(real - mean fake, real) + CE(fake - mean real, fake), a scalar.

    As in the official code, which computes the two halves one after the other, the means carry no gradient.

    Args:
        real: logits (N, 1) of HR images.
        fake: logits (N, 1) of SR images.
        mean: mean of logits over the batch.
    """
    real, fake = at_least_float32(real), at_least_float32(fake)
    real_mean, fake_mean = mean(real.detach()), mean(fake.detach())
    return (_cross_entropy(real - fake_mean, real=True) + _cross_entropy(fake - real_mean, real=False)) / 2
