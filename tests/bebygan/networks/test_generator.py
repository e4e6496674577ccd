import pytest
import torch

from bebygan.networks.generator import Generator
from bebygan.settings import GeneratorShape


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
