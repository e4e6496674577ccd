import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from bebygan.errors import DataError, Preempted, StorageError, WeightsError
from bebygan.files import json_digest, sha256_of
from bebygan.networks.generator import Generator
from bebygan.networks.naming import load_generator, save_generator
from bebygan.networks.weights import metadata_of
from bebygan.pretrained import GENERATORS, KNOWN
from bebygan.registered_model import DISCRIMINATOR, MODEL_CODE, WEIGHTS, digests
from bebygan.settings import GeneratorShape
from components.config import WarmupParams, load_params
from components.tracking.client import mlflow_client
from components.warmup.step import warm_up
from tests.components.trained import contents, history, ignore

ROOT = Path(__file__).parents[3]
TINY = (
    "warmup.generator={blocks: 1, features: 4, growth: 2}",
    "warmup.weights=null",
    "warmup.iterations=6",
    "warmup.batch=2",
    "warmup.crop=48",
    "warmup.schedule={peak: 1.0e-3, warmup: 2}",
    "warmup.ema_decay=0.9",
    "warmup.precision=fp32",
    "warmup.channels_last=false",
    "warmup.checkpoint_every=2",
    "warmup.log_every=1",
    "warmup.validate_every=0",
)
Logged = list[tuple[int, Mapping[str, float]]]


def tiny(*changes: str) -> WarmupParams:
    return load_params(ROOT / "params/compact.yaml", [*TINY, *(f"warmup.{change}" for change in changes)]).warmup


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_generator(path).state_dict()


def assert_same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Write the weights of the tiny generator."""
    torch.manual_seed(7)
    path = tmp_path / "given.safetensors"
    save_generator(Generator(GeneratorShape(blocks=1, features=4, growth=2)), path, metadata={"by": "tests"})
    return path


@pytest.fixture
def undisturbed(tmp_path_factory: pytest.TempPathFactory, patches: Path) -> Path:
    """Return the output of an uninterrupted warm-up from scratch."""
    folder = tmp_path_factory.mktemp("undisturbed")
    warm_up(patches, folder / "out", folder / "checkpoints", params=tiny(), track=ignore)
    return folder / "out"


@pytest.fixture
def registered(weights: Path, mlflow_store: str) -> str:  # noqa: ARG001
    """Register the tiny generator with a discriminator; return how a run names it."""
    model = weights.parent / "model"
    (model / "artifacts").mkdir(parents=True)
    shutil.copy(weights, model / WEIGHTS)
    (model / DISCRIMINATOR).write_bytes(b"discriminator")
    (model / MODEL_CODE).write_text("")
    client = mlflow_client()
    client.create_registered_model("bebygan")
    client.create_model_version("bebygan", model.as_uri(), tags=digests(model))
    return f"models:/bebygan/1#{sha256_of(weights)}"


def test_a_registered_version_is_continued_with_byte_for_byte(
    registered: str, weights: Path, patches: Path, tmp_path: Path
) -> None:
    warm_up(
        patches, tmp_path / "out", tmp_path / "c", params=tiny("iterations=0", f"weights={registered}"), track=ignore
    )
    assert (tmp_path / "out" / "generator.safetensors").read_bytes() == weights.read_bytes()
    assert (tmp_path / "out" / "discriminator.safetensors").read_bytes() == b"discriminator"


@pytest.mark.parametrize(
    ("changed", "settings", "said"),
    [
        (
            None,
            "generator={blocks: 2, features: 4, growth: 2}",
            r"models:/bebygan/1 holds .*, but warmup\.generator asks",
        ),
        (WEIGHTS, "iterations=0", "models:/bebygan/1 is damaged: its weights have SHA-256"),
        (DISCRIMINATOR, "iterations=0", "models:/bebygan/1 is damaged: its discriminator's weights have SHA-256"),
    ],
)
def test_a_registered_version_that_does_not_fit_or_was_changed_is_refused(  # noqa: PLR0917
    changed: str | None, settings: str, said: str, registered: str, patches: Path, tmp_path: Path
) -> None:
    if changed:
        (tmp_path / "model" / changed).write_bytes(b"changed")
    with pytest.raises(WeightsError, match=said):
        warm_up(patches, tmp_path / "out", tmp_path / "c", params=tiny(settings, f"weights={registered}"), track=ignore)
    assert not (tmp_path / "out").exists()


def test_a_version_with_other_weights_than_were_decided_on_is_refused(
    registered: str, patches: Path, tmp_path: Path
) -> None:
    other = registered[:-1] + ("0" if registered[-1] != "0" else "1")
    with pytest.raises(WeightsError, match="models:/bebygan/1 has other weights than when this run was decided"):
        warm_up(patches, tmp_path / "out", tmp_path / "c", params=tiny(f"weights={other}"), track=ignore)


def stop_at(iteration: int) -> Callable[[int, Mapping[str, float]], None]:
    def track(done: int, _: Mapping[str, float]) -> None:
        if done == iteration:
            os.kill(os.getpid(), signal.SIGTERM)

    return track


def test_given_weights_are_imported_unchanged(patches: Path, weights: Path, tmp_path: Path) -> None:
    logged: Logged = []
    params = tiny("iterations=0", f"weights={weights}")
    warm_up(patches, tmp_path / "out", tmp_path / "checkpoints", params=params, track=lambda *each: logged.append(each))
    for name in ("generator", "generator_raw"):
        assert_same(tensors(tmp_path / "out" / f"{name}.safetensors"), tensors(weights))
    assert not logged
    assert not history(tmp_path / "out")
    assert not (tmp_path / "checkpoints").exists()


def test_weights_with_public_names_are_imported(patches: Path, weights: Path, tmp_path: Path) -> None:
    save_generator(load_generator(weights), tmp_path / "public.safetensors", naming="basicsr")
    params = tiny("iterations=0", f"weights={tmp_path / 'public.safetensors'}")
    warm_up(patches, tmp_path / "out", tmp_path / "checkpoints", params=params, track=ignore)
    assert_same(tensors(tmp_path / "out" / "generator.safetensors"), tensors(weights))


def test_the_metadata_names_the_initial_weights(patches: Path, weights: Path, tmp_path: Path) -> None:
    starts = []
    for number, given in enumerate((f"weights={weights}", "weights=null")):
        out = tmp_path / str(number)
        warm_up(patches, out, tmp_path / "checkpoints", params=tiny(given, "iterations=1"), track=ignore)
        with safe_open(out / "generator.safetensors", "numpy") as file:
            starts.append(file.metadata()["start"])
    assert starts == [sha256_of(weights), "scratch"]


def test_training_from_scratch_lowers_the_loss(patches: Path, tmp_path: Path) -> None:
    logged: Logged = []
    params = tiny("iterations=40", "checkpoint_every=40", "schedule.peak=1e-2")
    warm_up(patches, tmp_path / "out", tmp_path / "checkpoints", params=params, track=lambda *each: logged.append(each))
    losses = [values["pixel"] for _, values in logged]
    assert len(losses) == 40
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])
    assert [(entry["iteration"], entry["pixel"]) for entry in history(tmp_path / "out")] == [
        (iteration, values["pixel"]) for iteration, values in logged
    ]


def test_the_averaged_and_the_last_weights_are_written(undisturbed: Path) -> None:
    average, last = (tensors(undisturbed / f"{name}.safetensors") for name in ("generator", "generator_raw"))
    assert average.keys() == last.keys()
    assert not torch.equal(average["conv_last.weight"], last["conv_last.weight"])


def test_training_starts_from_given_weights(patches: Path, weights: Path, tmp_path: Path) -> None:
    params = tiny(f"weights={weights}", "iterations=1", "ema_decay=0.0", "schedule.peak=1e-6")
    warm_up(patches, tmp_path / "out", tmp_path / "checkpoints", params=params, track=ignore)
    given, trained = tensors(weights), tensors(tmp_path / "out" / "generator.safetensors")
    moved = max(float((trained[name] - given[name]).abs().max()) for name in given)
    assert 0 < moved < 1e-5


def test_the_bytes_depend_on_the_seed(patches: Path, undisturbed: Path, tmp_path: Path) -> None:
    for name, change in (("again", "seed=1"), ("other", "seed=2")):
        warm_up(patches, tmp_path / name, tmp_path / f"checkpoints {name}", params=tiny(change), track=ignore)
    assert contents(tmp_path / "again") == contents(undisturbed)
    assert contents(tmp_path / "other")["generator.safetensors"] != contents(undisturbed)["generator.safetensors"]


@pytest.mark.parametrize("stopped_after", [1, 4])
def test_a_resumed_warm_up_gives_the_result_of_an_uninterrupted_one(
    stopped_after: int, patches: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out, checkpoints = tmp_path / "out", tmp_path / "checkpoints"
    with pytest.raises(Preempted, match=f"stopped on request after iteration {stopped_after}; run again"):
        warm_up(patches, out, checkpoints, params=tiny(), track=stop_at(stopped_after))
    assert not out.exists()
    logged: Logged = []
    warm_up(patches, out, checkpoints, params=tiny(), track=lambda *each: logged.append(each))
    assert [iteration for iteration, _ in logged] == list(range(stopped_after + 1, 7))
    assert contents(out) == contents(undisturbed)


def test_a_finished_warm_up_is_not_trained_again(patches: Path, tmp_path: Path) -> None:
    warm_up(patches, tmp_path / "one", tmp_path / "checkpoints", params=tiny(), track=ignore)
    logged: Logged = []
    warm_up(patches, tmp_path / "two", tmp_path / "checkpoints", params=tiny(), track=lambda *each: logged.append(each))
    assert logged == []
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_other_parameters_or_patches_start_a_new_training(patches: Path, tmp_path: Path) -> None:
    warm_up(patches, tmp_path / "out", tmp_path / "checkpoints", params=tiny(), track=ignore)
    other = shutil.copytree(patches, tmp_path / "other patches")
    about = json.loads((other / "patches.json").read_text()) | {"made_from": {"data_version": "another"}}
    del about["digest"]
    (other / "patches.json").write_text(json.dumps(about | {"digest": json_digest(about)}))
    for folder, params in ((patches, tiny("schedule.peak=2e-3")), (other, tiny())):
        logged: Logged = []
        warm_up(
            folder,
            tmp_path / "out",
            tmp_path / "checkpoints",
            params=params,
            track=lambda *each, logged=logged: logged.append(each),
        )
        assert [iteration for iteration, _ in logged] == [1, 2, 3, 4, 5, 6]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


def test_the_error_for_weights_of_another_shape_names_both_shapes(patches: Path, tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    save_generator(Generator(GeneratorShape(blocks=2, features=8, growth=4)), path)
    with pytest.raises(WeightsError) as error:
        warm_up(patches, tmp_path / "out", tmp_path / "checkpoints", params=tiny(f"weights={path}"), track=ignore)
    for part in (path, "blocks=2, features=8, growth=4", "warmup.generator", "blocks=1, features=4, growth=2"):
        assert str(part) in str(error.value)
    first = "conv_first.weight is (8, 3, 3, 3) in the file and (4, 3, 3, 3) in the generator"
    assert str(error.value).endswith(first)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_error_for_weights_with_more_blocks_names_the_first_key_that_differs(patches: Path, tmp_path: Path) -> None:
    for found, wanted, told in (
        (2, 1, "(2, 4, 3, 3) in the file and missing"),
        (1, 2, "missing in the file and (2, 4,"),
    ):
        path = tmp_path / f"{found}.safetensors"
        save_generator(Generator(GeneratorShape(blocks=found, features=4, growth=2)), path)
        params = tiny(f"weights={path}", f"generator.blocks={wanted}")
        with pytest.raises(WeightsError) as error:
            warm_up(patches, tmp_path / "out", tmp_path / "checkpoints", params=params, track=ignore)
        assert f"RRDB_trunk.1.RDB1.conv1.weight is {told}" in str(error.value)


def test_the_error_for_a_misspelt_name_of_known_weights_names_the_nearest(patches: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"^warmup\.weights is realsr-df2k, .* did you mean realsr-df2k-x4\?$"):
        warm_up(patches, tmp_path / "out", tmp_path / "c", params=tiny("weights=realsr-df2k"), track=ignore)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no weights at .*given.*: fetch them or correct the path"),
        (b"", "given.* cannot be read as weights"),
        (b"This is no file of weights.", "given.* cannot be read as weights"),
    ],
)
def test_the_error_names_missing_or_damaged_weights(
    content: bytes | None, message: str, patches: Path, weights: Path, tmp_path: Path
) -> None:
    params = tiny(f"weights={weights}")
    if content is None:
        weights.unlink()
    else:
        weights.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        warm_up(patches, tmp_path / "out", tmp_path / "checkpoints", params=params, track=ignore)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("iterations", [0, 5])
def test_weights_that_are_not_finite_are_neither_imported_nor_trained_from(
    iterations: int, patches: Path, weights: Path, tmp_path: Path
) -> None:
    state = tensors(weights)
    state["conv_first.bias"][0] = float("nan")
    torch.save(state, tmp_path / "given.pth")
    params = tiny(f"weights={tmp_path / 'given.pth'}", f"iterations={iterations}", "log_every=100", "skip_limit=50")
    with pytest.raises(WeightsError, match=r"given\.pth: conv_first\.bias contains NaN or infinite numbers"):
        warm_up(patches, tmp_path / "out", tmp_path / "checkpoints", params=params, track=ignore)
    assert not (tmp_path / "out").exists()


def test_the_error_for_missing_patches_names_the_step_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere holds no patches\.json: run patches first"):
        warm_up(tmp_path / "nowhere", tmp_path / "out", tmp_path / "checkpoints", params=tiny(), track=ignore)
    assert not list(tmp_path.iterdir())


def test_a_crop_larger_than_the_patches_is_refused(patches: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a crop of 64 does not fit into patches of 48"):
        warm_up(patches, tmp_path / "out", tmp_path / "checkpoints", params=tiny("crop=64"), track=ignore)
    assert not (tmp_path / "out").exists()


def test_damaged_patches_are_refused(patches: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(patches, tmp_path / "damaged")
    pixels = bytearray((damaged / "shard-000.npy").read_bytes())
    pixels[500] ^= 1
    (damaged / "shard-000.npy").write_bytes(pixels)
    with pytest.raises(DataError, match=r"shard-000\.npy is damaged .* make the patches again"):
        warm_up(damaged, tmp_path / "out", tmp_path / "checkpoints", params=tiny(), track=ignore)
    assert not (tmp_path / "out").exists()


def test_the_error_names_a_full_disk_and_no_partial_output_remains(
    patches: Path, tmp_path: Path, small_disk: Path
) -> None:
    params = tiny("generator={blocks: 1, features: 24, growth: 12}")
    with pytest.raises(StorageError, match=r"cannot write .*: the disk is full"):
        warm_up(patches, small_disk / "out", tmp_path / "checkpoints", params=params, track=ignore)
    assert not list(small_disk.iterdir())


def test_the_output_folder_is_replaced_as_a_whole(patches: Path, undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "left over").write_text("old")
    with pytest.raises(DataError):
        warm_up(patches, tmp_path / "out", tmp_path / "checkpoints", params=tiny("crop=64"), track=ignore)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["left over"]
    warm_up(patches, tmp_path / "out", tmp_path / "checkpoints", params=tiny(), track=ignore)
    assert contents(tmp_path / "out") == contents(undisturbed)


@pytest.mark.usefixtures("mlflow_store")
def test_the_command_tracks_its_data_version_and_sets_the_exit_code(
    patches: Path, weights: Path, tmp_path: Path
) -> None:
    save_generator(Generator(GeneratorShape(blocks=2, features=8, growth=4)), tmp_path / "large.safetensors")

    def run(given: Path) -> subprocess.CompletedProcess[str]:
        settings = [f"--set={setting}" for setting in (*TINY, "warmup.iterations=2", f"warmup.weights={given}")]
        places = ["--patches", str(patches), "--output", "out", "--params", str(ROOT / "params/compact.yaml")]
        command = [sys.executable, "-m", "components.warmup", *places, *settings]
        variables = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False)

    wrong = run(tmp_path / "large.safetensors")
    assert wrong.returncode == 5
    assert re.fullmatch(r"error: .*large\.safetensors holds .*, but warmup\.generator asks for .*\n", wrong.stderr)
    right = run(weights)
    assert (right.returncode, right.stdout) == (0, "out: warm-up generator\n"), right.stderr
    assert {path.name for path in (tmp_path / "workspace" / "checkpoints").glob("warmup-*/*")} == {
        "iteration-00000002.checkpoint"
    }
    client = mlflow_client()
    [finished, failed] = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert (failed.info.status, finished.info.status) == ("FAILED", "FINISHED")
    assert finished.data.tags["data_version"] == f"{'0' * 32}.dir"
    assert finished.data.params["iterations"] == "2"
    values = client.get_metric_history(finished.info.run_id, "pixel")
    assert [value.value for value in values] == pytest.approx([entry["pixel"] for entry in history(tmp_path / "out")])


def objective_in(folder: Path) -> str | None:
    return metadata_of(folder / "generator.safetensors").get("objective")


@pytest.mark.parametrize(
    ("metadata", "iterations", "expected"),
    [
        ({}, 2, "psnr"),
        ({"objective": "perceptual"}, 2, "psnr"),
        ({"objective": "perceptual"}, 0, "perceptual"),
        ({"step": "train"}, 0, "perceptual"),
        ({}, 0, None),
    ],
)
def test_the_weights_say_what_they_were_trained_for_if_it_is_known(
    metadata: dict[str, str], iterations: int, expected: str | None, *, patches: Path, weights: Path, tmp_path: Path
) -> None:
    save_generator(load_generator(weights), weights, metadata=metadata)
    params = tiny(f"weights={weights}", f"iterations={iterations}")
    warm_up(patches, tmp_path / "out", tmp_path / "checkpoints", params=params, track=ignore)
    assert objective_in(tmp_path / "out") == expected


def test_a_known_start_is_of_the_kind_in_its_registry(
    patches: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert KNOWN["realsr-df2k-x4"].objective == "perceptual"
    assert all(KNOWN[name].objective for name in GENERATORS)
    monkeypatch.setattr("components.warmup.step.weights_file", lambda _: weights)
    params = tiny("weights=realsr-df2k-x4", "iterations=0")
    warm_up(patches, tmp_path / "out", tmp_path / "checkpoints", params=params, track=ignore)
    assert objective_in(tmp_path / "out") == "perceptual"
    shipped = ROOT / "data/pretrained/realsr-df2k-x4/discriminator.safetensors"
    assert (tmp_path / "out" / shipped.name).read_bytes() == shipped.read_bytes()


@pytest.mark.parametrize("iterations", [0, 2])
def test_weights_that_are_taken_as_they_are_keep_the_discriminator_beside_them(
    iterations: int, patches: Path, weights: Path, tmp_path: Path
) -> None:
    beside = weights.with_name("discriminator.safetensors")
    beside.write_bytes(b"of the discriminator")
    params = tiny(f"weights={weights}", f"iterations={iterations}")
    warm_up(patches, tmp_path / "out", tmp_path / "checkpoints", params=params, track=ignore)
    kept = tmp_path / "out" / beside.name
    # After a warm-up the generator is another one, which this discriminator never saw.
    assert (kept.read_bytes() if kept.exists() else None) == (None if iterations else b"of the discriminator")
