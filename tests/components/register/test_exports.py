import logging
import re
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image

from bebygan import exporting
from bebygan.errors import WeightsError
from bebygan.files import sha256_of
from components.artifacts import Registration
from components.register import exports
from components.tracking.client import mlflow_client
from components.tracking.registry import champion

SAME = r"20 photographs of odd sizes differ from torch by at most [01] of 255 \((\d+\.\d dB|no difference)\); "


@pytest.fixture
def tags(registered: Callable[..., Registration], challenger: Path) -> Callable[..., dict[str, str]]:
    def register_with(*kinds: str) -> dict[str, str]:
        registered(challenger, "promote", exports=kinds)
        version = champion("tests")
        assert version is not None
        return dict(version.tags) | {"card": version.description}

    return register_with


@pytest.mark.slow
def test_each_enabled_export_runs_elsewhere_and_computes_what_torch_computes(
    tags: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "evaluation" / "pictures").mkdir(parents=True)
    pixels = np.random.default_rng(1).integers(0, 256, (50, 90, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "evaluation" / "pictures" / "01.png")
    found = tags("onnx", "ncnn", "safetensors")
    for kind, files in (
        ("onnx", ["generator.onnx"]),
        ("ncnn", ["generator.param", "generator.bin"]),
        ("safetensors", ["basicsr.safetensors"]),
    ):
        told = found[f"export.{kind}"]
        assert re.match(rf"runs:/\w+/exports/{re.escape(files[0])}: {SAME}", told)
        assert f"- {kind}: {told}" in found["card"]
        for name in files:
            stored = mlflow.artifacts.download_artifacts(
                f"{told.partition(':/')[0]}:/{found['register_run']}/exports/{name}"
            )
            assert f"{name} has SHA-256 {sha256_of(Path(stored))}" in told
    names = {each.path for each in mlflow_client().list_artifacts(found["register_run"], "exports")}
    assert names == {
        f"exports/{name}" for name in ("generator.onnx", "generator.param", "generator.bin", "basicsr.safetensors")
    }


def test_an_export_that_computes_something_else_is_told_and_not_stored(
    tags: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save = exporting.save_generator

    def brighter(generator: exporting.Generator, *arguments: object) -> None:
        generator.conv_last.bias.data += 0.01
        save(generator, *arguments)  # type: ignore[arg-type]
        generator.conv_last.bias.data -= 0.01

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(exporting, "save_generator", brighter)
        found = tags("safetensors")
    told = r"it differs from torch by [23] of 255 on 20 photographs"
    assert re.fullmatch(f"failed: {told}", found["export.safetensors"])
    assert re.search(f"the export safetensors of models:/tests/1 is not stored: {told}", caplog.text)
    assert not mlflow_client().list_artifacts(found["register_run"], "exports")
    # A repeated registration tries again.
    assert re.match(rf"runs:/\w+/exports/basicsr\.safetensors: {SAME}", tags("safetensors")["export.safetensors"])


def test_an_export_that_does_not_run_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "generator.param").write_text("no graph")
    photographs = {"0": np.zeros((3, 5, 7), np.float32)}
    with pytest.raises(WeightsError, match=r"it does not run \(ValueError: ncnn cannot load generator\.param\)"):
        exports._by_export("ncnn", tmp_path / "generator.param", photographs)


def test_photographs_of_an_evaluation_have_odd_sizes(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (40, 30), (255, 0, 0)).save(tmp_path / "pictures" / "01.png")
    found = list(exports._photographs(tmp_path))
    assert len(found) == 20
    assert all(side % 2 for each in found for side in each.shape[1:])
    assert all(each[0, 0, 0] == 1 and each[1].max() == 0 for each in found)
