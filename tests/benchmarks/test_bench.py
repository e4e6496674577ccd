import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bebygan.errors import DataError
from bebygan.losses.best_buddy import find_best_buddies
from bebygan.networks.generator import Generator
from bebygan.networks.naming import save_generator
from bebygan.networks.perceptual import Vgg
from bebygan.settings import GeneratorShape
from benchmarks import bench, cases, comparing, losses, paths, training, upscaling
from benchmarks.figures import Figure, compared, limited, no_worse, table, write_figures
from benchmarks.measuring import Measured, Outputs, Prepare, Rounds, Work, difference, in_turn

PARAMS = bench.laptop_params()
ONCE = Rounds(least=1, seconds=0)


def work(seconds: float, megabytes: int, result: float) -> Work:
    def once() -> Outputs:
        filled = torch.ones(megabytes * 250_000)
        time.sleep(seconds)
        return {"result": filled[:2].sum() + result}

    return once


def failing() -> Work:
    raise MemoryError("no more")


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "patches"
    params = replace(PARAMS.patches, size=96, step=96)
    photographs = tmp_path_factory.mktemp("photographs")
    for name in ("chelsea.png", "ATTRIBUTION.md"):
        (photographs / name).write_bytes((bench.ROOT / "data/sample" / name).read_bytes())
    comparing.write_sample(photographs, folder, params)
    return folder


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a VGG16 that has learnt nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vgg16.safetensors"
    save_file(Vgg("vgg16", "conv5_3").state_dict(), path)
    return path


@pytest.fixture
def setup(patches: Path, vgg: Path) -> training.Setup:
    return training.Setup(
        crops=comparing.Crops(patches, 48, 2),
        vgg=vgg,
        generator=GeneratorShape(blocks=1, features=4, growth=2),
        settings=replace(PARAMS.train, crop=48, batch=2, discriminator_width=4, checkpoint_every=4, log_every=2),
    )


def figure(name: str, ours: float = 1.0) -> Figure:
    return compared(name, ours, 2 * ours, "ms", 1.5)


def test_time_and_memory_are_those_of_each_way_alone() -> None:
    ways = {"small": partial(work, 0.12, 20, 1), "large": partial(work, 0.36, 100, 1)}
    found = in_turn("sleep", ways, Rounds(least=3, seconds=0))
    assert 0.12 < found["small"].seconds < 0.36 < found["large"].seconds
    # What else a process loads in the meantime, such as a library at its first use, was seen to add 40 MB.
    assert 15 < found["small"].megabytes < 80
    assert 95 < found["large"].megabytes < 165
    assert found["small"].outputs["result"] == 3


def test_rounds_go_on_for_the_seconds_asked_for() -> None:
    started = time.monotonic()
    in_turn("sleep", {"a": partial(work, 0.2, 1, 0)}, Rounds(least=1, seconds=2))
    assert time.monotonic() - started > 2


def test_what_dies_in_its_process_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="measuring worse ended with exit code 1"):
        in_turn("nothing", {"worse": failing}, ONCE)
    assert "MemoryError: no more" in capfd.readouterr().err


def test_the_difference_is_relative_and_over_all_numbers_of_an_output() -> None:
    ours = {"a": np.array([3, 4], np.float32), "b": np.array([1], np.float32)}
    reference = {"a": np.array([3, 4.5], np.float32), "b": np.array([1], np.float32)}
    found = difference(ours, reference)
    assert found["a"] == pytest.approx(0.5 / np.hypot(3, 4.5))
    assert found["b"] == 0
    with pytest.raises(ValueError, match="outputs are a here and a, b there"):
        difference({"a": ours["a"]}, reference)


@pytest.mark.parametrize("value", [1.1, float("nan")])
def test_a_wrong_result_is_refused(value: float) -> None:
    one, other = (Measured(1, 1, {"loss": np.array([number], np.float32)}) for number in (value, 1.0))
    comparing.check_equal("same", other, other, {"loss": 0})
    with pytest.raises(comparing.WrongResultError, match="the loss: loss differs by"):
        comparing.check_equal("the loss", one, other, {"loss": 0.05})


def test_another_formula_is_a_wrong_result(patches: Path) -> None:
    crops, settings = comparing.Crops(patches, 48, 2), PARAMS.train.best_buddy
    ways = {
        "ours": partial(losses.ours_best_buddy, crops, settings),
        "reference": partial(losses.plain_best_buddy, crops, replace(settings, alpha=0.0)),
    }
    found = in_turn("best-buddy", ways, ONCE)
    with pytest.raises(comparing.WrongResultError, match="best-buddy: loss differs by"):
        comparing.check_equal("best-buddy", found["ours"], found["reference"], losses.BEST_BUDDY_NOISE)


def test_a_wrong_case_has_no_figures_and_stops_no_other(tmp_path: Path) -> None:
    def wrong(*_: object) -> list[Figure]:
        raise comparing.WrongResultError("mask: differs")

    chosen: dict[str, cases.Case] = {"wrong": wrong, "right": lambda *_: [figure("right")]}
    assert bench.measure(chosen, tmp_path, tmp_path, ONCE) == ([figure("right")], ["mask: differs"])


def test_the_losses_are_measured_beside_plain_ones(patches: Path) -> None:
    crops = comparing.Crops(patches, 48, 2)
    figures = [
        *losses.best_buddy(crops, PARAMS.train.best_buddy, ONCE),
        *losses.region_mask(crops, PARAMS.train.region, ONCE),
        *losses.back_projection(crops, ONCE),
    ]
    assert [each.name for each in figures] == [
        f"{loss}, 2 x 48: {what}"
        for loss in ("best-buddy loss", "region mask", "back-projection loss")
        for what in ("time", "memory")
    ]
    for each in figures:
        assert each.reference is not None
        assert each.ratio == pytest.approx(each.reference / each.ours, rel=2e-3)


def test_upscaling_is_measured_beside_a_plain_pass(patches: Path) -> None:
    crops = comparing.Crops(patches, 96, 1)
    weights = bench.ROOT / "data" / "pretrained" / "rrdb-4x32.safetensors"
    figures = upscaling.upscaling(crops, weights, ONCE, least=2.5, tile=48)
    assert [each.name.removeprefix("upscaling, 4 blocks, 1 x 96, ") for each in figures] == [
        "bf16: time", "bf16: memory", "fp32: time", "fp32: memory", "bf16: PSNR",
    ]  # fmt: skip
    assert figures[-1].met


def test_a_training_iteration_is_measured_in_both_precisions(setup: training.Setup) -> None:
    figures = training.iteration(setup, ONCE, {"fp32": 1.4, "bf16": 2.0}, 2)
    assert [each.name.rpartition(", ")[2] for each in figures] == [
        "fp32: time",
        "fp32: memory",
        "bf16: time",
        "bf16: memory",
    ]
    assert [each.target for each in figures] == ["ratio >= 1.4", "ratio >= 2", "ratio >= 2", "ratio >= 2"]


def test_time_outside_the_step_is_a_small_share(
    setup: training.Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    (found,) = training.outside_the_step(setup, 4)
    assert 0 < found.ours < 100
    assert found.unit == "%"
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_measured_in_iterations_of_the_same_run(setup: training.Setup) -> None:
    cost, stop = training.checkpointing(setup, 2)
    assert cost.name.startswith("checkpoint, 1 x 4, 2 x 48: ")
    assert (cost.unit, cost.target) == ("% of an iteration", "ours <= 100")
    assert (stop.unit, stop.target) == ("s", "ours <= 25")
    assert 0 < stop.ours < 25


def test_the_search_is_judged_in_float64(patches: Path) -> None:
    (found,) = losses.search(comparing.Crops(patches, 48, 2), PARAMS.train.best_buddy)
    assert found.unit == f"of {2 * 16 * 16}"
    assert found.met


def test_choices_with_a_worse_score_are_counted(patches: Path) -> None:
    lr, hr = comparing.Crops(patches, 48, 2).read()
    sr = torch.nn.functional.interpolate(lr, scale_factor=4, mode="bicubic")
    index = find_best_buddies(sr, hr, PARAMS.train.best_buddy).index
    assert losses.missed(sr, hr, index, PARAMS.train.best_buddy) == 0
    index[0, :5] = (index[0, :5] + 100) % 256
    assert losses.missed(sr, hr, index, PARAMS.train.best_buddy) == 5


def test_more_samples_a_second_are_better(patches: Path) -> None:
    (found,) = training.loading(comparing.Crops(patches, 48, 2), ONCE)
    assert found.reference is not None
    assert found.ratio == pytest.approx(found.ours / found.reference, rel=2e-3)


def test_a_folder_without_photographs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    with pytest.raises(DataError, match="holds no photograph of 256 pixels or more"):
        comparing.write_sample(tmp_path / "photographs", tmp_path / "patches", PARAMS.patches)


def test_marks_are_met_or_not() -> None:
    assert compared("a", 1, 1.5, "ms", 1.5).met is True
    assert compared("a", 1, 1.4, "ms", 1.5).met is False
    assert compared("a", 1, 1.4, "ms", None).met is None
    assert limited("a", 3.1, "%", 3).met is False
    assert limited("a", 2.9, "%", 3).met is True
    assert no_worse("a", 0, 0, "of 9").met is True
    assert no_worse("a", 2, 1, "of 9").met is False


def test_figures_of_other_names_survive_and_those_of_the_same_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_figures(path, [figure("a"), figure("b")])
    write_figures(path, [figure("b", 5.0), figure("c")])
    assert json.loads(path.read_text()) == [asdict(each) for each in (figure("a"), figure("b", 5.0), figure("c"))]


def test_the_file_is_a_list_of_objects_with_the_agreed_names(tmp_path: Path) -> None:
    write_figures(tmp_path / "results.json", [figure("a"), limited("b", 2, "%", 3)])
    for each in json.loads((tmp_path / "results.json").read_text()):
        assert list(each) == ["name", "ours", "reference", "ratio", "unit", "target", "met"]


@pytest.mark.parametrize("content", ["{", '{"name": 1}', '[{"name": "a"}]', "[1]"])
def test_another_file_is_not_overwritten(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"results\.json"):
        write_figures(path, [figure("a")])
    assert path.read_text() == content


def test_the_published_figures_are_readable() -> None:
    figures = [Figure(**each) for each in json.loads((bench.ROOT / "benchmarks/results.json").read_text())]
    assert figures
    assert len({each.name for each in figures}) == len(figures)


def test_the_table_says_what_was_missed() -> None:
    lines = table([figure("a long name"), limited("b", 4, "%", 3)]).splitlines()
    assert lines[0].split() == ["figure", "ours", "reference", "unit", "ratio", "target", "met"]
    assert lines[1].split() == ["a", "long", "name", "1", "2", "ms", "2", "ratio", ">=", "1.5", "yes"]
    assert lines[2].split()[-1] == "NO"


def test_a_quick_run_of_one_case_prints_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def cheap(_: Path, __: Path, rounds: Rounds) -> list[Figure]:
        assert rounds == bench.QUICK
        return [figure("cheap")]

    def dear(*_: object) -> list[Figure]:
        raise AssertionError("not asked for")

    monkeypatch.setattr(bench, "cases", lambda _: {"cheap": cheap, "dear": dear})
    monkeypatch.setattr(bench, "weights_file", lambda _: tmp_path / "none")
    monkeypatch.setattr(bench, "write_sample", lambda *_: None)
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results.json")
    assert bench.main(["--quick", "--only", "cheap"]) == 0
    assert "cheap" in capsys.readouterr().out
    assert not bench.RESULTS.exists()
    monkeypatch.setattr(bench, "QUICK", bench.CAREFUL)
    assert bench.main(["--only", "cheap"]) == 0
    assert [each["name"] for each in json.loads(bench.RESULTS.read_text())] == ["cheap"]


def test_a_wrong_result_ends_with_exit_code_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def wrong(*_: object) -> list[Figure]:
        raise comparing.WrongResultError("mask: differs")

    monkeypatch.setattr(bench, "cases", lambda _: {"wrong": wrong})
    monkeypatch.setattr(bench, "weights_file", lambda _: tmp_path / "none")
    monkeypatch.setattr(bench, "write_sample", lambda *_: None)
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results.json")
    assert bench.main([]) == 1
    assert "error: mask: differs" in capsys.readouterr().err


def here(_: str, ways: Mapping[str, Prepare], __: Rounds) -> dict[str, Measured]:
    """Do each once, in this process, instead of measuring."""
    outputs = {name: prepare()() for name, prepare in ways.items()}
    arrays = {
        name: {key: value.float().flatten().numpy() for key, value in each.items()} for name, each in outputs.items()
    }
    return {name: Measured(1.0, 1.0, each) for name, each in arrays.items()}


def test_tiles_photographs_and_ways_of_this_processor_are_compared(
    patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops, weights = comparing.Crops(patches, 96, 1), tmp_path / "weights.safetensors"
    save_generator(Generator(GeneratorShape(blocks=1, features=4, growth=2)), weights)
    for module in (upscaling, paths):
        monkeypatch.setattr(module, "in_turn", here)
    # Compiling takes a minute.
    monkeypatch.setattr(paths, "_COMPILED", ())
    found = upscaling.tiling(crops, weights, ONCE, side=200, tile=100)
    assert [figure.target for figure in found] == ["ratio >= 0.909091", "ratio >= 4", "ratio >= 1", None, "ratio >= 1"]
    read = upscaling.read_picture
    # Longer than the network on a busy machine; the time of the network alone must not contain it.
    monkeypatch.setattr(upscaling, "read_picture", lambda source: [time.sleep(5), read(source)][1])
    seconds, memory = upscaling.photograph(crops, weights, height=150, width=200, ending=".png")
    assert seconds.reference is not None
    assert 0 < seconds.reference < seconds.ours
    assert memory.target == "ours <= 1000"
    names = [figure.name for figure in paths.paths(crops, weights, ONCE)]
    for way in ("fp32, channels_last", "bf16, channels_last", "onnxruntime fp32", "onnxruntime int8"):
        assert sum(f"1 blocks, {crops}, {way}: " in name for name in names) == 3
