"""Assign photographs to splits, and find near duplicates in different splits."""

import math
from collections.abc import Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("test", "validation", "train")
"""By priority: of two near duplicates, the one in the earlier split stays."""

_LIKELY = 0.95
Hashes = npt.NDArray[np.uint64]
_PAIRS_AT_ONCE = 2**22


def split_of(sha256: str, validation_share: float, test_share: float) -> Split:
    """Return the split of a photograph, which depends on its bytes alone.

    The first 8 bytes of its hexadecimal SHA-256, as a fraction of 2^64, are its place in [0, 1]. The places from 0 to
    `test_share` belong to test, the next `validation_share` to validation.
    """
    place = int(sha256[:16], 16) / 2**64
    if place < test_share:
        return "test"
    return "validation" if place < test_share + validation_share else "train"


def shares_of(validation_share: float, test_share: float) -> dict[Split, float]:
    """Return the expected share of each split."""
    return {"test": test_share, "validation": validation_share, "train": 1 - test_share - validation_share}


def photographs_needed(shares: Iterable[float]) -> int:
    """Return how many photographs give the smallest split of a share above 0 one with a probability of 95 %.

    Args:
        shares: of the splits, each below 1.
    """
    return math.ceil(math.log(1 - _LIKELY) / math.log1p(-min(share for share in shares if share > 0)))


def nearest(hashes: Hashes, others: Hashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find for each of N hashes the nearest of M others, M at least 1.

    Returns:
        Two arrays (N,): the index of the first nearest one in `others`, and the number of bits that differ.
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
    """Find the photographs whose hash differs in at most `bits` bits from that of one in an earlier split.

    A photograph that is found does not cause others to be found.

    Args:
        hashes: (N,), 64-bit perceptual hashes.
        splits: (N,), the split of each.
        bits: maximum number of bits in which near duplicates differ.

    Returns:
        For the index of each photograph found, the index of the nearest one that stays.
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
