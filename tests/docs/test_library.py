"""The Python code of docs/library.md runs from top to bottom, with small networks and images, offline."""

import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import bebygan
from bebygan.imaging import downscale_uint8
from bebygan.metrics.perceptual import Heads
from bebygan.networks import AlexNet, Generator, Vgg
from bebygan.pretrained import KNOWN
from bebygan.settings import GeneratorShape

PAGE = Path(__file__).parents[2] / "docs" / "library.md"
SMALLER = {
    "crop = 192": "crop = 48",
    "blocks=23, features=64, growth=32": "blocks=1, features=4, growth=2",
    "width=32": "width=4",
    "torch.rand(8, ": "torch.rand(2, ",
    "batch_size=8": "batch_size=2",
    "size, step = 480, 240": "size, step = 48, 24",
    "iterations=600_000, batch=8": "iterations=2, batch=2",
}
NETWORKS = {
    "vgg19": partial(Vgg, "vgg19", "conv5_4"),
    "alexnet": AlexNet,
    "lpips-alex": Heads,
    "realsr-df2k-x4": partial(Generator, GeneratorShape()),
}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with pairs of images, and random numbers for pretrained weights."""
    for folder in ("weights", "work/lr", "work/hr"):
        (tmp_path / folder).mkdir(parents=True)
    for name, network in NETWORKS.items():
        save_file(network().state_dict(), tmp_path / "weights" / f"{name}.safetensors")
        # Random numbers have no digest that could be known.
        sources = {kind: replace(source, tensors_sha256="") for kind, source in KNOWN[name].sources.items()}
        monkeypatch.setitem(KNOWN, name, replace(KNOWN[name], sources=sources))
    monkeypatch.setenv("BEBYGAN_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("BEBYGAN_WEIGHTS_SOURCES", "folder")
    monkeypatch.setenv("BEBYGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "work")
    random = np.random.default_rng(0)
    for number in range(2):
        hr = random.integers(0, 256, (64, 80, 3), np.uint8)
        Image.fromarray(hr).save(f"hr/{number}.png")
        Image.fromarray(downscale_uint8(hr, 4)).save(f"lr/{number}.png")
    Image.fromarray(random.integers(0, 256, (8, 10, 3), np.uint8)).save("photograph.png")


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_the_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 5
    unused = set(SMALLER)
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    for number, code in enumerate(blocks):
        for usual, smaller in SMALLER.items():
            unused -= {usual} if usual in code else set()
            code = code.replace(usual, smaller)  # noqa: PLW2901
        exec(compile(code, f"{PAGE.name}, block {number}", "exec"), names)  # noqa: S102

    assert unused == set()
    assert Image.open("photograph-x4.png").size == (40, 32)
    assert bebygan.load("generator.safetensors").shape == GeneratorShape(blocks=1, features=4, growth=2)
    assert os.listdir("checkpoints") == ["iteration-00000002.checkpoint"]
    printed = capsys.readouterr().out
    assert re.search(r"^2 \d+\.\d+$", printed, re.MULTILINE)
    assert re.search(r"^lpips \[\S+, \S+\] lower is better", printed, re.MULTILINE)


def test_every_name_of_the_table_can_be_imported() -> None:
    rows = re.findall(r"^\| `(bebygan[.\w]*)` \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == 8
    for module, listed in rows:
        for name in re.findall(r"`(\w+)`", listed):
            exec(f"from {module} import {name}", {})  # noqa: S102
