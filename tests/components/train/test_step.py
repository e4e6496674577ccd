import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bebygan.errors import DataError, Preempted, StorageError, WeightsError
from bebygan.files import sha256_of
from bebygan.imaging import Image
from bebygan.imaging.shards import PhotographPair, read_patches, write_shards
from bebygan.networks.auto_encoder import AutoEncoder
from bebygan.networks.discriminator import Discriminator
from bebygan.networks.dists import DistsWeights
from bebygan.networks.generator import Generator
from bebygan.networks.naming import load_generator
from bebygan.networks.perceptual import Vgg
from bebygan.networks.weights import metadata_of
from bebygan.settings import GanSettings
from components.config import load_params, to_yaml
from components.tracking.client import mlflow_client
from components.train import step
from components.train.__main__ import main
from components.train.step import continued_discriminator, prepared, train
from tests.components.trained import contents, history, ignore

ROOT = Path(__file__).parents[3]
TINY = (
    "train.losses.perceptual=0",
    "train.discriminator_width=4",
    "train.discriminator_first=0",
    "train.iterations=4",
    "train.batch=2",
    "train.crop=48",
    "train.schedule={peak: 1.0e-3, warmup: 2}",
    "train.ema_decay=0.9",
    "train.precision=fp32",
    "train.channels_last=false",
    "train.checkpoint_every=2",
    "train.log_every=1",
    "train.validate_every=0",
    "train.deliver={by: last}",
)
FILES = {
    "checksums.json",
    "generator.safetensors",
    "generator_raw.safetensors",
    "discriminator.safetensors",
    "history.jsonl",
    "start.safetensors",
}
Main = Callable[..., tuple[int, str]]


def tiny(*changes: str) -> GanSettings:
    return load_params(ROOT / "params/compact.yaml", [*TINY, *(f"train.{change}" for change in changes)]).train


@pytest.fixture
def warmup(generator_folder: Callable[..., Path]) -> Path:
    return generator_folder("warmup", 1)


@pytest.fixture
def trained(patches: Path, warmup: Path, tmp_path: Path) -> Path:
    train(patches, warmup, tmp_path / "trained", tmp_path / "trained checkpoints", params=tiny(), track=ignore)
    return tmp_path / "trained"


@pytest.fixture
def run_main(
    patches: Path,
    warmup: Path,
    mlflow_store: str,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Main:
    """Return a function that runs the command in this process and returns its exit code and standard error."""

    def run(*settings: str, patches: Path = patches, warmup: Path = warmup) -> tuple[int, str]:
        chosen = [f"--set={setting}" for setting in (*TINY, *settings)]
        places = ["--patches", str(patches), "--warmup", str(warmup), "--output", "out"]
        monkeypatch.setattr(sys, "argv", ["train", *places, "--params", str(ROOT / "params/compact.yaml"), *chosen])
        return main(), capsys.readouterr().err

    return run


def test_a_training_writes_all_its_files(trained: Path, warmup: Path) -> None:
    assert set(contents(trained)) == FILES
    Discriminator(48, 4).load_state_dict(load_file(trained / "discriminator.safetensors"))
    start, average, last = (
        load_generator(path).state_dict()["conv_last.weight"]
        for path in (warmup / "generator.safetensors", trained / "generator.safetensors",
                     trained / "generator_raw.safetensors")
    )  # fmt: skip
    assert 0 < (average - start).abs().max() < (last - start).abs().max()


def test_a_training_continues_with_the_discriminator_beside_the_generator(trained: Path) -> None:
    state, _ = prepared(trained / "generator.safetensors", tiny())
    assert state.discriminator is not None
    expected = load_file(trained / "discriminator.safetensors")
    assert all(expected[name].equal(value) for name, value in state.discriminator.state_dict().items())
    for network in (state.generator, state.average):
        assert network.conv_last.weight.equal(load_generator(trained / "generator.safetensors").conv_last.weight)


def test_the_digest_of_the_discriminator_is_part_of_what_a_training_started_from(
    patches: Path, trained: Path, tmp_path: Path
) -> None:
    train(patches, trained, tmp_path / "next", tmp_path / "checkpoints", params=tiny("iterations=1"), track=ignore)
    metadata = metadata_of(tmp_path / "next" / "generator.safetensors")
    assert metadata["start"] == sha256_of(trained / "generator.safetensors")
    assert metadata["start_discriminator"] == sha256_of(trained / "discriminator.safetensors")


def test_a_discriminator_of_another_shape_is_refused_with_what_to_set(trained: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"has shape .*, the network has .*set train\.crop and train\.discriminator_w"
    ):
        prepared(trained / "generator.safetensors", tiny("discriminator_width=8"))
    assert prepared(trained / "generator.safetensors", tiny("losses.adversarial=0"))[0].discriminator is None


def test_the_discriminator_of_known_weights_is_left_out_where_it_does_not_fit(
    patches: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step, "name_of", lambda _: "known")
    assert continued_discriminator(trained / "generator.safetensors", tiny()) == trained / "discriminator.safetensors"
    train(
        patches, trained, tmp_path / "out", tmp_path / "checkpoints",
        params=tiny("iterations=1", "discriminator_width=8"), track=ignore,
    )  # fmt: skip
    assert "train: the discriminator that comes with the start judges other crops" in capsys.readouterr().err
    assert "start_discriminator" not in metadata_of(tmp_path / "out" / "generator.safetensors")


def test_every_loss_is_logged_and_in_the_history(patches: Path, warmup: Path, tmp_path: Path) -> None:
    logged: list[tuple[int, Mapping[str, float]]] = []
    train(
        patches, warmup, tmp_path / "out", tmp_path / "checkpoints", params=tiny(),
        track=lambda *each: logged.append(each),
    )  # fmt: skip
    assert [iteration for iteration, _ in logged] == [1, 2, 3, 4]
    losses = {"best_buddy", "back_projection", "adversarial", "discriminator", "total"}
    assert losses | {"learning_rate", "textured_share"} <= logged[0][1].keys()
    assert "perceptual" not in logged[0][1]
    for entry, (_, values) in zip(history(tmp_path / "out"), logged, strict=True):
        # Speed is printed, but is not in the history: it differs between runs.
        assert values.keys() - entry.keys() == {"samples_per_second", "data_wait_share"}
        assert entry == {name: values[name] for name in entry}


@pytest.mark.parametrize(("capabilities", "told"), [({"avx2": True}, True), ({"avx512_bf16": True}, False)])
def test_a_processor_without_bfloat16_is_told_how_to_train_for_a_shorter_time(  # noqa: PLR0917
    capabilities: dict[str, bool], told: bool, patches: Path, warmup: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    params = tiny("precision=auto", "iterations=1")
    train(patches, warmup, tmp_path / "out", tmp_path / "checkpoints", params=params, track=lambda *_: None)
    assert ("does not compute bfloat16" in capsys.readouterr().err) is told


def test_later_losses_are_logged_where_they_have_a_weight(
    patches: Path, warmup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"vgg16": Vgg("vgg16", "conv5_3"), "dists": DistsWeights(), "auto-encoder-4x32": AutoEncoder()}
    for name, network in files.items():
        save_file(network.state_dict(), tmp_path / f"{name}.safetensors")
    monkeypatch.setattr("components.train.step.weights_file", lambda name: tmp_path / f"{name}.safetensors")
    params = tiny(
        "losses.locally_discriminative=1", "losses.dists=0.1", "losses.auto_encoded=1", "losses.l1=0.01", "iterations=1"
    )
    train(patches, warmup, tmp_path / "out", tmp_path / "checkpoints", params=params, track=ignore)
    logged = history(tmp_path / "out")[0].keys()
    assert logged >= {"best_buddy", "l1", "locally_discriminative", "dists", "auto_encoded"}


def test_pictures_show_the_same_patches_throughout_training(patches: Path, warmup: Path, tmp_path: Path) -> None:
    pictures: dict[int, Image] = {}

    def track(iteration: int, logged: Mapping[str, float | Image]) -> None:
        if "samples" in logged:
            pictures[iteration] = np.asarray(logged["samples"])

    place = tmp_path / "checkpoints"
    train(patches, warmup, tmp_path / "out", place, params=tiny("picture_every=2"), track=track)
    assert list(pictures) == [2, 4]
    first, second = pictures.values()
    # LR, SR, HR, mask and map of levels of three patches of 48 pixels, 4 apart.
    assert first.shape == second.shape == (152, 256, 3)
    same = (first == second).all(2).all(0).reshape(-1)
    lr, sr, hr = same[:48], same[52:100], same[104:152]
    assert lr.all()
    assert hr.all()
    assert not sr.all()


def test_the_weights_have_their_origin_as_metadata(trained: Path, warmup: Path, patches: Path) -> None:
    for name in ("generator", "generator_raw"):
        with safe_open(trained / f"{name}.safetensors", "numpy") as file:
            about = file.metadata()
        assert about["start"] == sha256_of(warmup / "generator.safetensors")
        assert about["patches"] == sha256_of(patches / "patches.json")
        assert about["seed"] == "1"


def test_the_same_seed_gives_the_same_bytes_and_another_seed_different_ones(
    trained: Path, patches: Path, warmup: Path, tmp_path: Path
) -> None:
    for name, change in (("again", "seed=1"), ("other", "seed=2")):
        train(patches, warmup, tmp_path / name, tmp_path / f"{name} checkpoints", params=tiny(change), track=ignore)
    assert contents(tmp_path / "again") == contents(trained)
    other = contents(tmp_path / "other")
    assert other.pop("start.safetensors") == contents(trained)["start.safetensors"]
    assert not [name for name, content in contents(trained).items() if other.get(name) == content]


def stop_at(last: int) -> Callable[[int, Mapping[str, float]], None]:
    def track(iteration: int, _: Mapping[str, float]) -> None:
        if iteration == last:
            os.kill(os.getpid(), signal.SIGTERM)

    return track


def test_the_average_with_the_best_lpips_is_delivered_also_after_a_stop(
    patches: Path, warmup: Path, tmp_path: Path
) -> None:
    params = tiny("validate_every=1", "deliver={by: validation.lpips, lr_psnr_floor: null}", "schedule.peak=0.02")
    for name, stopped_after in (("whole", None), ("resumed", 3)):
        folders = patches, warmup, tmp_path / name, tmp_path / f"{name} checkpoints"
        if stopped_after:
            with pytest.raises(Preempted):
                train(*folders, params=params, track=stop_at(stopped_after))
        train(*folders, params=params, track=ignore)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")
    measured = {
        entry["iteration"]: entry["validation.lpips"]
        for entry in history(tmp_path / "whole")
        if "validation.lpips" in entry
    }
    assert list(measured) == [0, 1, 2, 3, 4]
    best = min((iteration for iteration in measured if iteration), key=lambda iteration: measured[iteration])
    assert history(tmp_path / "whole")[-1]["delivered"] == best < 4
    for name, iteration in (("generator", best), ("generator_raw", 4)):
        with safe_open(tmp_path / "whole" / f"{name}.safetensors", "numpy") as file:
            assert file.metadata()["iteration"] == str(iteration)


def test_a_validation_split_without_patches_exits_with_the_code_of_data(run_main: Main, patches: Path) -> None:
    small = read_patches(patches, "train")
    alone = patches.parent / "alone"
    alone.mkdir()
    write_shards(alone, [PhotographPair(small.hr[0], small.lr[0], "train", np.array([(0, 0)]))], 48, 10**9,
                 small.made_from)  # fmt: skip
    code, error = run_main("train.validate_every=2", patches=alone)
    assert code == 3
    assert re.fullmatch(r"error: there are no patches to validate on, .* raise ingest\.validation_share, .*\n", error)


def test_a_finished_training_is_not_repeated(trained: Path, patches: Path, warmup: Path, tmp_path: Path) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    train(patches, warmup, tmp_path / "again", tmp_path / "trained checkpoints", params=tiny(), track=never)
    assert contents(tmp_path / "again") == contents(trained)


def test_without_adversarial_loss_there_is_no_discriminator_and_any_crop_is_valid(
    patches: Path, warmup: Path, tmp_path: Path
) -> None:
    small = read_patches(patches, "train")
    large = tmp_path / "large"
    large.mkdir()
    write_shards(large, [PhotographPair(small.hr[0], small.lr[0], "train", np.array([(0, 0)]))], 52, 10**9,
                 small.made_from)  # fmt: skip
    params = tiny("losses.adversarial=0", "crop=52", "iterations=1")
    train(large, warmup, tmp_path / "out", tmp_path / "checkpoints", params=params, track=ignore)
    assert set(contents(tmp_path / "out")) == FILES - {"discriminator.safetensors"}
    assert not {"adversarial", "discriminator"} & history(tmp_path / "out")[0].keys()


def test_a_full_disk_raises_an_error_and_leaves_no_partial_output(
    patches: Path, warmup: Path, tmp_path: Path, small_disk: Path
) -> None:
    params = tiny("discriminator_width=16")
    with pytest.raises(StorageError, match=r"cannot write .*: the disk is full"):
        train(patches, warmup, small_disk / "out", tmp_path / "checkpoints", params=params, track=ignore)
    assert not list(small_disk.iterdir())


def test_a_full_disk_for_checkpoints_logs_a_warning_and_training_completes(
    patches: Path, warmup: Path, tmp_path: Path, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = tiny("discriminator_width=16")
    for name, place in (("out", small_disk), ("undisturbed", tmp_path / "checkpoints")):
        train(patches, warmup, tmp_path / name, place, params=params, track=ignore)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")
    assert not [path for path in small_disk.rglob("*") if path.is_file()]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [re.sub(r"/\S*", "PLACE", warning) for warning in warnings] == [
        f"warning: no checkpoint of iteration {iteration}: cannot write PLACE the disk is full; nothing was left "
        "there. Make room or choose another folder, then run again. Training continues"
        for iteration in (2, 4)
    ]


def test_a_stop_without_a_saved_checkpoint_does_not_exit_as_resumable(
    patches: Path, warmup: Path, tmp_path: Path, small_disk: Path
) -> None:
    params = tiny("discriminator_width=16")
    with pytest.raises(StorageError, match=r"cannot write .*: the disk is full"):
        train(patches, warmup, tmp_path / "out", small_disk, params=params, track=stop_at(3))
    assert StorageError.exit_code != Preempted.exit_code


@pytest.mark.usefixtures("s3_environment")
def test_a_stopped_training_resumes_in_a_new_pod_from_a_bucket(
    trained: Path, bucket: str, patches: Path, warmup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[int] = []
    out = trained.with_name("out")
    for pod in ("first", "second"):
        trained.with_name(pod).mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(trained.with_name(pod)))
        with pytest.raises(Preempted) if pod == "first" else nullcontext():
            train(
                patches, warmup, out, f"s3://{bucket}/checkpoints", params=tiny(),
                track=stop_at(3) if pod == "first" else lambda iteration, _: logged.append(iteration),
            )  # fmt: skip
    assert logged == [4]
    assert contents(out) == contents(trained)


def test_a_failed_training_keeps_the_existing_challenger(trained: Path, patches: Path, warmup: Path) -> None:
    before = contents(trained)
    diverging = tiny("schedule.peak=1e30", "skip_limit=1")
    with pytest.raises(DataError, match="diverged"):
        train(patches, warmup, trained, trained.parent / "c", params=diverging, track=ignore)
    assert contents(trained) == before


def test_missing_warm_up_weights_exit_with_the_code_of_weights(run_main: Main, tmp_path: Path) -> None:
    code, error = run_main(warmup=tmp_path / "nowhere")
    assert code == 5
    assert re.fullmatch(r"error: no weights at .*nowhere/generator\.safetensors: fetch them .*\n", error)


def test_damaged_warm_up_weights_exit_with_the_code_of_weights(run_main: Main, warmup: Path) -> None:
    path = warmup / "generator.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    code, error = run_main()
    assert code == 5
    assert re.fullmatch(r"error: .*generator\.safetensors cannot be read as weights .*\n", error)


def test_an_unavailable_perceptual_network_exits_with_the_code_of_weights(
    run_main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEBYGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BEBYGAN_WEIGHTS_SOURCES", "folder")
    monkeypatch.setenv("BEBYGAN_WEIGHTS", str(tmp_path))
    code, error = run_main("train.losses.perceptual=1")
    assert code == 5
    assert re.fullmatch(r"error: .*vgg16.*\n", error)
    assert not (tmp_path / "workspace" / "checkpoints").exists()


def test_missing_patches_exit_with_the_code_of_data(run_main: Main, tmp_path: Path) -> None:
    code, error = run_main(patches=tmp_path / "nowhere")
    assert code == 3
    assert re.fullmatch(r"error: .*nowhere holds no patches\.json: run patches first\n", error)


def test_divergence_exits_with_the_code_of_data_and_fails_the_run(run_main: Main, tmp_path: Path) -> None:
    code, error = run_main("train.schedule.peak=1e30", "train.skip_limit=1")
    assert code == 3
    assert re.fullmatch(r"error: training diverged: 2 steps in a row up to iteration 3 were not finite .*\n", error)
    assert not (tmp_path / "out").exists()
    client = mlflow_client()
    [run] = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert run.info.status == "FAILED"


def test_a_stop_request_before_the_first_iteration_exits_with_75(
    run_main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(path: Path) -> Generator:
        os.kill(os.getpid(), signal.SIGTERM)
        return load_generator(path)

    monkeypatch.setattr("components.train.step.load_generator", stop)
    before = signal.getsignal(signal.SIGTERM)
    assert run_main() == (75, "error: stopped on request; run again to continue from the last checkpoint\n")
    assert signal.getsignal(signal.SIGTERM) is before
    client = mlflow_client()
    [run] = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert run.info.status == "KILLED"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.iteratons=5", r"there is no parameter train\.iteratons; did you mean train\.iterations\?"),
        ("train.losses.best_body=1", r"there is no parameter .*; did you mean train\.losses\.best_buddy\?"),
        ("train.crop=50", r"parameter train\.crop must be a multiple of 4 .*, got 50"),
        ("train.crop=144", r"parameter train: the discriminator takes crops of .*, got 144"),
        ("train.batch=0", r"parameter train\.batch must be at least 1, got 0"),
        ("train.iterations=many", r"parameter train\.iterations: .*integer.*"),
        ("train.perceptual.network=vgg11", r"parameter train\.perceptual\.network: .*'vgg16' or 'vgg19'.*"),
        ("train.region.window=10", r"parameter train\.region\.window must be odd .*"),
        ("train.iterations", r"--set takes name=value, got 'train\.iterations'"),
    ],
)
def test_an_invalid_parameter_raises_an_error_before_training(
    setting: str, message: str, run_main: Main, tmp_path: Path
) -> None:
    code, error = run_main(setting)
    assert code == 2
    assert re.fullmatch(f"error: {message}\n", error), error
    assert not (tmp_path / "workspace").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_store")
def test_a_stopped_training_resumes_with_the_same_result(patches: Path, warmup: Path, tmp_path: Path) -> None:
    settings = [f"--set={setting}" for setting in (*TINY, "train.iterations=60")]
    places = ["--patches", str(patches), "--warmup", str(warmup), "--output", "out"]
    params = ["--params", str(ROOT / "params/compact.yaml")]
    command = [sys.executable, "-m", "components.train", *places, *params, *settings]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=variables, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "workspace" / "checkpoints").glob("train-*/*.checkpoint")):
        assert process.poll() is None
        time.sleep(0.005)
    process.terminate()
    asked = time.monotonic()
    _, error = process.communicate(timeout=120)
    assert time.monotonic() - asked < 25
    assert process.returncode == 75
    # A slow machine prints its progress first.
    stopped = re.search(
        r"^error: stopped on request after iteration (\d+); run again to continue from there\n\Z", error, re.M
    )
    assert stopped, error
    assert not (tmp_path / "out").exists()

    again = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (0, "out: challenger\n"), again.stderr
    params = load_params(ROOT / "params/compact.yaml", [*TINY, "train.iterations=60"]).train
    train(patches, warmup, tmp_path / "undisturbed", tmp_path / "other", params=params, track=ignore)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")

    client = mlflow_client()
    runs = client.search_runs(
        [each.experiment_id for each in client.search_experiments()], order_by=["attributes.start_time ASC"]
    )
    assert [run.info.status for run in runs] == ["KILLED", "FINISHED"]
    steps = [{value.step for value in client.get_metric_history(run.info.run_id, "best_buddy")} for run in runs]
    last = int(stopped[1])
    assert steps == [set(range(1, last + 1)), set(range(last + 1, 61))]
    assert runs[1].data.params["iterations"] == "60"


@pytest.mark.slow
def test_two_trainings_of_the_same_job_at_once_share_their_checkpoints_and_both_end(
    patches: Path, warmup: Path, tmp_path: Path
) -> None:
    """On a cluster a submitted run beside a scheduled one of the same job: it costs time and harms nothing."""
    params = tmp_path / "params.yaml"
    params.write_text(to_yaml(tiny("iterations=40", "checkpoint_every=1")))
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from bebygan.settings import GanSettings\n"
        "from components.config import from_yaml\n"
        "from components.train.step import train\n"
        "patches, warmup, output, checkpoints, params = map(Path, sys.argv[1:])\n"
        "group = from_yaml(GanSettings, params.read_text())\n"
        "train(patches, warmup, output, checkpoints, params=group, track=lambda *_: None)\n"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script, patches, warmup, tmp_path / name, tmp_path / "shared", params],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for process in both:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert contents(tmp_path / "one")["generator.safetensors"] == contents(tmp_path / "two")["generator.safetensors"]
