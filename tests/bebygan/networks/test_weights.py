import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from bebygan.errors import WeightsError
from bebygan.networks.generator import Generator
from bebygan.networks.naming import load_generator
from bebygan.networks.weights import digest, metadata_of, read_state, safetensors_bytes
from bebygan.settings import GeneratorShape

TENSORS = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2, dtype=torch.bfloat16)}
CONTENT = safetensors_bytes(TENSORS, {"seed": "1"})


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_a_file_of_tensors_that_holds_code_is_refused_and_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    torch.save({"layer.weight": Evil(mark)}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_state(tmp_path / "evil.pth")
    assert not mark.exists()


@given(bit=st.integers(0, 8 * len(CONTENT) - 1))
def test_a_file_that_this_project_wrote_is_refused_after_any_flipped_bit(
    bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("flipped") / "layer.safetensors"
    flipped = bytearray(CONTENT)
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_state(path)


def test_tensors_and_metadata_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "layer.safetensors"
    path.write_bytes(CONTENT)
    assert digest(read_state(path)) == digest(TENSORS)
    assert metadata_of(path)["seed"] == "1"


def test_files_of_other_projects_have_no_digest_and_are_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "layer.safetensors", {"format": "pt"})
    assert digest(read_state(tmp_path / "layer.safetensors")) == digest(TENSORS)


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_weights_that_are_not_finite_are_refused_with_their_file_and_first_key(
    number: float, ending: str, tmp_path: Path
) -> None:
    tensors = {name: tensor.clone() for name, tensor in TENSORS.items()}
    for tensor in tensors.values():
        tensor.view(-1)[-1] = number
    path = tmp_path / f"layer{ending}"
    path.write_bytes(safetensors_bytes(tensors, {})) if ending == ".safetensors" else torch.save(tensors, path)
    with pytest.raises(WeightsError, match=rf"^{re.escape(str(path))}: layer\.(weight|bias) contains NaN or infinite"):
        read_state(path)


@pytest.mark.parametrize("start", ["module.", "_orig_mod.", "module._orig_mod.", "net.", "model.", "netG.", "g_ema."])
def test_wrapped_names_are_unwrapped(start: str, tmp_path: Path) -> None:
    torch.save({f"{start}{name}": tensor for name, tensor in TENSORS.items()}, tmp_path / "layer.pth")
    assert digest(read_state(tmp_path / "layer.pth")) == digest(TENSORS)


@pytest.mark.parametrize("under", ["params-ema", "params_ema", "g_ema", "generator_ema", "state_dict", "model", "net"])
def test_nested_weights_are_found_and_averaged_ones_preferred(under: str, tmp_path: Path) -> None:
    other = {name: tensor + 1 for name, tensor in TENSORS.items()}
    rest = {} if under in ("state_dict", "model", "net") else {"params": other}
    torch.save({**rest, "epoch": 3, under: TENSORS}, tmp_path / "layer.pth")
    assert digest(read_state(tmp_path / "layer.pth")) == digest(TENSORS)


def test_of_several_networks_the_averaged_generator_is_taken(tmp_path: Path) -> None:
    networks = {
        **{f"generator_ema.{name}": tensor for name, tensor in TENSORS.items()},
        **{f"generator.{name}": tensor + 1 for name, tensor in TENSORS.items()},
        "discriminator.conv.weight": torch.zeros(3),
        "step_counter": torch.zeros(1),
    }
    torch.save({"meta": {"epoch": 1}, "state_dict": networks}, tmp_path / "layer.pth")
    assert digest(read_state(tmp_path / "layer.pth")) == digest(TENSORS)


def test_the_names_of_esrgans_first_release_stay(tmp_path: Path) -> None:
    tensors = {"model.0.weight": torch.ones(2), "model.1.sub.0.RDB1.conv1.0.weight": torch.ones(3)}
    torch.save(tensors, tmp_path / "old.pth")
    assert read_state(tmp_path / "old.pth").keys() == tensors.keys()


def test_the_content_says_how_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "safe.pth").write_bytes(CONTENT)
    torch.save(TENSORS, tmp_path / "pickled.safetensors")
    for name in ("safe.pth", "pickled.safetensors"):
        assert digest(read_state(tmp_path / name)) == digest(TENSORS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "it is a pointer of Git LFS: run `git lfs pull`",
        ),
        (b"\n<!DOCTYPE html><title>Sign in</title>", "it is a web page: download the file itself"),
        (b"", "it is empty"),
        (b"just a text", "cannot be read as weights"),
    ],
)
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_what_is_no_file_of_weights_is_named(content: bytes, said: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{ending}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=re.escape(said)) as caught:
        read_state(path)
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)


def _fuzzed(content: bytes, random: np.random.Generator) -> bytes:
    """Cut, flip, overwrite, repeat or insert some bytes."""
    start, end = sorted(int(each) for each in random.integers(0, len(content), 2))
    end = min(end, start + int(random.integers(1, 64)))
    noise = random.bytes(end - start)
    return (
        content[:start],
        content[:start] + bytes([content[start] ^ 1 << int(random.integers(8))]) + content[start + 1 :],
        content[:start] + noise + content[end:],
        content[:end] + content[start:],
        content[:start] + noise + content[start:],
    )[int(random.integers(5))]


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_500_damaged_files_of_each_kind_load_or_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    state = dict(Generator(GeneratorShape(blocks=1, features=4, growth=2)).state_dict())
    path, random = tmp_path / "weights.pth", np.random.default_rng(0)
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"params_ema": state}, path, _use_new_zipfile_serialization=kind == "zip")
    content, told = path.read_bytes(), []
    load_generator(path)
    for _ in range(500):
        path.write_bytes(_fuzzed(content, random))
        try:
            load_generator(path)
        except WeightsError as error:
            told.append(str(error))
    assert len(told) > 150
    assert all(str(path) in text for text in told)
    assert not [text for text in told if "\n" in text or "weights_only" in text]
