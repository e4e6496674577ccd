from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bebygan.errors import StorageError, WeightsError
from bebygan.networks.generator import Generator
from bebygan.networks.naming import Naming, load_generator, naming_of, save_generator, shape_of, to_internal, to_naming
from bebygan.settings import GeneratorShape

NAMINGS: tuple[Naming, ...] = get_args(Naming)
SHAPE = GeneratorShape(blocks=2, features=6, growth=3)
shapes = st.builds(GeneratorShape, blocks=st.integers(1, 12), features=st.integers(1, 6), growth=st.integers(1, 4))


@settings(max_examples=20, deadline=None)
@given(shape=shapes, naming=st.sampled_from(NAMINGS))
def test_each_naming_leads_back_to_the_same_weights(shape: GeneratorShape, naming: Naming) -> None:
    state = Generator(shape).state_dict()
    renamed = to_naming(state, naming)
    assert naming_of(renamed) == naming
    back = to_internal(renamed)
    assert list(back) == list(state)
    assert all(back[key] is state[key] or torch.equal(back[key], state[key]) for key in state)
    assert shape_of(back) == shape


def test_the_public_names_are_those_that_other_projects_use() -> None:
    state = Generator(SHAPE).state_dict()
    names = {naming: {key.rpartition(".")[0] for key in to_naming(state, naming)} for naming in NAMINGS}
    outer = {"conv_first", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"}
    blocks = [(block, dense, conv) for block in range(2) for dense in (1, 2, 3) for conv in (1, 2, 3, 4, 5)]
    assert names["basicsr"] == outer | {f"body.{block}.rdb{dense}.conv{conv}" for block, dense, conv in blocks}
    outer = {"model.0", "model.1.sub.2", "model.3", "model.6", "model.8", "model.10"}
    assert names["old-esrgan"] == outer | {
        f"model.1.sub.{block}.RDB{dense}.conv{conv}.0" for block, dense, conv in blocks
    }
    outer = {"conv_first", "trunk_conv", "upconv1", "upconv2", "HRconv", "conv_last"}
    assert names["esrgan"] == outer | {f"RRDB_trunk.{block}.RDB{dense}.conv{conv}" for block, dense, conv in blocks}


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_saved_generator_is_read_back_whole(naming: Naming, tmp_path: Path) -> None:
    generator = Generator(SHAPE).to(memory_format=torch.channels_last)
    path = tmp_path / "generator.safetensors"
    save_generator(generator, path, naming, {"data_version": "abc"})
    loaded = load_generator(path)
    assert loaded.shape == SHAPE
    lr = torch.rand(1, 3, 5, 6)
    torch.testing.assert_close(loaded(lr), generator(lr), rtol=0, atol=1e-6)
    with safe_open(path, "pt") as file:
        assert file.metadata()["data_version"] == "abc"
        assert naming_of(dict.fromkeys(file.keys(), torch.empty(0))) == naming


def test_the_same_generator_is_saved_as_the_same_bytes(tmp_path: Path) -> None:
    generator = Generator(SHAPE)
    contents = set()
    for number in range(5):
        path = tmp_path / f"{number}.safetensors"
        save_generator(generator, path, metadata={name: name for name in "abcdefgh"})
        contents.add(path.read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("nesting", [None, "params_ema", "params", "state_dict"])
@pytest.mark.parametrize("naming", NAMINGS)
def test_public_checkpoints_are_read(nesting: str | None, naming: Naming, tmp_path: Path) -> None:
    generator = Generator(SHAPE)
    state: Any = {f"module.{key}": value for key, value in to_naming(generator.state_dict(), naming).items()}
    path = tmp_path / "generator.pth"
    torch.save({nesting: state} if nesting else state, path)
    loaded = load_generator(path).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in generator.state_dict().items())


def test_averaged_weights_come_before_the_others(tmp_path: Path) -> None:
    plain, averaged = Generator(SHAPE), Generator(SHAPE)
    path = tmp_path / "generator.pth"
    torch.save({"params": plain.state_dict(), "params_ema": averaged.state_dict()}, path)
    assert torch.equal(load_generator(path).conv_first.weight, averaged.conv_first.weight)


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    path = tmp_path / "generator.safetensors"
    save_file(Generator(SHAPE).half().state_dict(), path)
    assert load_generator(path).conv_last.weight.dtype == torch.float32


def changed(key: str, shape: tuple[int, ...] | None) -> dict[str, torch.Tensor]:
    state = Generator(SHAPE).state_dict()
    state.pop(key, None)
    if shape is not None:
        state[key] = torch.zeros(shape)
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed("HRconv.weight", None), r"has no HRconv\.weight \(6, 6, 3, 3\)"),
        (changed("upconv2.bias", (7,)), r"upconv2\.bias has shape \(7,\), .* has \(6,\)"),
        (changed("RRDB_trunk.0.RDB1.conv1x1.weight", (3, 6, 1, 1)), r"has RRDB_trunk\.0\.RDB1\.conv1x1\.weight"),
        (changed("conv_first.weight", (6, 12, 3, 3)), r"conv_first\.weight has shape \(6, 12, 3, 3\)"),
        (changed("conv_first.weight", None), r"conv_first\.weight is missing"),
        ({"body.0.weight": torch.zeros(1)}, r"known naming: the first key is body\.0\.weight"),
    ],
)
def test_another_architecture_is_refused_with_file_key_and_shapes(
    state: dict[str, torch.Tensor], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "other.safetensors"
    save_file(state, path)
    with pytest.raises(WeightsError, match=rf"other\.safetensors.*{message}") as raised:
        load_generator(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["damaged.safetensors", "damaged.pth"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04" + bytes(100)])
def test_a_damaged_file_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{name} cannot be read as weights"):
        load_generator(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights at .*nowhere\.safetensors"):
        load_generator(tmp_path / "nowhere.safetensors")


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


def test_code_in_a_file_of_weights_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "harmful.pth"
    torch.save({"params": Harmful()}, path)
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load_generator(path)
    assert not (tmp_path / "harmed").exists()


def test_something_else_than_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "numbers.pth"
    torch.save([1, 2, 3], path)
    with pytest.raises(WeightsError, match="no mapping of names to tensors"):
        load_generator(path)


def test_nothing_is_left_where_weights_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="the disk is full"):
        save_generator(Generator(SHAPE), tmp_path / "generator.safetensors")
    assert list(tmp_path.iterdir()) == []


def public_layout(naming: Naming, shape: GeneratorShape) -> dict[str, tuple[int, ...]]:
    """Keys and shapes as other projects' RRDBNet x4 has them, written out from their definition."""
    features, growth = shape.features, shape.growth
    trunk = {"esrgan": "RRDB_trunk", "basicsr": "body", "old-esrgan": "model.1.sub"}[naming]
    dense = "rdb" if naming == "basicsr" else "RDB"
    end = ".0" if naming == "old-esrgan" else ""
    convolutions = {
        f"{trunk}.{block}.{dense}{part}.conv{number}{end}": (
            features if number == 5 else growth,
            features + (number - 1) * growth,
        )
        for block in range(shape.blocks)
        for part in (1, 2, 3)
        for number in (1, 2, 3, 4, 5)
    }
    outer = {
        "esrgan": ("conv_first", "trunk_conv", "upconv1", "upconv2", "HRconv", "conv_last"),
        "basicsr": ("conv_first", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"),
        "old-esrgan": ("model.0", f"model.1.sub.{shape.blocks}", "model.3", "model.6", "model.8", "model.10"),
    }[naming]
    convolutions |= dict.fromkeys(outer, (features, features))
    convolutions |= {outer[0]: (features, 3), outer[-1]: (3, features)}
    weights = {f"{name}.weight": (outputs, inputs, 3, 3) for name, (outputs, inputs) in convolutions.items()}
    return weights | {f"{name}.bias": (outputs,) for name, (outputs, _) in convolutions.items()}


@pytest.mark.parametrize("naming", NAMINGS)
def test_saved_weights_have_the_keys_and_shapes_that_public_loaders_look_for(naming: Naming, tmp_path: Path) -> None:
    shape = GeneratorShape(blocks=3, features=8, growth=4)
    path = tmp_path / "generator.safetensors"
    save_generator(Generator(shape).to(memory_format=torch.channels_last), path, naming)
    state = load_file(path)
    assert {key: tuple(value.shape) for key, value in state.items()} == public_layout(naming, shape)
    assert all(value.dtype == torch.float32 and value.is_contiguous() for value in state.values())


def test_a_generator_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    generator = Generator(SHAPE)
    with torch.no_grad():
        generator.conv_last.weight[0] = float("nan")
    with pytest.raises(WeightsError, match=r"generator.safetensors: conv_last.weight contains NaN"):
        save_generator(generator, tmp_path / "generator.safetensors")
    assert not list(tmp_path.iterdir())
