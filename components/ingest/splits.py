"""The split of a photograph, and photographs of two splits that show the same scene."""

from typing import Literal

import numpy as np
import numpy.typing as npt

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("test", "validation", "train")
"""By priority: of near duplicates in two splits, the one in the earlier split stays."""

Hashes = npt.NDArray[np.uint64]
_PAIRS_AT_ONCE = 2**22


def split_of(sha256: str, validation_share: float, test_share: float) -> Split:
    """Return the split of a photograph. It depends on the photograph's bytes alone and never changes.

    Args:
        sha256: hexadecimal; its first 8 bytes, as a fraction of 2^64, are the photograph's place in [0, 1].
        validation_share: share of the places, after those of test.
        test_share: share of the places, from 0 on.
    """
    place = int(sha256[:16], 16) / 2**64
    if place < test_share:
        return "test"
    return "validation" if place < test_share + validation_share else "train"


def nearest(hashes: Hashes, others: Hashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find for each 64-bit perceptual hash the nearest of the others.

    Args:
        hashes: (N,).
        others: (M,), M at least 1.

    Returns:
        Two arrays (N,): the index in `others` (the first of equally near ones), and the bits that differ.
    """
    index = np.empty(len(hashes), np.int64)
    distance = np.empty(len(hashes), np.int64)
    rows = max(1, _PAIRS_AT_ONCE // len(others))
    for start in range(0, len(hashes), rows):
        block = slice(start, start + rows)
        bits = np.bitwise_count(hashes[block, None] ^ others)
        index[block] = bits.argmin(1)
        distance[block] = bits.min(1)
    return index, distance


def near_duplicates(hashes: Hashes, splits: npt.NDArray[np.str_], bits: int) -> dict[int, int]:
    """Find the photographs to leave out because one in an earlier split of SPLITS shows the same scene.

    A photograph that is left out does not cause others to be left out.

    Args:
        hashes: (N,), 64-bit perceptual hashes.
        splits: (N,), the split of each.
        bits: hashes that differ in at most so many bits show the same scene.

    Returns:
        For the index of each photograph to leave out, the index of the nearest one that stays.
    """
    found: dict[int, int] = {}
    kept = np.flatnonzero(splits == SPLITS[0])
    for side in SPLITS[1:]:
        here = np.flatnonzero(splits == side)
        if len(kept) and len(here):
            index, distance = nearest(hashes[here], hashes[kept])
            near = distance <= bits
            found.update(zip(here[near].tolist(), kept[index[near]].tolist(), strict=True))
            here = here[~near]
        kept = np.concatenate((kept, here))
    return found
