from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bebygan.metrics.perceptual import Heads, Lpips
from bebygan.networks import AlexNet, Dists, Generator, Vgg, save_generator
from bebygan.networks.dists import DistsWeights
from bebygan.settings import GanSettings, GeneratorShape
from benchmarks import flops, marks
from pipelines.ablation.measures import Networks

TINY = GeneratorShape(blocks=1, features=4, growth=2)


def test_generators_and_bicubic_are_measured_on_each_benchmark(
    tmp_path: Path, picture: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    heads = [tensor.abs() for tensor in Heads().state_dict().values()]
    networks = Networks(Lpips(AlexNet(), heads), Dists(Vgg("vgg16", "conv5_3"), DistsWeights()))
    monkeypatch.setattr(marks, "load_networks", lambda _: networks)
    save_generator(Generator(TINY), tmp_path / "tiny.safetensors")
    for name, count in (("A", 1), ("B", 2)):
        (tmp_path / name).mkdir()
        for seed in range(count):
            picture(seed, 50, 49).save(tmp_path / name / f"{seed}.png")
    folders = [f"--benchmark={name}={tmp_path / name}" for name in ("A", "B")]
    assert marks.main(["bicubic", str(tmp_path / "tiny.safetensors"), *folders]) == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [line[:3] for line in lines] == [
        ["bicubic", "A", "1"], ["bicubic", "B", "2"], ["tiny.safetensors", "A", "1"], ["tiny.safetensors", "B", "2"],
    ]  # fmt: skip
    assert np.isfinite([[float(value) for value in line[3:7]] for line in lines]).all()


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


def test_a_name_that_is_no_file_is_an_error_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(marks, "load_networks", lambda _: None)
    Image.fromarray(torch.zeros(40, 40, 3, dtype=torch.uint8).numpy()).save(tmp_path / "a.png")
    assert marks.main(["lost.safetensors", f"--benchmark=A={tmp_path}"]) == 5
    assert "lost.safetensors" in capsys.readouterr().err
