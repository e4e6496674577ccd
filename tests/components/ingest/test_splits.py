import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from components.ingest.splits import SPLITS, near_duplicates, nearest, photographs_needed, shares_of, split_of

hashes = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=12).map(lambda values: np.array(values, np.uint64))
shares = st.floats(0, 1)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)


@given(sha256=digests, validation=shares, test=shares)
def test_the_split_of_a_photograph_depends_on_its_bytes_alone(sha256: str, validation: float, test: float) -> None:
    side = split_of(sha256, validation, test)
    assert side in SPLITS
    assert side == split_of(sha256[:16] + "0" * 48, validation, test)


@given(sha256=digests, validation=shares, test=shares)
def test_a_larger_test_share_keeps_all_test_photographs(sha256: str, validation: float, test: float) -> None:
    if split_of(sha256, validation, test) == "test":
        assert split_of(sha256, validation, min(1.0, test * 1.5)) == "test"


def test_splits_have_the_requested_shares() -> None:
    random = np.random.default_rng(0)
    sides = [split_of(random.bytes(32).hex(), 0.1, 0.25) for _ in range(20_000)]
    for side, share in (("test", 0.25), ("validation", 0.1), ("train", 0.65)):
        assert abs(sides.count(side) / len(sides) - share) < 0.01


def test_the_shares_define_the_bounds_of_the_splits() -> None:
    at = {fraction: f"{int(fraction * 2**64):016x}" + "f" * 48 for fraction in (0.0, 0.25, 0.5)}
    assert split_of(at[0.0], 0.25, 0.25) == "test"
    assert split_of(at[0.25], 0.25, 0.25) == "validation"
    assert split_of(at[0.5], 0.25, 0.25) == "train"
    assert split_of("f" * 64, 0.25, 0.25) == "train"
    assert split_of("0" * 64, 0.0, 0.0) == "train"


@given(some=hashes, others=hashes)
def test_nearest_agrees_with_a_plain_search(some: np.ndarray, others: np.ndarray) -> None:
    index, distance = nearest(some, others)
    for row, value in enumerate(some):
        bits = [(int(value) ^ int(other)).bit_count() for other in others]
        assert distance[row] == min(bits)
        assert index[row] == bits.index(min(bits))


@given(values=hashes, data=st.data(), bits=st.integers(0, 64))
def test_no_near_duplicates_remain_in_different_splits(values: np.ndarray, data: st.DataObject, bits: int) -> None:
    sides = np.array([data.draw(st.sampled_from(SPLITS)) for _ in values])
    gone = near_duplicates(values, sides, bits)
    stay = [index for index in range(len(values)) if index not in gone]
    for one in stay:
        for other in stay:
            if sides[one] != sides[other]:
                assert (int(values[one]) ^ int(values[other])).bit_count() > bits
    for index, other in gone.items():
        assert SPLITS.index(sides[other]) < SPLITS.index(sides[index])
        assert other in stay
        assert (int(values[index]) ^ int(values[other])).bit_count() <= bits


def test_a_removed_photograph_does_not_remove_others() -> None:
    values = np.array([0b0000, 0b0001, 0b0011], np.uint64)
    assert near_duplicates(values, np.array(["test", "validation", "train"]), 1) == {1: 0}


def test_the_size_of_blocks_does_not_change_the_result(monkeypatch) -> None:
    random = np.random.default_rng(0)
    some, others = (random.integers(0, 2**64, 500, np.uint64) for _ in range(2))
    whole = nearest(some, others)
    monkeypatch.setattr("components.ingest.splits._PAIRS_AT_ONCE", 700)
    for one, other in zip(whole, nearest(some, others), strict=True):
        assert np.array_equal(one, other)


def test_as_many_photographs_as_are_needed_rarely_leave_a_split_empty() -> None:
    shares = shares_of(0.08, 0.25)
    assert shares == {"test": 0.25, "validation": 0.08, "train": 1 - 0.25 - 0.08}
    assert photographs_needed(shares.values()) == 36
    assert 0.92**36 < 0.05 < 0.92**35
    assert photographs_needed([0.3, 0.0, 0.7]) == photographs_needed([0.3, 0.7]) == 9
