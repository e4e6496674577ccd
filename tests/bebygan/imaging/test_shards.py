import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bebygan import SCALE
from bebygan.errors import DataError
from bebygan.files import json_digest, sha256_of
from bebygan.imaging.shards import PhotographPair, read_patches, write_shards

Image = npt.NDArray[np.uint8]


def photograph(seed: int, height: int, width: int, split: str = "train") -> PhotographPair:
    random = np.random.default_rng(seed)
    hr = random.integers(0, 256, (height, width, 3), np.uint8)
    lr = random.integers(0, 256, (height // SCALE, width // SCALE, 3), np.uint8)
    return PhotographPair(hr, lr, split, np.array([(0, 0), (height - 48, width - 48)]))


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    photographs = [photograph(1, 64, 96), photograph(2, 96, 64, "validation"), photograph(3, 128, 64)]
    write_shards(tmp_path, photographs, 48, 30_000, {"data_version": "v"})
    return tmp_path


def test_pixels_come_back_as_they_were_stored(patches: Path) -> None:
    opened = read_patches(patches, "train")

    for number, (seed, height, width) in enumerate([(1, 64, 96), (2, 96, 64), (3, 128, 64)]):
        stored = photograph(seed, height, width)
        np.testing.assert_array_equal(opened.hr[number], stored.hr)
        np.testing.assert_array_equal(opened.lr[number], stored.lr)


def test_memory_does_not_depend_on_the_size_of_a_shard(tmp_path: Path) -> None:
    """300 photographs in one shard of 512 MB took 869 MB."""
    one = photograph(0, 400, 400)
    tracemalloc.start()
    try:
        write_shards(tmp_path, (photograph(seed, 400, 400) for seed in range(40)), 48, 2**29, {})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(list(tmp_path.glob("shard-*.npy"))) == 1
    # Making the photographs of this test takes some, too.
    assert peak < 12 * (one.hr.size + one.lr.size)


def test_each_split_sees_its_own_windows(patches: Path) -> None:
    assert [int(window["photograph"]) for window in read_patches(patches, "train").windows] == [0, 0, 2, 2]
    assert [int(window["photograph"]) for window in read_patches(patches, "validation").windows] == [1, 1]


def test_a_shard_is_closed_before_it_grows_too_large(patches: Path) -> None:
    assert len(list(patches.glob("shard-*.npy"))) == 3
    assert all(path.stat().st_size < 30_000 for path in patches.glob("shard-*.npy"))


def test_pixels_stay_on_disk(patches: Path) -> None:
    assert all(isinstance(view.base, np.memmap) for view in read_patches(patches, "train").hr)


def test_the_same_photographs_give_the_same_bytes(patches: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    again = tmp_path_factory.mktemp("again")
    photographs = [photograph(1, 64, 96), photograph(2, 96, 64, "validation"), photograph(3, 128, 64)]
    write_shards(again, photographs, 48, 30_000, {"data_version": "v"})

    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in patches.iterdir()
    }


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(12, 40), st.integers(12, 40)), min_size=1, max_size=6), st.integers(1, 50_000))
def test_any_sizes_round_trip_through_any_shard_size(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int]], shard_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("patches")
    stored = [photograph(seed, 4 * height, 4 * width) for seed, (height, width) in enumerate(sizes)]

    def one_at_a_time() -> Iterator[PhotographPair]:
        yield from stored

    counts = write_shards(folder, one_at_a_time(), 48, shard_bytes, {})
    opened = read_patches(folder, "train")

    assert counts == {"train": 2 * len(sizes), "validation": 0}
    assert all(np.array_equal(view, one.hr) for view, one in zip(opened.hr, stored, strict=True))
    assert all(np.array_equal(view, one.lr) for view, one in zip(opened.lr, stored, strict=True))


def test_a_damaged_shard_is_refused(patches: Path) -> None:
    shard = patches / "shard-000.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)

    with pytest.raises(DataError, match=r"shard-000\.npy is damaged"):
        read_patches(patches, "train")


def test_a_missing_shard_is_refused_by_name(patches: Path) -> None:
    (patches / "shard-001.npy").unlink()

    with pytest.raises(DataError, match=r"shard-001\.npy is missing"):
        read_patches(patches, "train")


def test_a_folder_without_patches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"patches\.json is missing"):
        read_patches(tmp_path, "train")


@pytest.mark.parametrize(("name", "value", "words"), [("scale", 2, "scale 2"), ("format", 99, "format 99")])
def test_patches_of_another_scale_or_format_are_refused(patches: Path, name: str, value: int, words: str) -> None:
    about = json.loads((patches / "patches.json").read_text())
    (patches / "patches.json").write_text(json.dumps(about | {name: value}))

    with pytest.raises(DataError, match=words):
        read_patches(patches, "train")


def test_a_cut_off_index_is_refused(patches: Path) -> None:
    (patches / "patches.json").write_text((patches / "patches.json").read_text()[:40])

    with pytest.raises(DataError, match="no readable patches"):
        read_patches(patches, "train")


def test_a_changed_value_in_patches_json_is_found(patches: Path) -> None:
    path = patches / "patches.json"
    text = path.read_text()
    for changed in (text.replace('"size": 48', '"size": 32'), text.replace('"digest"', '"digesu"')):
        assert changed != text
        path.write_text(changed)
        with pytest.raises(DataError, match=r"patches\.json is damaged .*: make them again"):
            read_patches(patches, "train")


def test_patches_of_the_first_format_have_no_digest_and_are_read(patches: Path) -> None:
    about = json.loads((patches / "patches.json").read_text())
    del about["digest"]
    (patches / "patches.json").write_text(json.dumps(about | {"format": 1}))
    assert len(read_patches(patches, "train"))


def replaced(patches: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change a file, and its checksum along with it: as who made the patches wrongly would have."""
    np.save(patches / name, change(np.load(patches / name)))
    about = json.loads((patches / "patches.json").read_text())
    about["sha256"][name] = sha256_of(patches / name)
    del about["digest"]
    (patches / "patches.json").write_text(json.dumps(about | {"digest": json_digest(about)}))


def test_a_shard_of_floats_which_might_hold_nan_is_refused(patches: Path) -> None:
    replaced(patches, "shard-000.npy", lambda pixels: np.where(pixels == 0, np.nan, pixels / 255).astype(np.float32))

    with pytest.raises(DataError, match=r"shard-000\.npy holds float32 and not bytes: make the patches again"):
        read_patches(patches, "train")


def test_a_shard_that_lacks_pixels_or_holds_lr_of_another_scale_is_refused(patches: Path) -> None:
    replaced(patches, "shard-001.npy", lambda pixels: pixels[: len(pixels) // 2])

    with pytest.raises(DataError, match=r"shard-001\.npy does not hold a photograph of \d+ x \d+ and its LR at 1/4"):
        read_patches(patches, "train")


def test_a_photograph_in_a_shard_that_is_not_there_is_refused(patches: Path) -> None:
    def elsewhere(table: np.ndarray) -> np.ndarray:
        table["shard"][0] = 9
        return table

    replaced(patches, "photographs.npy", elsewhere)

    with pytest.raises(DataError, match=r"shard-009\.npy does not hold"):
        read_patches(patches, "train")
