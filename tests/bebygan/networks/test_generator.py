import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bebygan.networks.generator import Generator, ResidualDenseBlock
from bebygan.precision import autocast
from bebygan.settings import GeneratorShape, Precision
from bebygan.training.state import place
from benchmarks import plain
from benchmarks.comparing import CPU


def test_the_papers_generator_has_16_697_987_parameters() -> None:
    with torch.device("meta"):
        generator = Generator(GeneratorShape(blocks=23, features=64, growth=32))
    assert sum(parameter.numel() for parameter in generator.parameters()) == 16_697_987


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (8, 5)])
def test_any_size_is_enlarged_four_times(size: tuple[int, int]) -> None:
    generator = Generator(GeneratorShape(blocks=1, features=4, growth=2))
    assert generator(torch.rand(2, 3, *size)).shape == (2, 3, 4 * size[0], 4 * size[1])


def test_the_memory_format_does_not_change_the_result() -> None:
    generator = Generator(GeneratorShape(blocks=2, features=8, growth=4))
    lr = torch.rand(1, 3, 9, 9)
    expected = generator(lr)
    found = generator.to(memory_format=torch.channels_last)(lr)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="blocks must be at least 1"):
        GeneratorShape(blocks=0, features=4, growth=2)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_result_and_gradients_are_those_of_the_layers_one_after_the_other(memory_format: torch.memory_format) -> None:
    generator = Generator(GeneratorShape(blocks=2, features=6, growth=3)).double().to(memory_format=memory_format)
    lr = torch.rand(2, 3, 7, 9, dtype=torch.float64, requires_grad=True)
    found, expected = generator(lr), plain.generate(generator, lr)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    operands = [lr, *generator.parameters()]
    ours, theirs = (torch.autograd.grad(sr.square().mean(), operands) for sr in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-15)


def test_frozen_weights_let_gradients_through_to_the_input() -> None:
    block = ResidualDenseBlock(6, 3)
    x = torch.rand(1, 6, 7, 7, requires_grad=True)
    (expected,) = torch.autograd.grad(block(x).square().sum(), x)
    (found,) = torch.autograd.grad(block.requires_grad_(False)(x).square().sum(), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_blocks_in_half_precision_and_gives_float32_gradients(dtype: torch.dtype) -> None:
    generator = Generator(GeneratorShape(blocks=1, features=8, growth=4))
    lr = torch.rand(1, 3, 12, 12)
    with torch.autocast("cpu", dtype):
        sr = generator(lr)
    assert sr.dtype == dtype
    torch.testing.assert_close(sr.float(), generator(lr), rtol=0, atol=0.01)
    sr.float().mean().backward()
    assert {parameter.grad.dtype for parameter in generator.parameters() if parameter.grad is not None} == {
        torch.float32
    }


def test_a_dense_block_keeps_each_of_its_channels_once() -> None:
    block = ResidualDenseBlock(8, 4)
    x = torch.rand(1, 8, 10, 10)
    parameters = {parameter.data_ptr() for parameter in block.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(x)
    assert sum(count for pointer, count in kept.items() if pointer not in parameters) == (8 + 4 * 4) * 100


def test_without_gradients_bands_of_rows_give_the_whole() -> None:
    generator = Generator(GeneratorShape(blocks=1, features=4, growth=2))
    for height, width in ((300, 100), (20, 2100)):
        lr = torch.rand(2, 3, height, width)
        with torch.no_grad():
            banded, whole = generator(lr), generator.pixels(generator.features(lr))
        assert torch.allclose(banded, whole, atol=1e-5)
        assert torch.equal(generator(lr), whole)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0), ("bf16", 2**-6)])
def test_the_trunk_without_gradients_computes_what_the_trunk_with_gradients_does(
    precision: Precision, tolerance: float, channels_last: bool
) -> None:
    generator = place(Generator(GeneratorShape(blocks=2, features=8, growth=4)), CPU, channels_last=channels_last)
    lr = torch.rand(2, 3, 9, 13)
    with autocast(precision, CPU):
        trained = generator.features(lr)
        with torch.no_grad():
            torch.testing.assert_close(generator.features(lr), trained, rtol=tolerance, atol=tolerance)


@settings(deadline=None)
@given(features=st.integers(1, 5), height=st.integers(1, 7), width=st.integers(1, 7), seed=st.integers(0, 2**32 - 1))
def test_the_last_layers_without_gradients_compute_the_same_function(
    features: int, height: int, width: int, seed: int
) -> None:
    torch.manual_seed(seed)
    generator = Generator(GeneratorShape(blocks=1, features=features, growth=1)).double()
    lr = torch.rand(2, 3, height, width, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(generator(lr), generator.pixels(generator.features(lr)), rtol=1e-12, atol=1e-13)
