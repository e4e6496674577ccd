import torch

from bebygan.networks.interpolation import interpolated


def test_the_stored_share_gives_the_same_bits_and_the_others_lie_on_one_line() -> None:
    torch.manual_seed(0)
    start, trained = ({"layer": torch.randn(50)} for _ in range(2))
    delivered = {"layer": trained["layer"].lerp(start["layer"], 0.25)}
    assert torch.equal(interpolated(delivered, start, 0.25, 0.25)["layer"], delivered["layer"])
    assert torch.equal(interpolated(delivered, start, 0.25, 1.0)["layer"], start["layer"])
    torch.testing.assert_close(interpolated(delivered, start, 0.25, 0.0)["layer"], trained["layer"])
    half = trained["layer"].lerp(start["layer"], 0.5)
    torch.testing.assert_close(interpolated(delivered, start, 0.25, 0.5)["layer"], half)
