import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bebygan.errors import DataError, StorageError
from bebygan.imaging.bicubic_uint8 import downscale_uint8
from bebygan.imaging.shards import read_patches
from bebygan.imaging.texture import local_deviation
from components.artifacts import read_patchless, write_quarantine
from components.config import PatchesParams, from_yaml
from components.patches.step import cropped_to_scale, make_patches, textured_windows
from components.stores.data_version import data_version
from components.stores.dataset import read_photograph

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "resizer_uint8_x4.npz"
PARAMS = PatchesParams(
    size=48, step=24, texture_kernel=11, texture_threshold=0.025, minimum_texture=0.1, shard_megabytes=64
)
Pixels = np.ndarray


@dataclass(frozen=True)
class Entry:
    """A photograph of a dataset."""

    pixels: Pixels
    split: str = "train"


def noise(seed: int, height: int, width: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def flat(height: int, width: int) -> Pixels:
    return np.full((height, width, 3), 90, np.uint8)


def write_dataset(folder: Path, entries: Sequence[Entry]) -> Path:
    """Write a dataset with the columns that the step reads."""
    (folder / "photographs").mkdir(parents=True)
    rows = []
    for entry in entries:
        temporary = folder / "photographs" / "new.png"
        Image.fromarray(entry.pixels).save(temporary)
        digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
        file = f"photographs/{digest}.png"
        temporary.rename(folder / file)
        rows.append({"sha256": digest, "source": f"{len(rows)}.png", "file": file, "split": entry.split})
    pd.DataFrame(rows).to_parquet(folder / "manifest.parquet")
    write_quarantine(folder, [])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def changed(**values: object) -> PatchesParams:
    return replace(PARAMS, **values)


lengths = st.integers(12, 60).map(lambda quarter: 4 * quarter)


@given(height=lengths, width=lengths, size=st.integers(12, 20), step=st.integers(1, 25))
@settings(deadline=None, max_examples=50)
def test_the_grid_of_windows_covers_all_pixels(height: int, width: int, size: int, step: int) -> None:
    params = changed(size=4 * size, step=4 * step, minimum_texture=0.0)
    windows = textured_windows(flat(height, width), params)
    if min(height, width) < params.size:
        assert windows.shape == (0, 2)
        return
    assert len({tuple(window) for window in windows}) == len(windows)
    for axis, length in enumerate((height, width)):
        starts = np.unique(windows[:, axis])
        last = length - params.size
        assert list(starts) == sorted({*range(0, last + 1, params.step), last})
        assert not (starts % 4).any()
    assert len(windows) == len(np.unique(windows[:, 0])) * len(np.unique(windows[:, 1]))


@pytest.mark.parametrize(
    ("length", "starts"),
    [(48, [0]), (52, [0, 4]), (72, [0, 24]), (76, [0, 24, 28]), (96, [0, 24, 48]), (116, [0, 24, 48, 68])],
)
def test_the_last_window_is_flush_with_the_end(length: int, starts: list[int]) -> None:
    windows = textured_windows(noise(0, 48, length), PARAMS)
    assert windows.tolist() == [[0, left] for left in starts]


@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1), kernel=st.sampled_from([3, 11, 31]))
@settings(deadline=None, max_examples=30)
def test_windows_with_enough_textured_pixels_are_kept(seed: int, share: float, kernel: int) -> None:
    random = np.random.default_rng(seed)
    image = np.where(random.random((96, 112, 1)) * np.linspace(0, 1, 112)[:, None] > 0.45, noise(seed, 96, 112), 90)
    image = image.astype(np.uint8)
    params = changed(minimum_texture=share, texture_kernel=kernel)
    textured = local_deviation(image, kernel) >= params.texture_threshold
    expected = [
        [top, left]
        for top in (0, 24, 48)
        for left in (0, 24, 48, 64)
        if np.count_nonzero(textured[top : top + 48, left : left + 48]) >= share * 48 * 48
    ]
    assert textured_windows(image, params).tolist() == expected


def test_flat_windows_are_omitted_and_textured_neighbours_are_kept() -> None:
    image = flat(48, 192)
    image[:, :40] = noise(1, 48, 40)
    assert textured_windows(image, PARAMS).tolist() == [[0, 0], [0, 24]]


def test_a_flat_photograph_is_not_stored(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", [Entry(noise(1, 48, 48)), Entry(flat(480, 480))])
    assert make_patches(dataset, tmp_path / "patches", PARAMS) == {"train": 1, "validation": 0}
    assert [photograph.shape for photograph in read_patches(tmp_path / "patches", "train").hr] == [(48, 48, 3)]


def test_only_training_and_validation_photographs_become_patches(tmp_path: Path) -> None:
    entries = [Entry(noise(seed, 48, 72), split) for seed, split in enumerate(("test", "train", "validation", "test"))]
    dataset = write_dataset(tmp_path / "dataset", entries)
    assert make_patches(dataset, tmp_path / "patches", PARAMS) == {"train": 2, "validation": 2}
    for split, expected in (("train", entries[1]), ("validation", entries[2])):
        opened = read_patches(tmp_path / "patches", split)
        [number] = {int(window["photograph"]) for window in opened.windows}
        np.testing.assert_array_equal(opened.hr[number], expected.pixels)
        assert len(opened.hr) == 2


def test_lr_is_the_downscale_of_the_whole_photograph(tmp_path: Path) -> None:
    image = noise(5, 120, 144)
    make_patches(write_dataset(tmp_path / "dataset", [Entry(image)]), tmp_path / "patches", PARAMS)
    opened = read_patches(tmp_path / "patches", "train")
    whole = downscale_uint8(image, 4)
    np.testing.assert_array_equal(opened.lr[0], whole)
    # The downscale of a single patch would mirror pixels at its border instead of using those beyond it.
    assert not np.array_equal(downscale_uint8(image[24:72, 24:72], 4), whole[6:18, 6:18])


def test_lr_agrees_with_the_official_one_up_to_matlabs_second_rounding(tmp_path: Path) -> None:
    with np.load(GOLDEN) as official:
        hr, lr = (official[name][0].transpose(1, 2, 0) for name in "xy")
    make_patches(write_dataset(tmp_path / "dataset", [Entry(np.ascontiguousarray(hr))]), tmp_path / "patches", PARAMS)
    found = read_patches(tmp_path / "patches", "train").lr[0]
    assert np.abs(found.astype(int) - lr).max() <= 1
    assert np.mean(found == lr) > 0.8


def test_odd_sides_are_cut_to_multiples_of_the_scale(tmp_path: Path) -> None:
    image = noise(6, 51, 74)
    dataset = write_dataset(tmp_path / "dataset", [Entry(image)])
    make_patches(dataset, tmp_path / "patches", PARAMS)
    opened = read_patches(tmp_path / "patches", "train")
    np.testing.assert_array_equal(opened.hr[0], image[:48, :72])
    np.testing.assert_array_equal(opened.lr[0], downscale_uint8(image[:48, :72], 4))
    [path] = (dataset / "photographs").iterdir()
    np.testing.assert_array_equal(cropped_to_scale(read_photograph(path)), image[:48, :72])


@pytest.mark.parametrize("shape", [(47, 200), (200, 44), (20, 20), (4, 300)])
def test_a_photograph_smaller_than_a_patch_is_omitted(shape: tuple[int, int], tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", [Entry(noise(1, *shape)), Entry(noise(2, 48, 48))])
    assert make_patches(dataset, tmp_path / "patches", PARAMS) == {"train": 1, "validation": 0}


def test_the_same_dataset_gives_the_same_bytes(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", [Entry(noise(seed, 60, 100)) for seed in range(3)])
    make_patches(dataset, tmp_path / "one", PARAMS)
    make_patches(dataset, tmp_path / "two", PARAMS)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_patches_record_data_version_and_parameters(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", [Entry(noise(1, 48, 48))])
    make_patches(dataset, tmp_path / "patches", PARAMS)
    about = json.loads((tmp_path / "patches" / "patches.json").read_text())
    assert about["made_from"]["data_version"] == data_version(dataset)
    assert from_yaml(PatchesParams, about["made_from"]["params"]) == PARAMS
    assert read_patches(tmp_path / "patches", "train").made_from == about["made_from"]


def test_a_new_data_version_replaces_all_old_patches(tmp_path: Path) -> None:
    old = write_dataset(tmp_path / "old", [Entry(noise(seed, 48, 400)) for seed in range(3)])
    new = write_dataset(tmp_path / "new", [Entry(noise(9, 48, 48))])
    make_patches(old, tmp_path / "patches", PARAMS)
    make_patches(new, tmp_path / "patches", PARAMS)
    make_patches(new, tmp_path / "fresh", PARAMS)
    assert contents(tmp_path / "patches") == contents(tmp_path / "fresh")


def test_a_large_dataset_is_split_into_shards(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", [Entry(noise(seed, 400, 400)) for seed in range(5)])
    make_patches(dataset, tmp_path / "patches", changed(shard_megabytes=1))
    sizes = [path.stat().st_size for path in sorted((tmp_path / "patches").glob("shard-*.npy"))]
    assert len(sizes) == 3
    assert max(sizes) < 2**20 + 128


def test_the_error_for_flat_photographs_says_what_to_do(tmp_path: Path) -> None:
    entries = [Entry(flat(96, 96)), Entry(noise(1, 96, 96), "validation"), Entry(noise(2, 96, 96), "test")]
    dataset = write_dataset(tmp_path / "dataset", entries)
    with pytest.raises(DataError, match=r"no training patch of 48 pixels in .* lower patches\.minimum_texture"):
        make_patches(dataset, tmp_path / "patches", PARAMS)
    assert {path.name for path in tmp_path.iterdir()} == {"dataset"}


def test_a_failed_run_keeps_the_earlier_patches(tmp_path: Path) -> None:
    make_patches(write_dataset(tmp_path / "good", [Entry(noise(1, 48, 48))]), tmp_path / "patches", PARAMS)
    before = contents(tmp_path / "patches")
    with pytest.raises(DataError):
        make_patches(write_dataset(tmp_path / "bad", [Entry(flat(48, 48))]), tmp_path / "patches", PARAMS)
    assert contents(tmp_path / "patches") == before
    assert {path.name for path in tmp_path.iterdir()} == {"good", "bad", "patches"}


def test_the_error_for_a_missing_dataset_names_the_step_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere holds no manifest\.parquet: run ingest first"):
        make_patches(tmp_path / "nowhere", tmp_path / "patches", PARAMS)
    assert not list(tmp_path.iterdir())


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


@pytest.mark.parametrize("spoil", [lose, cut])
def test_the_error_names_a_missing_or_damaged_photograph(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", [Entry(noise(1, 96, 96))])
    [path] = (dataset / "photographs").iterdir()
    spoil(path)
    with pytest.raises(DataError, match=rf"cannot read the photograph .*{path.name} .*: run ingest again"):
        make_patches(dataset, tmp_path / "patches", PARAMS)
    assert not (tmp_path / "patches").exists()


def test_the_error_names_a_full_disk_and_no_partial_output_remains(tmp_path: Path, small_disk: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", [Entry(noise(1, 400, 400))])
    with pytest.raises(StorageError, match=r"cannot write .*patches: the disk is full"):
        make_patches(dataset, small_disk / "patches", PARAMS)
    assert not list(small_disk.iterdir())


def command(dataset: Path, output: Path, *more: str) -> list[str]:
    tiny = [f"--set=patches.{name}={value}" for name, value in vars(PARAMS).items()]
    return [
        sys.executable, "-m", "components.patches", "--dataset", str(dataset), "--output", str(output),
        *tiny, "--set=train.crop=48", *more,
    ]  # fmt: skip


def test_a_killed_run_leaves_no_patches_and_the_next_run_succeeds(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", [Entry(noise(seed, 400, 400)) for seed in range(24)])
    arguments = command(dataset, tmp_path / "patches", "--set", "patches.shard_megabytes=1")
    process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".patches.*.part/shard-001.npy")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "patches").exists()
    subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True)
    make_patches(dataset, tmp_path / "undisturbed", changed(shard_megabytes=1))
    assert contents(tmp_path / "patches") == contents(tmp_path / "undisturbed")


def test_the_command_prints_the_number_of_patches(tmp_path: Path) -> None:
    entries = [Entry(noise(seed, 48, 72), split) for seed, split in enumerate(("train", "train", "validation"))]
    dataset = write_dataset(tmp_path / "dataset", entries)
    done = subprocess.run(command(dataset, tmp_path / "out"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'out'}: 4 train patches, 2 validation patches\n"


def test_the_command_names_photographs_without_patches_and_a_missing_validation(tmp_path: Path) -> None:
    entries = [Entry(noise(0, 48, 72)), Entry(flat(96, 96)), Entry(noise(1, 44, 44), "validation")]
    dataset = write_dataset(tmp_path / "dataset", entries)
    done = subprocess.run(command(dataset, tmp_path / "out"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{tmp_path / 'out'}: 2 train patches, 0 validation patches",
        "no patches: 2 photographs are smaller than patches.size or have too little texture",
        "  1.png",
        "  2.png",
        "no validation: none of the 1 validation photographs gives a patch, so training is not validated; add "
        "photographs, or lower patches.size or patches.minimum_texture",
    ]
    assert {split: len(names) for split, names in read_patchless(tmp_path / "out").items()} == {
        "train": 1, "validation": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "code", "message"),
    [
        ("patches.size=50", 2, r"error: parameter patches\.size must be a multiple of 4 .*"),
        ("patches.texture_kernel=10", 2, r"error: parameter patches\.texture_kernel must be odd .*"),
        ("patches.sise=48", 2, r"error: there is no parameter patches\.sise; did you mean patches\.size\?"),
        ("patches.minimum_texture=1.0", 3, r"error: no training patch of 48 pixels .*"),
    ],
)
def test_errors_print_one_line_and_set_the_exit_code(setting: str, code: int, message: str, tmp_path: Path) -> None:
    image = noise(1, 48, 48)
    image[:24] = 90
    dataset = write_dataset(tmp_path / "dataset", [Entry(image)])
    arguments = command(dataset, tmp_path / "out", "--set", setting)
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert re.fullmatch(message + "\n", done.stderr)
    assert not (tmp_path / "out").exists()


def test_the_step_does_not_import_torch() -> None:
    code = "import sys, components.patches.step; sys.exit('torch' in sys.modules)"
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, env=variables).returncode == 0


def test_a_dataset_of_another_version_than_the_one_that_the_run_ingested_is_refused(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", [Entry(noise(1, 96, 96))])
    make_patches(dataset, tmp_path / "out", PARAMS, data_version(dataset))
    message = rf"dataset is of data version {data_version(dataset)}, but this run ingested 1234\.dir: run ingest again"
    with pytest.raises(DataError, match=message):
        make_patches(dataset, tmp_path / "out", PARAMS, "1234.dir")
