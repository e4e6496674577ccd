import os
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from bebygan.errors import WeightsError
from bebygan.networks.weights import digest, metadata_of, read_state, safetensors_bytes

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
