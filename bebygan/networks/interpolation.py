"""Generators between the one that a training started from and the one that it made (arXiv 1809.00219, section 3.4)."""

from collections.abc import Mapping

from torch import Tensor


def interpolated(
    weights: Mapping[str, Tensor], start: Mapping[str, Tensor], share: float, wanted: float
) -> dict[str, Tensor]:
    """Return weights with another share of the start.

    Args:
        weights: contain a share of the start.
        start: weights that the training started from, with the same keys and shapes.
        share: of the start in `weights`, below 1.
        wanted: share of the start in the result, from 0 to 1; if it is `share`, the result is `weights`, to the bit,
            and if it is 1, `start`.

    Raises:
        KeyError, RuntimeError: the keys or shapes differ.
    """
    if wanted == share:
        return dict(weights)
    step = (wanted - share) / (1 - share)
    return {name: tensor.lerp(start[name].to(tensor), step) for name, tensor in weights.items()}
