"""The images' Dockerfiles and locks, as far as they can be judged without building anything."""

import difflib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "images"
STEPS = ("data", "torch")


def pins(path: Path) -> dict[str, str]:
    """Return the version of each package that a lock file names."""
    return dict(re.findall(r"^([a-z0-9._-]+)==([^\s\\]+)", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*Dockerfile")), ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    checked = subprocess.run([str(hadolint), str(path)], check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("name", ["data", "torch", "tracker"])
def test_every_s3_client_in_an_image_sends_checksums_only_where_they_are_required(name: str) -> None:
    text = (FOLDER / f"{name}.Dockerfile").read_text()
    assert "AWS_REQUEST_CHECKSUM_CALCULATION=when_required" in text
    assert "AWS_RESPONSE_CHECKSUM_VALIDATION=when_required" in text


def instructions(step: str) -> list[str]:
    """Return the lines of a Dockerfile, without comments and what only names the image."""
    lines = (FOLDER / f"{step}.Dockerfile").read_text().replace(f"{step}.lock", "*.lock").splitlines()
    return [line.removesuffix(" \\") for line in lines if line[:1] != "#" and f"bebygan-{step}" not in line]


def test_the_torch_image_is_made_as_the_data_image_with_torch_and_weights() -> None:
    data, torch = instructions("data"), instructions("torch")
    changes = [line for line in difflib.ndiff(data, torch) if line[0] in "+-" and "image.description" not in line]
    assert changes == [
        "+ ARG TORCH=torch==2.13.0",
        "- RUN sh /build/install.sh dependencies /build/*.lock",
        '+ RUN sh /build/install.sh dependencies /build/*.lock "$TORCH"',
        "+ COPY infra/images/weights /opt/weights",
        "+     BEBYGAN_WEIGHTS=/opt/weights",
    ]


@pytest.mark.parametrize("step", STEPS)
def test_an_image_gets_the_versions_that_are_tested(step: str) -> None:
    tested, locked = pins(ROOT / "requirements.lock"), pins(FOLDER / f"{step}.lock")
    assert len(locked) > 80
    # pip-compile leaves setuptools out of what is installed beside it.
    assert {name: version for name, version in locked.items() if name != "setuptools"}.items() <= tested.items()


@pytest.mark.parametrize("step", STEPS)
def test_every_locked_package_has_hashes(step: str) -> None:
    lock = (FOLDER / f"{step}.lock").read_text()
    for name in pins(FOLDER / f"{step}.lock"):
        assert re.search(rf"^{re.escape(name)}==\S+ \\\n    --hash=sha256:[0-9a-f]{{64}}", lock, re.MULTILINE), name


def test_the_torch_image_gets_the_torch_that_is_tested() -> None:
    asked = re.search(r"^ARG TORCH=torch==(\S+)$", (FOLDER / "torch.Dockerfile").read_text(), re.MULTILINE)
    assert asked
    assert pins(ROOT / "requirements.lock")["torch"].partition("+")[0] == asked[1]


def test_no_image_contains_packages_of_the_other_steps() -> None:
    data, torch = (pins(FOLDER / f"{step}.lock") for step in STEPS)
    assert not data.keys() & {"torch", "mlflow", "safetensors"}
    assert not torch.keys() & {"dvc", "great-expectations", "kubernetes", "google-cloud-storage", "kfp-server-api"}
    assert "kfp" in data
    assert torch["kfp"] == data["kfp"]
