import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from bebygan.errors import DataError, WeightsError
from bebygan.files import sha256_of
from bebygan.imaging.bicubic_uint8 import downscale_uint8, resize_uint8
from bebygan.metrics.fidelity import lr_psnr, psnr_y, ssim_y
from components.config import EvaluateParams, from_yaml
from components.evaluate.pictures import most_textured, side_by_side, training_curves
from components.evaluate.step import central_square, evaluate, held_out
from components.evaluate.table import text_table
from components.stores.data_version import data_version
from components.tracking.client import mlflow_client
from components.tracking.provenance import provenance
from components.tracking.runs import step_run

ROOT = Path(__file__).parents[3]
HEALTH = {"window": 0.5, "discriminator_loss": [0.05, 0.69], "logit_margin": 10.0, "textured_share": [0.05, 0.98]}
NOTHING = {"absolute": {}, "bicubic": {}, "warmup": {}, "champion": {}}


def params(**changed: Any) -> EvaluateParams:
    usual = {"model_name": "tests", "crop": 64, "tile": None, "thresholds": NOTHING, "health": HEALTH}
    return from_yaml(EvaluateParams, yaml.safe_dump(usual | changed))


@pytest.fixture
def compared(
    dataset: Path,
    generator_folder: Callable[..., Path],
    tmp_path: Path,
    mlflow_store: str,  # noqa: ARG001
) -> Callable[..., str]:
    """Runs the step on warm-up, challenger and dataset of this test; its output is tmp_path/out."""
    folders = {"warmup": generator_folder("warmup", 1), "challenger": generator_folder("challenger", 2)}

    def run_step(**changed: Any) -> str:
        settings = params(**changed)
        with step_run("evaluate", settings) as run:
            return evaluate(
                dataset, folders["warmup"], folders["challenger"], tmp_path / "out", params=settings, run=run
            )

    return run_step


def test_every_candidate_is_measured_on_every_held_out_photograph(
    compared: Callable[..., str], dataset: Path, tmp_path: Path
) -> None:
    assert compared() == "keep"
    out = tmp_path / "out"
    with (out / "per_photograph.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = set(held_out(dataset)["source"])
    assert len(names) == 3
    assert {(row["photograph"], row["candidate"]) for row in rows} == {
        (name, candidate) for name in names for candidate in ("bicubic", "warmup", "challenger")
    }
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics) == ["bicubic", "warmup", "challenger"]
    for candidate, means in metrics.items():
        assert list(means) == ["psnr_y", "ssim_y", "lpips", "lr_psnr"]
        for metric, mean in means.items():
            values = [float(row[metric]) for row in rows if row["candidate"] == candidate]
            assert mean == pytest.approx(np.mean(values), rel=1e-12)


def test_the_values_are_those_of_the_same_bytes_measured_by_hand(
    compared: Callable[..., str], dataset: Path, tmp_path: Path
) -> None:
    compared()
    with (tmp_path / "out" / "per_photograph.csv").open() as file:
        rows = {row["photograph"]: row for row in csv.DictReader(file) if row["candidate"] == "bicubic"}
    for photograph in held_out(dataset).to_dict("records"):
        pixels = np.asarray(Image.open(dataset / photograph["file"]))
        height, width = pixels.shape[:2]
        top, left = (height - 64) // 2, (width - 64) // 2
        hr = pixels[top : top + 64, left : left + 64]
        lr = downscale_uint8(hr, 4)
        sr = resize_uint8(lr, 64, 64)
        row = rows[photograph["source"]]
        assert float(row["psnr_y"]) == pytest.approx(psnr_y(sr, hr))
        assert float(row["ssim_y"]) == pytest.approx(ssim_y(sr, hr))
        assert float(row["lr_psnr"]) == pytest.approx(lr_psnr(sr, lr))


def test_the_verdict_says_what_was_compared_how_and_where_it_comes_from(
    compared: Callable[..., str], dataset: Path, tmp_path: Path
) -> None:
    settings = params(thresholds=NOTHING | {"absolute": {"psnr_y": 1.0}})
    assert compared(thresholds=NOTHING | {"absolute": {"psnr_y": 1.0}}) == "promote"
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert verdict["verdict"] == "promote"
    assert re.fullmatch(r"passed: psnr_y \d+\.\d{4}, at least 1 asked", verdict["reasons"][0])
    assert verdict["model"] == "tests"
    assert verdict["champion"] is None
    assert verdict["challenger_sha256"] == sha256_of(tmp_path / "challenger" / "generator.safetensors")
    assert "the central 64 pixels of each" in verdict["protocol"]["photographs"]
    assert verdict["protocol"].keys() >= {"psnr_y", "ssim_y", "lpips", "lr_psnr"}
    assert verdict["provenance"] == provenance(settings, data_version(dataset))


def test_the_run_in_mlflow_has_the_means_and_the_report(compared: Callable[..., str], tmp_path: Path) -> None:
    compared()
    client = mlflow_client()
    [run] = client.search_runs([client.get_experiment_by_name("bebygan").experiment_id])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    expected = {f"{name}/{metric}": value for name, means in metrics.items() for metric, value in means.items()}
    assert run.data.metrics == pytest.approx(expected)
    stored = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "evaluation")}
    assert stored == {path.name for path in (tmp_path / "out").iterdir()}


def test_the_champion_of_the_registry_is_measured_in_the_same_run(compared: Callable[..., str], tmp_path: Path) -> None:
    model = tmp_path / "registered"
    (model / "artifacts").mkdir(parents=True)
    (tmp_path / "challenger" / "generator.safetensors").rename(model / "artifacts" / "generator.safetensors")
    (tmp_path / "challenger" / "generator.safetensors").write_bytes(
        (model / "artifacts" / "generator.safetensors").read_bytes()
    )
    client = mlflow_client()
    client.create_registered_model("tests")
    for _ in range(2):
        version = client.create_model_version("tests", model.as_uri())
    client.set_registered_model_alias("tests", "champion", version.version)
    assert compared(thresholds=NOTHING | {"absolute": {"psnr_y": 1}, "champion": {"lpips": 0}}) == "keep"
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["champion"] == metrics["challenger"]
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert verdict["champion"] == "2"
    assert "0.0000 better than champion's" in verdict["reasons"][-1]


def test_the_same_inputs_give_the_same_bytes(compared: Callable[..., str], tmp_path: Path) -> None:
    def contents() -> dict[str, bytes]:
        out = tmp_path / "out"
        return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}

    (tmp_path / "challenger" / "history.jsonl").write_text(HISTORY)
    compared()
    first = contents()
    compared()
    assert contents() == first
    assert {"metrics.json", "verdict.json", "per_photograph.csv", "report.html", "pictures/01.png"} <= first.keys()


class Page(HTMLParser):
    """Checks that tags are closed, and collects text and pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.pictures: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.pictures.append(dict(attrs)["src"] or "")
        elif tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


ADVERSARIAL = {"discriminator": 0.5, "logit_real": 1.5, "logit_fake": 0.25, "textured_share": 0.99}
HISTORY = "".join(json.dumps({"iteration": n, "best_buddy": 1 / n} | ADVERSARIAL) + "\n" for n in range(1, 11))


def test_the_report_stands_alone_and_shows_all(compared: Callable[..., str], dataset: Path, tmp_path: Path) -> None:
    manifest = pd.read_parquet(dataset / "manifest.parquet")
    manifest.loc[manifest["split"] == "test", "source"] = ["a & <b>.png", "c.png", "d.png"]
    manifest.to_parquet(dataset / "manifest.parquet")
    (tmp_path / "challenger" / "history.jsonl").write_text(HISTORY)
    compared(thresholds=NOTHING | {"absolute": {"psnr_y": 99}})
    source = (tmp_path / "out" / "report.html").read_text()
    page = Page()
    page.feed(source)
    assert page.open == []
    assert len(page.pictures) == 3 * 4
    assert all(picture.startswith("data:image/png;base64,") for picture in page.pictures)
    assert "http://" not in re.sub(r'xmlns[:\w]*="[^"]*"|"http://[^"]*"', "", source)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    shown = [f"{metrics['challenger']['psnr_y']:.2f}", f"{metrics['warmup']['lpips']:.4f}", "at least 99 asked"]
    shown += [
        "Adversarial training wants a look.",
        "logits: those of HR and SR lay 1.25 apart",
        "the mask hides nothing",
    ]
    shown += ["a & <b>.png", "best buddy", data_version(dataset), "PSNR-Y", "Keep"]
    assert [text for text in shown if text not in page.text] == []


def test_large_photographs_in_tiles_give_nearly_the_same(compared: Callable[..., str], tmp_path: Path) -> None:
    compared(crop=None)
    whole = json.loads((tmp_path / "out" / "metrics.json").read_text())
    # The generator has one block: its sight ends within the overlap.
    compared(crop=None, tile=32)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["challenger"] == pytest.approx(
        whole["challenger"]
    )


@pytest.mark.parametrize(
    "trouble", ["no manifest", "nothing held out", "a photograph is missing", "a damaged photograph"]
)
def test_a_dataset_that_does_not_do_is_said_in_one_line(
    trouble: str, compared: Callable[..., str], dataset: Path, tmp_path: Path
) -> None:
    manifest = pd.read_parquet(dataset / "manifest.parquet")
    photograph = dataset / manifest[manifest["split"] == "test"]["file"].iloc[0]
    if trouble == "no manifest":
        (dataset / "manifest.parquet").unlink()
        message = "holds no manifest.parquet: run ingest first"
    elif trouble == "nothing held out":
        manifest.assign(split="train").to_parquet(dataset / "manifest.parquet")
        message = "holds out no photographs: raise ingest.test_share"
    elif trouble == "a photograph is missing":
        photograph.unlink()
        message = f"cannot read the photograph {photograph}"
    else:
        photograph.write_bytes(photograph.read_bytes()[:300])
        message = f"cannot read the photograph {photograph}"
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        compared()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_damaged_weights_of_the_challenger_are_said_in_one_line(compared: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "challenger" / "generator.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(WeightsError, match="challenger/generator"):
        compared()
    assert not (tmp_path / "out").exists()


def test_a_failure_keeps_the_earlier_output(
    compared: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared()
    before = (tmp_path / "out" / "metrics.json").read_bytes()
    monkeypatch.setattr("components.evaluate.step.html_report", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compared(crop=None)
    assert (tmp_path / "out" / "metrics.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]


def test_the_central_square_is_central_and_a_multiple_of_the_scale() -> None:
    image = np.arange(90 * 111 * 3, dtype=np.uint32).reshape(90, 111, 3).astype(np.uint8)
    assert np.array_equal(central_square(image, 64), image[13:77, 23:87])
    assert np.array_equal(central_square(image, None), image[1:89, 1:109])
    assert np.array_equal(central_square(image, 512), central_square(image, None))


def test_the_most_textured_square_is_found() -> None:
    image = np.full((200, 300, 3), 128, np.uint8)
    image[100:140, 220:260] = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    rows, columns = most_textured(image, 48)
    assert (rows.start % 4, columns.start % 4) == (0, 0)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (48, 48)
    assert rows.start <= 100
    assert rows.stop >= 140
    assert columns.start <= 220
    assert columns.stop >= 260
    assert most_textured(image[:40, :44], 48) == (slice(0, 40), slice(0, 44))


def test_panels_stand_side_by_side_unchanged() -> None:
    images = {name: np.full((20, 30, 3), level, np.uint8) for name, level in (("a", 10), ("b", 200))}
    picture = np.asarray(side_by_side(images))
    assert picture.shape[1] == 30 + 6 + 30
    assert (picture[-20:, :30] == 10).all()
    assert (picture[-20:, -30:] == 200).all()


@pytest.mark.parametrize("history", [[], [{"iteration": 1, "l1": 0.5}], [{"iteration": 1}, {"iteration": 2}]])
def test_without_logged_values_there_are_no_curves(history: list[dict[str, float]]) -> None:
    assert training_curves(history) is None


def test_the_text_table_lines_up() -> None:
    row: dict[Any, float] = {"psnr_y": 28.126, "ssim_y": 0.81239, "lpips": 0.1, "lr_psnr": 45}
    table = text_table({"bicubic": row, "challenger": row | {"psnr_y": 8.0}})
    assert table.splitlines() == [
        "            PSNR-Y ↑  SSIM-Y ↑  LPIPS ↓  LR-PSNR ↑",
        "bicubic        28.13    0.8124   0.1000      45.00",
        "challenger      8.00    0.8124   0.1000      45.00",
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_store")
def test_the_command_line_prints_the_table_and_the_verdict(
    dataset: Path, generator_folder: Callable[..., Path], tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "components.evaluate",
        "--params",
        str(ROOT / "params.yaml"),
        "--dataset",
        str(dataset),
    ]
    command += ["--warmup", str(generator_folder("warmup", 1)), "--challenger", str(generator_folder("challenger", 2))]
    command += ["--output", str(tmp_path / "out"), "--set", "evaluate.crop=64"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert text_table(metrics) in done.stdout
    assert "keep:" in done.stdout
    assert f"report: {tmp_path / 'out' / 'report.html'}" in done.stdout
    refused = subprocess.run(
        [*command, "--set", "evaluate.crob=64"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert refused.returncode == 2
    assert refused.stderr == "error: there is no parameter evaluate.crob; did you mean evaluate.crop?\n"
