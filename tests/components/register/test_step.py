import base64
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bebygan.errors import DataError, ServiceError, WeightsError
from bebygan.files import sha256_of
from bebygan.imaging.tiling import upscale_image
from bebygan.networks.naming import load_generator, save_generator
from bebygan.pretrained import weights_file
from components.artifacts import Registration
from components.config import RegisterParams, load_params
from components.register import step
from components.register.step import check_loads, register
from components.tracking.client import mlflow_client
from components.tracking.provenance import provenance
from components.tracking.registry import champion, download_generator, download_start, find_version, write_start
from components.tracking.runs import step_run
from tests.components.registered import aliases, versions

ROOT = Path(__file__).parents[3]
AUTOMATIC = RegisterParams(promotion="automatic", exports=())


def test_a_promoted_challenger_becomes_champion_and_the_old_one_previous(
    registered: Callable[..., Registration], generator_folder: Callable[..., Path], tmp_path: Path
) -> None:
    first = registered(generator_folder("one", 1), "promote")
    assert (first.version, first.champion, first.previous) == ("1", "1", None)
    second = registered(generator_folder("two", 2), "promote", champion="1")
    assert (second.version, second.champion, second.previous) == ("2", "2", "1")
    assert aliases() == {"champion": "2", "challenger": "2", "previous": "1"}
    written = json.loads((tmp_path / "out" / "registration.json").read_text())
    assert written.pop("digest")
    assert written == {
        "schema": 2,
        "model": "tests",
        "version": "2",
        "verdict": "promote",
        "champion": "2",
        "previous": "1",
        "weights_sha256": sha256_of(tmp_path / "two" / "generator.safetensors"),
    }


def test_a_kept_challenger_is_registered_and_moves_no_champion(
    registered: Callable[..., Registration], generator_folder: Callable[..., Path]
) -> None:
    registered(generator_folder("one", 1), "promote")
    kept = registered(generator_folder("two", 2), "keep", champion="1")
    assert (kept.version, kept.champion) == ("2", "1")
    assert aliases() == {"champion": "1", "challenger": "2", "previous": None}


def test_manual_promotion_moves_no_champion(registered: Callable[..., Registration], challenger: Path) -> None:
    assert registered(challenger, "promote", promotion="manual").champion is None
    assert aliases() == {"champion": None, "challenger": "1", "previous": None}
    assert registered(challenger, "promote").champion == "1"
    assert versions() == 1


def test_a_version_has_tags_of_its_lineage(registered: Callable[..., Registration], challenger: Path) -> None:
    registered(challenger, "promote")
    version = champion("tests")
    assert version is not None
    facts = provenance(load_params(ROOT / "params.yaml").evaluate, "0123.dir")
    del facts["params_hash"]
    expected = {name: fact for name, fact in facts.items() if fact != "unknown"} | {
        "seed": "1",
        "metric.lpips": "0.0875",
        "metric.psnr_y": "28",
        "verdict": "promote",
        "reasons": "passed: lpips 0.0875, at most 0.1 asked",
        "compared_with_champion": "none",
        "weights_sha256": sha256_of(challenger / "generator.safetensors"),
        "promoted": "true",
    }
    assert {name: version.tags[name] for name in expected} == expected
    # The version is made with the parameters of all steps, not those of evaluate.
    assert "params_hash" not in version.tags
    assert "unknown" not in version.tags.values()
    assert mlflow_client().get_run(version.run_id).data.tags["step"] == "register"


def test_a_version_has_a_model_card_and_its_figures_as_metrics(
    registered: Callable[..., Registration], challenger: Path
) -> None:
    registered(challenger, "promote")
    version = champion("tests")
    assert version is not None
    assert version.description.startswith("# tests version 1\n")
    assert re.search(r"\| this version +\| 28 +\| 0\.8 +\| 0\.0875 +\| 45", version.description)
    for part in ("Verdict: **promote**", "models:/tests/1", "data version `0123.dir`", "## Limits"):
        assert part in version.description
    [logged] = mlflow_client().search_logged_models(["1"])
    assert {metric.key: metric.value for metric in logged.metrics}["lpips"] == 0.0875


def test_a_version_has_its_discriminator_and_says_which_version_it_continued(
    registered: Callable[..., Registration], challenger: Path, generator_folder: Callable[..., Path], tmp_path: Path
) -> None:
    (challenger / "discriminator.safetensors").write_bytes(b"discriminator")
    registered(challenger, "promote")
    first = find_version("1", "tests")
    assert first.tags["discriminator_sha256"] == sha256_of(challenger / "discriminator.safetensors")
    assert "continued_from" not in first.tags
    write_start(first, tmp_path)
    for name in ("generator.safetensors", "discriminator.safetensors"):
        assert (tmp_path / name).read_bytes() == (challenger / name).read_bytes()
    later = generator_folder("later", 2)
    start = {"start": first.tags["weights_sha256"]}
    save_generator(load_generator(later / "generator.safetensors"), later / "generator.safetensors", metadata=start)
    registered(later, "keep")
    second = find_version("2", "tests")
    assert second.tags["continued_from"] == "1"
    assert "continued from version 1" in second.description
    [stored] = tmp_path.rglob("artifacts/artifacts/discriminator.safetensors")
    stored.write_bytes(b"Discriminator")
    with pytest.raises(WeightsError, match="its discriminator's weights have SHA-256"):
        write_start(first, tmp_path)


def test_the_registered_weights_are_the_challengers(
    registered: Callable[..., Registration], challenger: Path, tmp_path: Path
) -> None:
    registered(challenger, "promote")
    version = champion("tests")
    assert version is not None
    (tmp_path / "fetched").mkdir()
    path = download_generator(version, tmp_path / "fetched")
    assert path.read_bytes() == (challenger / "generator.safetensors").read_bytes()


def test_a_model_without_versions_has_no_champion(mlflow_store: str) -> None:  # noqa: ARG001
    assert champion("tests") is None
    mlflow_client().create_registered_model("tests")
    assert champion("tests") is None


@pytest.mark.parametrize("verdict", ["promote", "keep"])
def test_a_repeated_registration_changes_nothing(
    verdict: str, registered: Callable[..., Registration], challenger: Path
) -> None:
    first = registered(challenger, verdict)
    before = aliases()
    assert registered(challenger, verdict) == first
    assert versions() == 1
    assert aliases() == before


def test_the_champion_is_not_registered_a_second_time(
    registered: Callable[..., Registration], challenger: Path
) -> None:
    registered(challenger, "promote")
    assert registered(challenger, "keep", champion="1").version == "1"
    assert versions() == 1


def test_without_a_verdict_nothing_is_registered(
    challenger: Path,
    evaluated: Callable[..., Path],
    tmp_path: Path,
    mlflow_store: str,  # noqa: ARG001
) -> None:
    def attempt(evaluation: Path) -> None:
        with step_run("register", AUTOMATIC) as run:
            register(challenger, evaluation, tmp_path / "out", params=AUTOMATIC, run=run)

    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no verdict\.json: run evaluate first"):
        attempt(tmp_path / "empty")
    evaluation = evaluated(challenger, "perhaps")
    with pytest.raises(DataError, match=r"verdict\.json is damaged \(verdict is 'perhaps'\): run evaluate again"):
        attempt(evaluation)
    (evaluation / "verdict.json").write_text('{"verdict": "prom')
    with pytest.raises(DataError, match="is damaged"):
        attempt(evaluation)
    evaluation = evaluated(challenger, "promote", challenger_sha256="0" * 64)
    with pytest.raises(DataError, match="is about other weights than"):
        attempt(evaluation)
    (challenger / "generator.safetensors").unlink()
    with pytest.raises(DataError, match=r"holds no generator\.safetensors: run train first"):
        attempt(evaluation)
    assert versions() == 0
    assert not (tmp_path / "out").exists()


def test_an_unreachable_registry_raises_a_one_line_error(mlflow_store: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ServiceError, match=r"asking for the champion of tests failed .*\(Connection refused\)"):
        champion("tests")


def test_the_model_accepts_images_of_any_size(registered: Callable[..., Registration], challenger: Path) -> None:
    import mlflow

    registered(challenger, "promote")
    model = mlflow.pyfunc.load_model("models:/tests@champion")
    generator = load_generator(challenger / "generator.safetensors").eval()
    random = np.random.default_rng(0)
    sizes = [(1, 1), (17, 33), (40, 24)]
    images = [random.integers(0, 256, (height, width, 3), np.uint8) for height, width in sizes]
    for image in images:
        [sr] = model.predict(image[None])
        assert np.array_equal(sr, upscale_image(generator, image))
    different = np.empty(3, object)
    different[:] = images
    answers = model.predict(different)
    assert [answer.shape for answer in answers] == [(4 * height, 4 * width, 3) for height, width in sizes]
    assert np.array_equal(answers[1], upscale_image(generator, images[1]))
    assert model.predict(np.stack([images[2]] * 2), params={"tile": 16}).shape == (2, 160, 96, 3)
    assert np.array_equal(model.unwrap_python_model().predict(None, images[1]), answers[1])


def test_the_model_accepts_images_of_any_kind(registered: Callable[..., Registration], challenger: Path) -> None:
    import mlflow

    registered(challenger, "promote")
    model = mlflow.pyfunc.load_model("models:/tests@champion")
    rgb = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    sr = upscale_image(load_generator(challenger / "generator.safetensors").eval(), rgb)
    assert np.array_equal(model.predict(rgb), sr)
    assert np.array_equal(model.predict(rgb.astype(np.int64)[None])[0], sr)
    assert np.array_equal(np.asarray(model.predict(Image.fromarray(rgb))), sr)
    content = io.BytesIO()
    Image.fromarray(rgb).save(content, "PNG")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(model.predict(content.getvalue())))), sr)
    text = base64.b64encode(content.getvalue()).decode()
    for asked in (text, f"data:image/png;base64,{text}"):
        answer = base64.b64decode(model.predict(asked))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer))), sr)
    [answer] = model.predict(pd.DataFrame({"image": [text]}))
    assert answer == base64.b64encode(base64.b64decode(answer)).decode()
    # What JSON becomes.
    [answer] = model.predict(np.array([text]))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(answer)))), sr)
    alpha = np.dstack([rgb, np.full((8, 9), 200, np.uint8)])
    assert (model.predict(alpha)[..., 3] == 200).all()
    assert np.array_equal(model.predict(alpha)[..., :3], sr)
    assert model.predict(rgb[..., 0]).shape == (32, 36)


def test_the_model_refuses_what_is_no_image_in_one_sentence(
    registered: Callable[..., Registration], challenger: Path
) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    registered(challenger, "promote")
    model = mlflow.pyfunc.load_model("models:/tests@champion")
    for wrong, said in (
        (np.full((1, 8, 8, 3), 300.0), "an array of float64 and values from 300 to 300 cannot be upscaled: give uint8"),
        (np.zeros((1, 8, 8, 5), np.uint8), r"an array of shape \(1, 8, 8, 5\) cannot be upscaled"),
        ("no image", "a text must be the base64 of an image file"),
        (base64.b64encode(b"text").decode(), "the image is no JPEG, PNG"),
        ({"image": 1}, "dict cannot be upscaled: give a PIL image"),
    ):
        with pytest.raises(MlflowException, match=said) as caught:
            model.predict(wrong)
        assert "\n" not in str(caught.value)
        assert caught.value.get_http_status_code() == 400


def test_a_version_holds_the_start_of_its_training_unless_the_registry_has_it(
    registered: Callable[..., Registration], generator_folder: Callable[..., Path], tmp_path: Path
) -> None:
    first = generator_folder("one", 1)
    start = generator_folder("start", 3) / "generator.safetensors"
    (first / "start.safetensors").write_bytes(start.read_bytes())
    registered(first, "promote")
    version = champion("tests")
    assert version is not None
    assert version.tags["start_sha256"] == sha256_of(start)
    (tmp_path / "fetched").mkdir()
    assert download_start(version, tmp_path / "fetched").read_bytes() == start.read_bytes()
    later = replace(version, tags={"train.start": version.tags["weights_sha256"]})
    assert sha256_of(download_start(later, tmp_path / "fetched")) == version.tags["weights_sha256"]
    with pytest.raises(WeightsError, match="started from are not in the registry: leave --fidelity out"):
        download_start(replace(version, tags={"train.start": "0" * 64}), tmp_path)
    known = replace(version, tags={"train.start_name": "realsr-df2k-x4"})
    assert download_start(known, tmp_path) == weights_file("realsr-df2k-x4")


def test_the_model_pins_its_requirements(registered: Callable[..., Registration], challenger: Path) -> None:
    import mlflow

    registered(challenger, "promote")
    folder = Path(mlflow.artifacts.download_artifacts("models:/tests@champion"))
    lines = (folder / "requirements.txt").read_text().split()
    assert {re.split("==", line)[0] for line in lines} == {"mlflow", "numpy", "pillow", "safetensors", "torch"}
    assert all(re.fullmatch(r"\w+==[\d.]+", line) for line in lines)
    assert (folder / "code" / "bebygan" / "networks" / "generator.py").is_file()
    assert not list(folder.rglob("*.pkl"))
    assert not list(folder.rglob("*.pyc"))


@pytest.mark.slow
def test_the_load_check_compares_the_pixels_of_a_clean_process(
    challenger: Path,
    generator_folder: Callable[..., Path],
    evaluated: Callable[..., Path],
    tmp_path: Path,
    mlflow_store: str,  # noqa: ARG001
) -> None:
    with step_run("register", AUTOMATIC) as run:
        register(challenger, evaluated(challenger, "promote"), tmp_path / "out", params=AUTOMATIC, run=run)
    version = champion("tests")
    assert version is not None
    other = generator_folder("other", 2) / "generator.safetensors"
    with pytest.raises(WeightsError, match=r"models:/tests/1 gives other pixels than .*the champion stays as it was"):
        check_loads(version, other)
    stored = next((tmp_path / "mlartifacts").rglob("generator.safetensors"))
    stored.write_bytes(stored.read_bytes()[:300])
    with pytest.raises(WeightsError, match=r"models:/tests/1 does not load in a clean process \(.*WeightsError"):
        check_loads(version, challenger / "generator.safetensors")


@pytest.mark.slow
def test_a_model_that_gives_other_pixels_never_becomes_champion(
    registered: Callable[..., Registration],
    generator_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registered(generator_folder("one", 1), "promote")
    monkeypatch.setattr(step, "check_loads", check_loads)
    monkeypatch.setattr(step, "_FOLDER", tmp_path / "code")
    (tmp_path / "code").mkdir()
    good = (ROOT / "components" / "register" / "model_code.py").read_text()
    (tmp_path / "code" / "model_code.py").write_text(good.replace("return upscaled\n", "return upscaled // 2\n"))
    (tmp_path / "code" / "load_check.py").write_text((ROOT / "components" / "register" / "load_check.py").read_text())
    with pytest.raises(WeightsError, match="gives other pixels"):
        registered(generator_folder("two", 2), "promote", champion="1")
    assert aliases() == {"champion": "1", "challenger": "2", "previous": None}


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_store")
def test_the_command_registers_and_prints_errors_in_one_line(
    challenger: Path, evaluated: Callable[..., Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "components.register", "--params", str(ROOT / "params.yaml")]
    command += ["--challenger", str(challenger), "--evaluation", str(evaluated(challenger, "promote"))]
    command += ["--output", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def call() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)

    done = call()
    assert done.returncode == 0, done.stderr
    assert done.stdout == "tests version 1 (promote); champion: 1\n"
    assert "Warning" not in done.stderr
    (tmp_path / "evaluation" / "verdict.json").unlink()
    refused = call()
    assert refused.returncode == 3
    assert refused.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_store")
def test_a_relative_file_of_credentials_is_found_by_the_process_that_loads_the_model(
    challenger: Path, evaluated: Callable[..., Path], tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow_client().create_experiment("bebygan", f"s3://{bucket}/artifacts")
    keys = [f"{name.lower()} = {os.environ[name]}\n" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
    (tmp_path / "credentials").write_text(f"[default]\n{''.join(keys)}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"])
    done = subprocess.run(
        [
            sys.executable, "-m", "components.register", "--params", str(ROOT / "params.yaml"),
            "--challenger", str(challenger), "--evaluation", str(evaluated(challenger, "promote")),
            "--output", str(tmp_path / "out"),
        ],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "AWS_SHARED_CREDENTIALS_FILE": "credentials"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "tests version 1 (promote); champion: 1\n"


@pytest.mark.usefixtures("mlflow_store")
def test_a_verdict_about_another_data_version_than_the_one_that_the_run_ingested_is_refused(
    challenger: Path, evaluated: Callable[..., Path], tmp_path: Path
) -> None:
    folder = evaluated(challenger, "promote")
    message = r"evaluation is of data version 0123\.dir, but this run ingested 1234\.dir: run evaluate again"
    with step_run("register", AUTOMATIC) as run, pytest.raises(DataError, match=message):
        register(challenger, folder, tmp_path / "out", params=AUTOMATIC, run=run, expected="1234.dir")
    assert versions() == 0
