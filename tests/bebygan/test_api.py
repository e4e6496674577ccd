"""What users import: the names, that they load no torch before they are used, and `bebygan.load`."""

import ast
import importlib
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import bebygan
from bebygan.errors import WeightsError
from bebygan.networks import Generator, save_generator
from bebygan.networks.naming import Naming
from bebygan.settings import GeneratorShape

PACKAGES = ["bebygan", *(f"bebygan.{name}" for name in ("imaging", "losses", "metrics", "networks", "training"))]
NO_TORCH = """
import sys
sys.modules["torch"] = None
import bebygan, bebygan.differences, bebygan.errors, bebygan.files, bebygan.settings
import bebygan.imaging, bebygan.metrics, bebygan.networks
from bebygan.imaging import Image, downscale_uint8, local_deviation, luma, read_patches, resize_uint8, write_shards
from bebygan.metrics import PROTOCOL
from bebygan.networks import discriminator_stages, vgg_layers
print(bebygan.__version__, bebygan.SCALE)
"""


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_exists_and_is_listed(name: str) -> None:
    package = importlib.import_module(name)

    assert set(package.__all__) <= set(dir(package))
    for each in package.__all__:
        assert getattr(package, each) is not None
    assert not hasattr(package, "no_such_name")


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_declared_for_type_checkers(name: str) -> None:
    tree = ast.parse(inspect.getsource(importlib.import_module(name)))
    imported = {each.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for each in node.names}
    assigned = {each.id for each in ast.walk(tree) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
    assert set(importlib.import_module(name).__all__) <= imported | assigned


@pytest.mark.parametrize("name", [name for name in PACKAGES if name != "bebygan"])
def test_every_public_function_and_class_is_documented(name: str) -> None:
    package = importlib.import_module(name)
    found = [getattr(package, each) for each in package.__all__]
    assert all(each.__doc__ for each in found if inspect.isfunction(each) or inspect.isclass(each))


def test_images_settings_and_files_work_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", NO_TORCH], capture_output=True, text=True, check=False)
    assert done.stdout == f"{bebygan.__version__} 4\n", done.stderr


def test_the_version_is_the_packages() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert bebygan.__version__ == project["version"]


@pytest.mark.parametrize("naming", ["esrgan", "basicsr", "old-esrgan"])
def test_load_takes_a_file_in_every_naming(naming: Naming, tmp_path: Path) -> None:
    written = Generator(GeneratorShape(blocks=1, features=4, growth=2))
    save_generator(written, tmp_path / "generator.safetensors", naming)

    generator = bebygan.load(tmp_path / "generator.safetensors")

    assert not generator.training
    assert generator.shape == written.shape
    image = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(generator(image), written(image))


def test_load_takes_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_generator(Generator(GeneratorShape()), tmp_path / "realsr-df2k-x4.safetensors")
    monkeypatch.setenv("BEBYGAN_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("BEBYGAN_CACHE", str(tmp_path / "cache"))

    assert bebygan.load("realsr-df2k-x4").shape == GeneratorShape()


@pytest.mark.parametrize("wrong", ["vgg16", "nowhere.safetensors"])
def test_load_names_what_it_knows(wrong: str) -> None:
    with pytest.raises(WeightsError, match=f"{wrong} is neither a file nor the name .*realsr-df2k-x4"):
        bebygan.load(wrong)
