import pytest

from bebygan.settings import GanSettings, GeneratorShape
from benchmarks import flops

TINY = GeneratorShape(blocks=1, features=4, growth=2)


def test_operations_of_the_generator_are_those_of_its_convolutions() -> None:
    def convolution(inputs: int, outputs: int, side: int) -> int:
        return 2 * 9 * inputs * outputs * side**2

    dense = sum(convolution(4 + 2 * place, 2, 8) for place in range(4)) + convolution(12, 4, 8)
    expected = 3 * dense + convolution(3, 4, 8) + convolution(4, 4, 8)
    expected += convolution(4, 4, 16) + 2 * convolution(4, 4, 32) + convolution(4, 3, 32)
    assert flops.of_forward(TINY, 8) == expected


def test_operations_of_training_do_not_depend_on_the_batch_and_hours_follow_from_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = GanSettings(crop=48, discriminator_width=4)
    first, second = (flops.of_sample(TINY, GanSettings(**{**vars(settings), "batch": batch})) for batch in (2, 8))
    assert first == second > 3 * flops.of_forward(TINY, 12)
    monkeypatch.setattr(flops, "of_sample", lambda *_: 10**12)
    monkeypatch.setattr(flops, "of_forward", lambda *_: 10**9)
    assert flops.main(["--batch=2", "--iterations=3600", "--tflops", "2"]) == 0
    assert "1.0 hours" in capsys.readouterr().out
