import csv
import html
import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from bebygan.errors import DataError, WeightsError
from bebygan.files import sha256_of
from bebygan.imaging.bicubic_uint8 import downscale_uint8, resize_uint8
from bebygan.metrics.fidelity import lr_psnr, psnr_y, ssim_y
from bebygan.metrics.perceptual import Lpips
from bebygan.networks.naming import load_generator, save_generator
from components.artifacts import (
    Quarantined,
    read_means,
    read_summary,
    read_verdict,
    seal,
    write_history,
    write_patchless,
    write_quarantine,
)
from components.comparison import METRICS, change, text_table
from components.config import EvaluateParams, from_yaml
from components.evaluate.step import central_square, evaluate, held_out
from components.stores.data_version import data_version
from components.stores.dataset import headline, thumbnail_path
from components.tracking.client import mlflow_client
from components.tracking.provenance import provenance
from components.tracking.runs import step_run

ROOT = Path(__file__).parents[3]
HEALTH = {
    "window": 0.5,
    "discriminator_loss": [0.05, 0.69],
    "logit_margin": 10.0,
    "textured_share": [0.05, 0.98],
    "validation_loss": {"psnr_y": 1.5, "lpips": 0.02, "lr_psnr": 6.0},
    "back_projection_growth": 3.0,
}
NOTHING = {"absolute": {}, "bicubic": {}, "warmup": {}, "champion": {}}


def params(**changed: Any) -> EvaluateParams:
    usual = {
        "model_name": "tests",
        "crop": 64,
        "tile": None,
        "precision": "fp32",
        "training_noise": {},
        "anchor": "first",
        "confidence": 0.95,
        "thresholds": NOTHING,
        "health": HEALTH,
    }
    return from_yaml(EvaluateParams, yaml.safe_dump(usual | changed))


@pytest.fixture
def compared(
    dataset: Path,
    generator_folder: Callable[..., Path],
    tmp_path: Path,
    mlflow_store: str,  # noqa: ARG001
) -> Callable[..., str]:
    """Run the step on warm-up, challenger and dataset of this test, with the output tmp_path/out."""
    folders = {"warmup": generator_folder("warmup", 1), "challenger": generator_folder("challenger", 2)}

    def run_step(docs: Path | None = None, *, expected: str | None = None, **changed: Any) -> str:
        settings = params(**changed)
        places = (dataset, folders["warmup"], folders["challenger"], tmp_path / "out")
        with step_run("evaluate", settings) as run:
            return evaluate(*places, params=settings, run=run, docs=docs, expected=expected)

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
    metrics = read_means(out)
    assert list(metrics) == ["bicubic", "warmup", "challenger"]
    for candidate, means in metrics.items():
        assert list(means) == list(METRICS)
        for metric, mean in means.items():
            values = [float(row[metric]) for row in rows if row["candidate"] == candidate and row[metric]]
            assert mean == pytest.approx(np.mean(values), rel=1e-12)


def test_no_name_is_a_formula_in_the_table_of_photographs(
    compared: Callable[..., str], dataset: Path, tmp_path: Path
) -> None:
    path = dataset / "manifest.parquet"
    manifest = pd.read_parquet(path)
    names = ["=HYPERLINK(1).png", "+1.png", "-1.png", "@SUM.png", "plain=.png"]
    manifest.assign(source=names, split="test").to_parquet(path)
    compared()
    with (tmp_path / "out" / "per_photograph.csv").open() as file:
        found = {row["photograph"] for row in csv.DictReader(file)}
    assert found == {*(f"'{name}" for name in names[:-1]), "plain=.png"}


def test_the_values_agree_with_the_metrics_of_the_library(
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


def test_the_verdict_holds_protocol_and_provenance(compared: Callable[..., str], dataset: Path, tmp_path: Path) -> None:
    settings = params(thresholds=NOTHING | {"absolute": {"psnr_y": 1.0}})
    assert compared(thresholds=NOTHING | {"absolute": {"psnr_y": 1.0}}) == "promote"
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert verdict["verdict"] == "promote"
    assert re.fullmatch(r"passed: psnr_y \d+\.\d{4}, required: at least 1", verdict["reasons"][0])
    assert verdict["model"] == "tests"
    assert verdict["champion"] is None
    assert verdict["challenger_sha256"] == sha256_of(tmp_path / "challenger" / "generator.safetensors")
    assert "the central 64 pixels of each" in verdict["protocol"]["photographs"]
    assert verdict["protocol"].keys() >= METRICS.keys()
    assert verdict["provenance"] == provenance(settings, data_version(dataset))


def test_the_run_in_mlflow_has_the_means_and_the_report(compared: Callable[..., str], tmp_path: Path) -> None:
    compared()
    client = mlflow_client()
    [run] = client.search_runs([client.get_experiment_by_name("bebygan").experiment_id])
    metrics = read_means(tmp_path / "out")
    expected = {f"{name}/{metric}": value for name, means in metrics.items() for metric, value in means.items()}
    # Before the first promotion the anchor is what is held out.
    expected |= {f"anchor/{name}": value for name, value in expected.items()}
    seconds = {f"{name}/seconds_per_megapixel" for name in metrics}
    assert all(run.data.metrics.pop(name) > 0 for name in seconds)
    assert run.data.metrics == pytest.approx(expected)
    stored = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "evaluation")}
    assert stored == {path.name for path in (tmp_path / "out").iterdir()}


def test_the_data_are_handed_over_and_described_in_mlflow(
    compared: Callable[..., str], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = Quarantined("old/<scan>.png", "grey", "it is grey: save it as upright 8-bit RGB")
    write_quarantine(dataset, [refused])
    thumbnail_path(dataset, 0).parent.mkdir()
    Image.new("RGB", (20, 10), "red").save(thumbnail_path(dataset, 0))
    manifest = pd.read_parquet(dataset / "manifest.parquet")
    trained = manifest[manifest["split"] == "train"]
    write_patchless(tmp_path / "challenger", {"train": [trained["file"].iloc[0]], "validation": []})
    with step_run("retrain", params()) as parent:
        monkeypatch.setenv("BEBYGAN_PARENT_RUN", parent.run_id)
        compared()
    summary = read_summary(tmp_path / "out")
    assert (summary.data_version, summary.quarantined) == (data_version(dataset), (refused,))
    assert summary.photographs == {"train": 2, "validation": 0, "test": 3}
    assert summary.patchless == {"train": (trained["source"].iloc[0],), "validation": ()}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "old/&lt;scan&gt;.png" in page
    assert page.count('<img src="data:image/webp;base64,') == 1 + 8 * page.count('<section class="sight"')
    client = mlflow_client()
    runs = client.search_runs([client.get_experiment_by_name("bebygan").experiment_id])
    assert [run.data.tags["data"] for run in runs] == [headline(summary)] * 2
    assert "1 files quarantined (1 grey)" in headline(summary)


def test_held_out_photographs_that_bicubic_restores_exactly_are_named(
    compared: Callable[..., str], dataset: Path, tmp_path: Path
) -> None:
    [first, *_] = held_out(dataset).to_dict("records")
    pixels = np.asarray(Image.open(dataset / first["file"])).copy()
    pixels[8:-8, 8:-8] = 255
    Image.fromarray(pixels).save(dataset / first["file"])
    compared()
    out = tmp_path / "out"
    assert read_summary(out).flat == (first["source"],)
    rows = pd.read_csv(out / "per_photograph.csv")
    others = rows[(rows["candidate"] == "challenger") & (rows["photograph"] != first["source"])]
    assert len(others) == 2
    assert read_means(out)["challenger"]["psnr_y"] == pytest.approx(others["psnr_y"].mean())
    counted = {gain.metric: gain.better + gain.ties + gain.worse for gain in read_verdict(out).gains}
    flat = counted.pop("psnr_y_flat"), counted.pop("lpips_flat")
    assert set(counted.values()) == {2}
    assert flat == (1, 1), "one of the two is textured everywhere"


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"objective": "perceptual"}, "perceptual-oriented: its file says so"),
        ({"objective": "psnr"}, "psnr-oriented: its file says so"),
        ({}, "psnr-oriented: its file does not say, and its LPIPS is not below half of that of bicubic"),
    ],
)
def test_the_kind_of_the_start_is_that_of_its_file_or_measured(
    metadata: dict[str, str], said: str, compared: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / "warmup" / "generator.safetensors"
    save_generator(load_generator(path), path, metadata=metadata)
    objective = said.partition("-")[0]
    # The bound is met for the one kind and not for the other.
    bounds = {"psnr": {"lpips": 99.0}, "perceptual": {"lpips": 99.0}} | {objective: {"lpips": -99.0}}
    assert compared(thresholds=NOTHING | {"warmup": bounds}) == "promote"
    assert read_verdict(tmp_path / "out").protocol["warmup"] == said


def test_a_start_that_looks_far_more_real_than_bicubic_counts_as_perceptual(
    compared: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LPIPS is 0.4, 0.19 and 0.19 for bicubic, warm-up and challenger, photograph by photograph."""
    values = itertools.cycle((0.4, 0.19, 0.19))
    monkeypatch.setattr(Lpips, "maps", lambda *_: [torch.full((1, 2, 2), next(values))])
    compared()
    said = "perceptual-oriented: its file does not say, and its LPIPS is below half of that of bicubic"
    assert read_verdict(tmp_path / "out").protocol["warmup"] == said


def make_champion(weights: Path, folder: Path) -> None:
    """Register weights twice, and make version 2 champion."""
    (folder / "artifacts").mkdir(parents=True)
    (folder / "artifacts" / "generator.safetensors").write_bytes(weights.read_bytes())
    client = mlflow_client()
    client.create_registered_model("tests")
    for _ in range(2):
        version = client.create_model_version("tests", folder.as_uri())
    client.set_registered_model_alias("tests", "champion", version.version)


def test_a_champion_is_replaced_with_evidence_that_verdict_report_and_mlflow_show(
    compared: Callable[..., str], dataset: Path, tmp_path: Path, picture: Callable[..., Image.Image]
) -> None:
    manifest = pd.read_parquet(dataset / "manifest.parquet").assign(split="test")
    for seed in range(10, 13):
        file = f"photographs/{seed}.png"
        picture(seed, 110, 90).save(dataset / file)
        manifest.loc[len(manifest)] = {"sha256": f"{seed:064}", "source": f"{seed}.png", "file": file, "split": "test"}
    manifest.to_parquet(dataset / "manifest.parquet")
    make_champion(tmp_path / "warmup" / "generator.safetensors", tmp_path / "registered")
    compared(thresholds=NOTHING | {"champion": {"psnr_y": 0.0}})
    [loss] = [
        gain for gain in read_verdict(tmp_path / "out").gains if (gain.opponent, gain.metric) == ("champion", "psnr_y")
    ]
    assert loss.interval is not None
    bound = loss.interval[0] - 0.001
    assert compared(thresholds=NOTHING | {"champion": {"psnr_y": bound + 0.002}}) == "keep"
    assert compared(thresholds=NOTHING | {"champion": {"psnr_y": bound}}) == "promote"
    verdict = read_verdict(tmp_path / "out")
    assert verdict.confidence == 0.95
    text = change(loss)
    assert verdict.summary == f"The challenger replaces champion version 2: {text} against champion."
    assert re.fullmatch(r"PSNR-Y [+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\], \d better, \d ties?, \d worse", text)
    page = html.unescape((tmp_path / "out" / "report.html").read_text())
    assert verdict.summary in page
    assert page.count('<svg class="forest"') == 3 * len(METRICS)
    client = mlflow_client()
    run = client.search_runs([client.get_experiment_by_name("bebygan").experiment_id])[0]
    assert run.data.tags["verdict"] == verdict.summary
    assert run.data.tags["gain.champion.psnr_y"] == text


def test_the_champion_of_the_registry_is_measured_in_the_same_run(compared: Callable[..., str], tmp_path: Path) -> None:
    make_champion(tmp_path / "challenger" / "generator.safetensors", tmp_path / "registered")
    assert compared(thresholds=NOTHING | {"absolute": {"psnr_y": 1}, "champion": {"lpips": 0}}) == "keep"
    metrics = read_means(tmp_path / "out")
    assert metrics["champion"] == metrics["challenger"]
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert verdict["champion"] == "2"
    assert verdict["reasons"][-1] == "failed: too few photographs to tell (3 held out, 6 are needed)"
    assert verdict["summary"].startswith("Version 2 stays champion: too few photographs to tell (3 held out")


def test_a_challenger_after_the_loss_of_the_champion_is_not_called_the_first_one(
    compared: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_champion(tmp_path / "warmup" / "generator.safetensors", tmp_path / "registered")
    mlflow_client().set_model_version_tag("tests", "1", "promoted", "true")
    mlflow_client().delete_model_version("tests", "2")
    assert compared(thresholds=NOTHING | {"absolute": {"lr_psnr": 0}}) == "promote"
    lost = "version 1 was promoted and lost the alias champion"
    assert f"tests lost its champion ({lost}): the challenger is judged as the first one" in capsys.readouterr().err
    summary = read_verdict(tmp_path / "out").summary
    assert summary.startswith(f"The challenger becomes champion after the loss of the one before ({lost}): LPIPS ")


@pytest.mark.parametrize("channels", [1, 12], ids=["grey", "enlarges twice"])
def test_a_champion_of_another_kind_is_named_with_what_to_do(
    channels: int, compared: Callable[..., str], tmp_path: Path
) -> None:
    state = load_file(tmp_path / "warmup" / "generator.safetensors")
    state["conv_first.weight"] = torch.zeros(state["conv_first.weight"].shape[0], channels, 3, 3)
    save_file(state, tmp_path / "other.safetensors")
    make_champion(tmp_path / "other.safetensors", tmp_path / "registered")
    with pytest.raises(WeightsError) as caught:
        compared()
    assert re.fullmatch(
        r"the champion models:/tests/2 is no generator that enlarges 4 times \(conv_first.weight has shape .*\): make "
        r"another version champion by `bebygan rollback` or `bebygan promote`",
        str(caught.value),
    )
    assert not (tmp_path / "out").exists()


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


ADVERSARIAL = {"discriminator": 0.5, "logit_real": 1.5, "logit_fake": 0.25, "textured_share": 0.99}
HISTORY = "".join(json.dumps({"iteration": n, "best_buddy": 1 / n} | ADVERSARIAL) + "\n" for n in range(1, 11))


def test_the_report_is_self_contained_and_complete(compared: Callable[..., str], dataset: Path, tmp_path: Path) -> None:
    manifest = pd.read_parquet(dataset / "manifest.parquet")
    manifest.loc[manifest["split"] == "test", "source"] = ["a & <b>.png", "c.png", "d.png"]
    manifest.to_parquet(dataset / "manifest.parquet")
    (tmp_path / "challenger" / "history.jsonl").write_text(HISTORY)
    compared(thresholds=NOTHING | {"absolute": {"psnr_y": 99}})
    source = (tmp_path / "out" / "report.html").read_text()
    text = html.unescape(source)
    sights = source.count('<section class="sight"')
    assert sights >= 3
    # For each: the whole photograph, LR, three candidates, the original, two masks.
    assert len(re.findall(r'<img src="data:image/webp;base64,[^"]+"', source)) == source.count("<img ") == sights * 8
    assert "http://" not in re.sub(r'xmlns[:\w]*="[^"]*"|"http://[^"]*"', "", source)
    metrics = read_means(tmp_path / "out")
    shown = [f"{metrics['challenger']['psnr_y']:.2f}", f"{metrics['warmup']['lpips']:.4f}", "required: at least 99"]
    shown += [
        "Adversarial training needs attention.",
        "logits: those of HR and SR differ by 1.25",
        "the mask hides nothing",
    ]
    shown += ["a & <b>.png", "best buddy", data_version(dataset), "PSNR-Y", "Keep"]
    assert [part for part in shown if part not in text] == []


def test_the_page_of_the_checks_is_kept_beside_the_report_and_in_mlflow(
    compared: Callable[..., str], tmp_path: Path
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.html").write_text("14 of 14 checks passed")
    compared(docs=docs)
    assert (tmp_path / "out" / "checks.html").read_text() == "14 of 14 checks passed"
    assert '<a href="checks.html">' in (tmp_path / "out" / "report.html").read_text()
    client = mlflow_client()
    [run] = client.search_runs([client.get_experiment_by_name("bebygan").experiment_id])
    assert "evaluation/checks.html" in {file.path for file in client.list_artifacts(run.info.run_id, "evaluation")}
    assert run.data.tags["data"].endswith("; checks: evaluation/checks.html of the run evaluate")
    (docs / "index.html").unlink()
    compared(docs=docs)
    assert not (tmp_path / "out" / "checks.html").exists()
    assert "checks.html" not in (tmp_path / "out" / "report.html").read_text()


def test_tiles_change_the_values_only_slightly(compared: Callable[..., str], tmp_path: Path) -> None:
    compared(crop=None)
    whole = read_means(tmp_path / "out")
    # The generator has one block, and its receptive field is smaller than the overlap.
    compared(crop=None, tile=32)
    assert read_means(tmp_path / "out")["challenger"] == pytest.approx(whole["challenger"])


def test_models_are_judged_as_upscale_computes_them(compared: Callable[..., str], tmp_path: Path) -> None:
    compared(crop=None)
    exact = read_means(tmp_path / "out")
    compared(crop=None, precision="bf16")
    found = read_means(tmp_path / "out")
    # Artefacts are relative to the start, which is computed in another precision, too.
    for means in (found["bicubic"], exact["bicubic"]):
        means.pop("artefacts")  # type: ignore[attr-defined]
    assert found["bicubic"] == exact["bicubic"]
    assert found["challenger"] != exact["challenger"]
    assert found["challenger"] == pytest.approx(exact["challenger"], rel=0.02)
    assert "bf16" in read_verdict(tmp_path / "out").protocol["lr"]


def test_every_file_caps_the_psnr_of_equal_images(compared: Callable[..., str], dataset: Path, tmp_path: Path) -> None:
    for path in (dataset / "photographs").iterdir():
        Image.new("RGB", (90, 110), (90, 120, 40)).save(path)
    assert compared(thresholds=NOTHING | {"bicubic": {"psnr_y": 0}}) == "keep"
    row = read_means(tmp_path / "out")["bicubic"]
    assert (row["psnr_y"], row["lr_psnr"]) == (100.0, 100.0)
    verdict = read_verdict(tmp_path / "out")
    assert re.search(r"psnr_y \d+\.\d{4}, bicubic 100\.0000: gain -\d+\.\d{4}, required", verdict.reasons[0])
    assert "counts as 100 dB" in verdict.protocol["psnr_cap"]
    for path in ("metrics.json", "verdict.json", "per_photograph.csv"):
        assert not re.search(r"\b(inf|Infinity|nan|NaN)\b", (tmp_path / "out" / path).read_text())


def test_the_error_for_a_value_that_is_not_finite_names_photograph_and_candidate(
    compared: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.evaluate.measuring.ssim_y", lambda *_: math.nan)
    with pytest.raises(DataError, match=r"ssim_y of bicubic is nan for trip/\d\.png: leave the photograph out"):
        compared()
    assert not (tmp_path / "out").exists()


def test_a_damaged_history_is_refused_before_the_measurement(compared: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "challenger" / "history.jsonl").write_text(HISTORY[:-9])
    with pytest.raises(DataError, match=r"history\.jsonl is damaged \(line 10 is not JSON\): run train again"):
        compared()


@pytest.mark.parametrize(
    "trouble", ["no manifest", "nothing held out", "a photograph is missing", "a damaged photograph"]
)
def test_an_unusable_dataset_raises_a_one_line_error(
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


def test_a_challenger_of_another_data_version_is_not_measured(
    compared: Callable[..., str], dataset: Path, tmp_path: Path
) -> None:
    """The dataset of the evaluation may hold out what the challenger was trained on."""
    weights = tmp_path / "challenger" / "generator.safetensors"
    generator = load_generator(weights)
    save_generator(generator, weights, metadata={"data_version": data_version(dataset)})
    compared()
    save_generator(generator, weights, metadata={"data_version": f"{'0' * 32}.dir"})
    with pytest.raises(
        DataError, match=r"challenger/generator\.safetensors was trained on data version 0{32}\.dir, but"
    ):
        compared()


def test_a_dataset_of_another_version_than_the_one_that_the_run_ingested_is_not_measured(
    compared: Callable[..., str],
) -> None:
    with pytest.raises(DataError, match=r"but this run ingested 1234\.dir: run ingest again"):
        compared(expected="1234.dir")


def test_a_damaged_photograph_is_found_before_the_measurement(compared: Callable[..., str], dataset: Path) -> None:
    seal(dataset)
    compared()
    photograph = next((dataset / "photographs").iterdir())
    photograph.write_bytes(photograph.read_bytes() + b"0")
    with pytest.raises(DataError, match=rf"{photograph.name} is not the file that ingest wrote"):
        compared()


def test_a_changed_history_of_the_challenger_is_found_before_the_measurement(
    compared: Callable[..., str], tmp_path: Path
) -> None:
    write_history(tmp_path / "challenger", [{"iteration": 1, "total": 0.5}])
    seal(tmp_path / "challenger")
    compared()
    write_history(tmp_path / "challenger", [{"iteration": 1, "total": 0.4}])
    with pytest.raises(DataError, match=r"history\.jsonl is not the file that train wrote .*: run train again"):
        compared()


def test_damaged_weights_of_the_challenger_raise_a_one_line_error(compared: Callable[..., str], tmp_path: Path) -> None:
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
    monkeypatch.setattr("components.evaluate.step.html_report", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compared(crop=None)
    assert (tmp_path / "out" / "metrics.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]


def test_the_central_square_is_central_and_a_multiple_of_the_scale() -> None:
    image = np.arange(90 * 111 * 3, dtype=np.uint32).reshape(90, 111, 3).astype(np.uint8)
    assert np.array_equal(central_square(image, 64), image[13:77, 23:87])
    assert np.array_equal(central_square(image, None), image[1:89, 1:109])
    assert np.array_equal(central_square(image, 512), central_square(image, None))


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
    metrics = read_means(tmp_path / "out")
    assert text_table(metrics) in done.stdout
    assert "keep:" in done.stdout
    assert f"report: {tmp_path / 'out' / 'report.html'}" in done.stdout
    assert "\n5 photographs (2 train, 0 validation, 3 test)\n" in done.stdout
    assert done.stdout.endswith(f"\ndata version: {data_version(dataset)}\n")
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
