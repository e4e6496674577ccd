"""Training patches: pixels stored once, patches as windows.

A patches folder holds

- `shard-NNN.npy`: one flat uint8 array; photograph after photograph, HR pixels (H, W, 3) then LR pixels (H/4, W/4, 3);
- `photographs.npy`: one record a photograph: shard, offsets, size;
- `windows.npy`: one record a patch: photograph, top, left (HR pixels, multiples of the scale), split;
- `patches.json`: format number, scale, patch size, checksums, and what the patches were made from.

Storing overlapping windows would repeat each pixel 3.3 times on the paper's 480/240 grid. A memory map needs no
decoding, which would dominate the loading time.
"""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bebygan import SCALE
from bebygan.errors import DataError
from bebygan.files import json_digest, sha256_of
from bebygan.imaging import Image

FORMAT = 2
"""Of patches.json. Format 1 lacks the digest of patches.json itself."""
PatchSplit = Literal["train", "validation"]
PATCH_SPLITS: tuple[PatchSplit, ...] = ("train", "validation")

_PHOTOGRAPH = np.dtype([("shard", "<i4"), ("hr", "<i8"), ("lr", "<i8"), ("height", "<i4"), ("width", "<i4")])
_WINDOW = np.dtype([("photograph", "<i4"), ("top", "<i4"), ("left", "<i4"), ("split", "<i4")])


@dataclass(frozen=True, slots=True)
class PhotographPair:
    """HR and LR pixels of one photograph, and the windows of its patches."""

    hr: Image
    """(H, W, 3), H and W multiples of the scale."""
    lr: Image
    """(H / 4, W / 4, 3)."""
    split: PatchSplit

    windows: npt.NDArray[np.int64]
    """(count, 2): top and left of each patch, HR pixels."""


def _header(array: npt.NDArray[np.generic], length: int) -> bytes:
    """Return the header of an .npy file with `length` elements of an array's type; its size does not depend on them."""
    content = io.BytesIO()
    about = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(content, about | {"shape": (length,)})
    return content.getvalue()


def _save(path: Path, array: npt.NDArray[np.generic]) -> None:
    """Write what np.save writes, but raise the OSError of a full disk: numpy's own has no errno."""
    with path.open("wb") as file:
        file.write(_header(array, len(array)))
        file.write(array.view(np.uint8).data)


class _Shard:
    """An .npy file that grows by one array at a time, so that no shard is held in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.used = 0
        self._file = path.open("wb")
        self._file.write(_header(np.empty(0, np.uint8), 0))

    def append(self, pixels: Image) -> int:
        """Write the pixels and return where they begin."""
        start = self.used
        self._file.write(np.ascontiguousarray(pixels).data)
        self.used += pixels.size
        return start

    def close(self) -> str:
        """Write the length into the header; return the SHA-256 of the file."""
        with self._file as file:
            file.seek(0)
            file.write(_header(np.empty(0, np.uint8), self.used))
        return sha256_of(self.path)


def write_shards(
    folder: Path, photographs: Iterable[PhotographPair], size: int, shard_bytes: int, made_from: Mapping[str, str]
) -> dict[str, int]:
    """Write photographs and their patch windows into an empty folder.

    Args:
        folder: exists and is empty; see `bebygan.files.whole_folder`.
        photographs: read one at a time.
        size: side of an HR patch, pixels.
        shard_bytes: a shard is closed before it grows beyond this, unless one photograph alone is larger.
        made_from: identity of the source, such as its data version.

    Returns:
        Patches per split.
    """
    records: list[tuple[int, ...]] = []
    windows: list[tuple[int, ...]] = []
    checksums: dict[str, str] = {}
    shard = None

    for photograph in photographs:
        hr, lr = photograph.hr, photograph.lr
        if shard and shard.used + hr.size + lr.size > shard_bytes:
            checksums[shard.path.name], shard = shard.close(), None
        shard = shard or _Shard(folder / f"shard-{len(checksums):03d}.npy")
        split = PATCH_SPLITS.index(photograph.split)
        windows += [(len(records), top, left, split) for top, left in photograph.windows]
        records.append((len(checksums), shard.append(hr), shard.append(lr), *hr.shape[:2]))
    if shard:
        checksums[shard.path.name] = shard.close()
    for name, table in (
        ("photographs.npy", np.array(records, _PHOTOGRAPH)),
        ("windows.npy", np.array(windows, _WINDOW)),
    ):
        _save(folder / name, table)
        checksums[name] = sha256_of(folder / name)
    splits = [window[3] for window in windows]
    counts: dict[str, int] = {split: splits.count(number) for number, split in enumerate(PATCH_SPLITS)}
    about: dict[str, Any] = {
        "format": FORMAT,
        "scale": SCALE,
        "size": size,
        "patches": counts,
        "made_from": dict(made_from),
        "sha256": checksums,
    }
    about["digest"] = json_digest(about)
    (folder / "patches.json").write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")
    return counts


@dataclass(frozen=True, slots=True)
class Patches:
    """Memory-mapped patches of one split."""

    hr: list[Image]
    """One view a photograph, (H, W, 3)."""
    lr: list[Image]
    """One view a photograph, (H / 4, W / 4, 3)."""
    windows: npt.NDArray[np.void]
    size: int
    made_from: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.windows)


def _mapped(path: Path, checksum: str | None) -> npt.NDArray[Any]:
    if checksum is not None and sha256_of(path) != checksum:
        raise DataError(f"{path} is damaged (its SHA-256 is not the one in patches.json): make the patches again")
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _check(about: dict[str, Any], folder: Path) -> None:
    """Check format, scale and digest of patches.json."""
    if about["format"] not in (1, FORMAT):
        raise DataError(
            f"{folder} has patch format {about['format']}, this version reads up to {FORMAT}: make them again"
        )
    if about["scale"] != SCALE:
        raise DataError(f"{folder} was made for scale {about['scale']}, the generator's is {SCALE}: make them again")
    digest = about.pop("digest", None)
    if (digest is not None or about["format"] > 1) and digest != json_digest(about):
        raise DataError(f"{folder / 'patches.json'} is damaged (it differs from the digest in it): make them again")


def read_patches(folder: Path, split: PatchSplit, verify: bool = True) -> Patches:
    """Open the patches of a split without reading their pixels into memory.

    Args:
        folder: written by `write_shards`.
        split: train or validation.
        verify: compare each file with its checksum.

    Raises:
        DataError: a file is missing or damaged, or was made for another scale or by a newer version.
    """
    try:
        about = json.loads((folder / "patches.json").read_text())
        _check(about, folder)
        files = {name: _mapped(folder / name, sum_ if verify else None) for name, sum_ in about["sha256"].items()}
    except FileNotFoundError as error:
        raise DataError(f"{error.filename} is missing: make the patches again") from error
    except (ValueError, KeyError, EOFError) as error:
        raise DataError(f"{folder} holds no readable patches ({error}): make them again") from error
    for name, array in files.items():
        # A shard of floats could hold infinity or NaN.
        if name.startswith("shard-") and array.dtype != np.uint8:
            raise DataError(f"{folder / name} holds {array.dtype} and not bytes: make the patches again")
    hr, lr = [], []
    for record in files["photographs.npy"]:
        name = f"shard-{record['shard']:03d}.npy"
        height, width = int(record["height"]), int(record["width"])
        small = (height // SCALE, width // SCALE, 3)
        try:
            pixels = files[name]
            hr.append(pixels[record["hr"] : record["hr"] + height * width * 3].reshape(height, width, 3))
            lr.append(pixels[record["lr"] : record["lr"] + small[0] * small[1] * 3].reshape(small))
        except (ValueError, KeyError) as error:
            raise DataError(
                f"{folder / name} does not hold a photograph of {width} x {height} and its LR at 1/{SCALE} that "
                "photographs.npy names: make the patches again"
            ) from error
    table = files["windows.npy"]
    windows = table[table["split"] == PATCH_SPLITS.index(split)]
    return Patches(hr, lr, np.array(windows), about["size"], about["made_from"])
