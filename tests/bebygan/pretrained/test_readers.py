import pickle
from pathlib import Path

import numpy as np
import pytest

from bebygan.errors import WeightsError
from bebygan.pretrained.readers import read_ncnn, read_pickled_arrays
from bebygan.pretrained.registry import KNOWN


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("numpy", "load"),
        ("numpy.lib.format", "read_array"),
        ("posix", "system"),
        ("numpy", "Ndarray"),
    ],
)
def test_a_pickle_may_ask_for_nothing_but_arrays(module: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    path.write_bytes(f"c{module}\n{name}\n.".encode())
    with pytest.raises(WeightsError, match="refused"):
        read_pickled_arrays(path)


def test_a_damaged_pickle_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    path.write_bytes(pickle.dumps({"layer": np.ones(20)})[:-20])
    with pytest.raises(WeightsError, match="damaged"):
        read_pickled_arrays(path)


SHAPES = KNOWN["realsr-df2k-x4"].shapes()


def ncnn_file(seed: int = 0) -> bytes:
    """A file as ncnn writes a generator of the paper's size, with random weights."""
    random = np.random.default_rng(seed)
    parts = []
    for name, shape in SHAPES.items():
        values = random.standard_normal(int(np.prod(shape)), np.float32)
        if name.endswith("weight"):
            half = values.astype(np.float16).tobytes()
            parts.append(b"\x47\x6b\x30\x01" + half + b"\0" * (-len(half) % 4))
        else:
            parts.append(values.tobytes())
    return b"".join(parts)


def written(folder: Path, content: bytes) -> Path:
    path = folder / "weights.bin"
    path.write_bytes(content)
    return path


def test_an_ncnn_file_is_read_layer_by_layer_in_the_order_of_the_forward_pass(tmp_path: Path) -> None:
    tensors = read_ncnn(written(tmp_path, ncnn_file()), SHAPES)
    first = np.random.default_rng(0).standard_normal(64 * 3 * 9, np.float32).astype(np.float16).astype(np.float32)
    assert np.array_equal(tensors["conv_first.weight"], first.reshape(64, 3, 3, 3))
    assert list(tensors)[:3] == ["conv_first.weight", "conv_first.bias", "RRDB_trunk.0.RDB1.conv1.weight"]
    assert list(tensors)[-1] == "conv_last.bias"
    assert sum(tensor.numel() for tensor in tensors.values()) == 16_697_987


def test_an_ncnn_file_of_another_network_or_number_format_is_refused(tmp_path: Path) -> None:
    content = ncnn_file()
    with pytest.raises(WeightsError, match="bytes, the network needs"):
        read_ncnn(written(tmp_path, content[:-4]), SHAPES)
    with pytest.raises(WeightsError, match=r"half-precision weights where conv_first\.weight"):
        read_ncnn(written(tmp_path, b"\0\0\0\0" + content[4:]), SHAPES)
