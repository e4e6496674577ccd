import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bebygan.errors import DataError, ServiceError, WeightsError
from bebygan.files import sha256_of
from bebygan.imaging.tiling import upscale_image
from bebygan.networks.naming import load_generator
from components.artifacts import Registration
from components.config import RegisterParams, load_params
from components.register import promotion, step
from components.register.step import check_loads, register
from components.tracking.client import mlflow_client
from components.tracking.ledger import append, entries
from components.tracking.provenance import provenance
from components.tracking.registry import champion, download_generator, version_with_alias
from components.tracking.runs import step_run

ROOT = Path(__file__).parents[3]
AUTOMATIC = RegisterParams(promotion="automatic")


@pytest.fixture
def challenger(generator_folder: Callable[..., Path]) -> Path:
    return generator_folder("challenger", 1)


@pytest.fixture
def evaluated(tmp_path: Path) -> Callable[..., Path]:
    """Writes the folder of an evaluation of a challenger."""

    def write(challenger: Path, verdict: str, champion: str | None = None, **changed: Any) -> Path:
        folder = tmp_path / "evaluation"
        folder.mkdir(exist_ok=True)
        row = {"psnr_y": 28.0, "ssim_y": 0.8, "lpips": 0.1, "lr_psnr": 45.0}
        (folder / "metrics.json").write_text(json.dumps({"bicubic": row, "challenger": row | {"lpips": 0.0875}}))
        said = {
            "verdict": verdict,
            "reasons": ["passed: lpips 0.0875, at most 0.1 asked"],
            "model": "tests",
            "champion": champion,
            "challenger_sha256": sha256_of(challenger / "generator.safetensors"),
            "protocol": {},
            "provenance": provenance(load_params(ROOT / "params.yaml").evaluate, "0123.dir"),
        }
        (folder / "verdict.json").write_text(json.dumps(said | changed))
        return folder

    return write


@pytest.fixture
def registered(
    tmp_path: Path,
    evaluated: Callable[..., Path],
    mlflow_store: str,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Registration]:
    """Registers a challenger by a verdict; the clean process, which takes seconds, has tests of its own."""
    monkeypatch.setattr(step, "check_loads", lambda *_: None)

    def run_step(
        challenger: Path, verdict: str, champion: str | None = None, promotion: Any = "automatic", ledger: str = ""
    ) -> Registration:
        params = RegisterParams(promotion=promotion)
        folder = evaluated(challenger, verdict, champion)
        with step_run("register", params) as run:
            return register(challenger, folder, tmp_path / "out", params=params, run=run, ledger=ledger)

    return run_step


def aliases() -> dict[str, str | None]:
    found = {alias: version_with_alias("tests", alias) for alias in ("champion", "challenger", "previous")}  # type: ignore[arg-type]
    return {alias: version.version if version else None for alias, version in found.items()}


def versions() -> int:
    return len(mlflow_client().search_model_versions("name='tests'"))


def test_a_promoted_challenger_becomes_champion_and_the_old_one_previous(
    registered: Callable[..., Registration], generator_folder: Callable[..., Path], tmp_path: Path
) -> None:
    first = registered(generator_folder("one", 1), "promote")
    assert (first.version, first.champion, first.previous) == ("1", "1", None)
    second = registered(generator_folder("two", 2), "promote", champion="1")
    assert (second.version, second.champion, second.previous) == ("2", "2", "1")
    assert aliases() == {"champion": "2", "challenger": "2", "previous": "1"}
    assert json.loads((tmp_path / "out" / "registration.json").read_text()) == {
        "schema": 1,
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


def test_promotion_by_hand_leaves_the_champion_to_a_person(
    registered: Callable[..., Registration], challenger: Path
) -> None:
    assert registered(challenger, "promote", promotion="manual").champion is None
    assert aliases() == {"champion": None, "challenger": "1", "previous": None}
    assert registered(challenger, "promote").champion == "1"
    assert versions() == 1


def test_a_version_carries_its_lineage(registered: Callable[..., Registration], challenger: Path) -> None:
    registered(challenger, "promote")
    version = champion("tests")
    assert version is not None
    facts = provenance(load_params(ROOT / "params.yaml").evaluate, "0123.dir")
    expected = facts | {
        "train.seed": "1",
        "metric.lpips": "0.0875",
        "metric.psnr_y": "28",
        "verdict": "promote",
        "reasons": "passed: lpips 0.0875, at most 0.1 asked",
        "compared_with_champion": "none",
        "weights_sha256": sha256_of(challenger / "generator.safetensors"),
        "promoted": "true",
    }
    assert {name: version.tags[name] for name in expected} == expected
    assert mlflow_client().get_run(version.run_id).data.tags["step"] == "register"


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
def test_registering_the_same_again_changes_nothing(
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


def test_repeating_an_old_promotion_does_not_bring_the_old_model_back(
    registered: Callable[..., Registration], generator_folder: Callable[..., Path]
) -> None:
    one = generator_folder("one", 1)
    registered(one, "promote")
    registered(generator_folder("two", 2), "promote", champion="1")
    assert registered(one, "promote").champion == "2"
    assert aliases() == {"champion": "2", "challenger": "2", "previous": "1"}


def test_a_verdict_against_another_champion_promotes_nothing(
    registered: Callable[..., Registration], generator_folder: Callable[..., Path]
) -> None:
    registered(generator_folder("one", 1), "promote")
    with pytest.raises(DataError, match="compares with no version, but now version 1 holds the alias champion"):
        registered(generator_folder("two", 2), "promote", champion=None)
    assert aliases()["champion"] == "1"


class Killed(BaseException):
    pass


@contextmanager
def killed_after(survived: int) -> Iterator[None]:
    """Let whoever changes registry or ledger die at the change after so many."""
    from mlflow import MlflowClient

    changes = 0

    def dying(original: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any, **options: Any) -> Any:
            nonlocal changes
            if changes == survived:
                raise Killed
            changes += 1
            return original(*arguments, **options)

        return change

    with pytest.MonkeyPatch.context() as patch:
        for name in ("set_registered_model_alias", "set_model_version_tag", "_create_model_version"):
            patch.setattr(MlflowClient, name, dying(getattr(MlflowClient, name)))
        patch.setattr(promotion, "append", dying(promotion.append))
        yield


@pytest.mark.parametrize("survived", range(5))
def test_a_kill_at_any_moment_leaves_a_valid_champion_and_repeating_completes(
    survived: int,
    registered: Callable[..., Registration],
    generator_folder: Callable[..., Path],
) -> None:
    registered(generator_folder("one", 1), "promote")
    two = generator_folder("two", 2)
    with killed_after(survived), pytest.raises(Killed):
        registered(two, "promote", champion="1")
    assert aliases()["champion"] in ("1", "2")
    done = registered(two, "promote", champion="1")
    assert (done.version, done.champion, done.previous) == ("2", "2", "1")
    assert versions() == 2


def moves(ledger: str) -> list[tuple[str | None, str | None, str]]:
    return [(move.previous, move.version, move.verdict) for move in entries(ledger, "tests")]


def test_the_ledger_says_of_each_promotion_what_why_from_what_and_who(
    registered: Callable[..., Registration],
    generator_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    ledger = str(tmp_path / "ledger")
    registered(generator_folder("one", 1), "promote", ledger=ledger)
    two = generator_folder("two", 2)
    registered(two, "keep", champion="1", ledger=ledger)
    for _ in range(2):
        registered(two, "promote", champion="1", ledger=ledger)
    assert moves(ledger) == [(None, "1", "promote"), ("1", "3", "promote")]
    entry, holder = entries(ledger, "tests")[-1], champion("tests")
    assert holder is not None
    assert (entry.number, entry.run, entry.data_version) == (2, holder.tags["register_run"], "0123.dir")
    assert entry.weights_sha256 == sha256_of(two / "generator.safetensors")
    assert (entry.reason, entry.who) == ("passed: lpips 0.0875, at most 0.1 asked", "ada")
    age = datetime.now(UTC) - datetime.fromisoformat(entry.time)
    assert 0 <= age.total_seconds() < 600


@pytest.mark.parametrize("survived", range(6))
def test_a_kill_at_any_moment_leaves_a_ledger_that_the_next_registration_completes(
    survived: int,
    registered: Callable[..., Registration],
    generator_folder: Callable[..., Path],
    tmp_path: Path,
) -> None:
    ledger = str(tmp_path / "ledger")
    registered(generator_folder("one", 1), "promote", ledger=ledger)
    two = generator_folder("two", 2)
    with killed_after(survived), pytest.raises(Killed):
        registered(two, "promote", champion="1", ledger=ledger)
    entered = len(moves(ledger)) == 2
    assert entered == (survived > 2)
    # Another challenger, which is not promoted, finds the interrupted promotion and completes it.
    other = registered(generator_folder("three", 3), "keep", champion="1", ledger=ledger)
    assert other.champion == ("2" if entered else "1")
    assert aliases()["previous"] == ("1" if entered else None)
    if not entered:
        done = registered(two, "promote", champion="1", ledger=ledger)
        assert done.champion == done.version
    assert [verdict for *_, verdict in moves(ledger)] == ["promote", "promote"]


def test_of_two_promotions_at_once_the_second_is_refused_and_not_entered(
    registered: Callable[..., Registration],
    generator_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ledger = str(tmp_path / "ledger")
    registered(generator_folder("one", 1), "promote", ledger=ledger)
    two, three = generator_folder("two", 2), generator_folder("three", 3)
    real = promotion.append

    def overtaken(*arguments: Any) -> bool:
        monkeypatch.setattr(promotion, "append", real)
        assert registered(three, "promote", champion="1", ledger=ledger).champion == "3"
        return real(*arguments)

    monkeypatch.setattr(promotion, "append", overtaken)
    with pytest.raises(DataError, match="compares with version 1, but now version 3 holds the alias champion"):
        registered(two, "promote", champion="1", ledger=ledger)
    assert aliases() == {"champion": "3", "challenger": "3", "previous": "1"}
    assert moves(ledger) == [(None, "1", "promote"), ("1", "3", "promote")]


def test_who_moves_the_aliases_late_puts_them_back_where_the_newest_entry_says(
    registered: Callable[..., Registration],
    generator_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow import MlflowClient

    ledger = str(tmp_path / "ledger")
    registered(generator_folder("one", 1), "promote", ledger=ledger)
    two, three = generator_folder("two", 2), generator_folder("three", 3)
    real = MlflowClient.set_registered_model_alias

    def late(client: MlflowClient, model: str, alias: str, version: str) -> None:
        if alias == "champion":
            monkeypatch.setattr(MlflowClient, "set_registered_model_alias", real)
            assert registered(three, "promote", champion="2", ledger=ledger).champion == "3"
        real(client, model, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", late)
    registered(two, "promote", champion="1", ledger=ledger)
    assert aliases() == {"champion": "3", "challenger": "3", "previous": "2"}
    assert moves(ledger) == [(None, "1", "promote"), ("1", "2", "promote"), ("2", "3", "promote")]


def test_a_champion_that_a_person_chose_is_entered_and_stays(
    registered: Callable[..., Registration], generator_folder: Callable[..., Path], tmp_path: Path
) -> None:
    ledger = str(tmp_path / "ledger")
    registered(generator_folder("one", 1), "promote", ledger=ledger)
    registered(generator_folder("two", 2), "promote", champion="1", ledger=ledger)
    mlflow_client().set_registered_model_alias("tests", "champion", "1")
    for _ in range(2):
        assert registered(generator_folder(f"more{_}", 3 + _), "keep", champion="1", ledger=ledger).champion == "1"
    assert moves(ledger)[2:] == [("2", "1", "by hand")]
    mlflow_client().delete_registered_model_alias("tests", "champion")
    assert registered(generator_folder("five", 5), "promote", champion=None, ledger=ledger).champion == "5"
    assert moves(ledger)[3:] == [("1", None, "by hand"), (None, "5", "promote")]


def test_a_ledger_that_is_newer_than_a_restored_tracker_brings_no_unknown_model_to_power(
    registered: Callable[..., Registration], generator_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """The number of a version that the backup did not know is given again, to other weights."""
    ledger = str(tmp_path / "ledger")
    registered(generator_folder("one", 1), "promote", ledger=ledger)
    lost = replace(entries(ledger, "tests")[0], number=2, version="2", previous="1", weights_sha256="f" * 64)
    append(ledger, "tests", lost)
    assert registered(generator_folder("two", 2), "keep", champion="1", ledger=ledger).champion == "1"
    append(ledger, "tests", replace(lost, number=4))
    assert registered(generator_folder("three", 3), "keep", champion="1", ledger=ledger).champion == "1"
    assert moves(ledger)[-1] == ("2", "1", "by hand")


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


def test_a_registry_that_is_away_is_said_in_one_line(mlflow_store: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ServiceError, match=r"asking for the champion of tests failed .*\(Connection refused\)"):
        champion("tests")


def test_the_model_takes_images_of_any_size(registered: Callable[..., Registration], challenger: Path) -> None:
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


def test_the_model_refuses_what_is_no_batch_of_8_bit_images(
    registered: Callable[..., Registration], challenger: Path
) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    registered(challenger, "promote")
    model = mlflow.pyfunc.load_model("models:/tests@champion")
    for wrong in (np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 8, 8, 4), np.uint8)):
        with pytest.raises(MlflowException, match="does not match expected"):
            model.predict(wrong)


def test_the_model_pins_what_it_runs_on(registered: Callable[..., Registration], challenger: Path) -> None:
    import mlflow

    registered(challenger, "promote")
    folder = Path(mlflow.artifacts.download_artifacts("models:/tests@champion"))
    lines = (folder / "requirements.txt").read_text().split()
    assert {re.split("==", line)[0] for line in lines} == {"mlflow", "numpy", "safetensors", "torch"}
    assert all(re.fullmatch(r"\w+==[\d.]+", line) for line in lines)
    assert (folder / "code" / "bebygan" / "networks" / "generator.py").is_file()
    assert not list(folder.rglob("*.pkl"))
    assert not list(folder.rglob("*.pyc"))


@pytest.mark.slow
def test_before_the_alias_moves_a_clean_process_must_give_the_same_pixels(
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
    (tmp_path / "code" / "model_code.py").write_text(good.replace("tile=tile)", "tile=tile) // 2"))
    (tmp_path / "code" / "load_check.py").write_text((ROOT / "components" / "register" / "load_check.py").read_text())
    with pytest.raises(WeightsError, match="gives other pixels"):
        registered(generator_folder("two", 2), "promote", champion="1")
    assert aliases() == {"champion": "1", "challenger": "2", "previous": None}


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_store")
def test_the_command_line_registers_and_refuses_in_one_line(
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
