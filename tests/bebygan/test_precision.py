import pytest
import torch

from bebygan.precision import at_least_float32, full_precision

CPU = torch.device("cpu")


def test_autocast_is_off_inside_and_on_again_behind() -> None:
    a = torch.rand(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision(CPU):
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16


def fail_inside() -> None:
    with full_precision(CPU):
        assert torch.backends.mkldnn.matmul.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "ieee"
        raise KeyError


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_users_precision_comes_back_even_after_an_error(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        with pytest.raises(KeyError):
            fail_inside()
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.mkldnn.matmul.fp32_precision == before
    finally:
        torch.set_float32_matmul_precision("highest")


def test_only_half_formats_are_widened() -> None:
    for dtype, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32,) * 2,
        (torch.float64,) * 2,
    ):
        assert at_least_float32(torch.zeros(1, dtype=dtype)).dtype == expected
