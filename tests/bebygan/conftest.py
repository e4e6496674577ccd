import os
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDERS = [Path(__file__).parents[1] / "golden"]
if "BEBYGAN_GOLDEN" in os.environ:
    FOLDERS.append(Path(os.environ["BEBYGAN_GOLDEN"]))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "official(pattern): run once for each file of official numbers, as `official`")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("official")
    if marker is None:
        return
    found = {path.stem: path for folder in FOLDERS for path in sorted(folder.glob(f"{marker.args[0]}.npz"))}
    metafunc.parametrize("official", list(found.values()), ids=list(found), indirect=True)


@pytest.fixture
def official(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    with np.load(request.param) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    torch.manual_seed(0)
