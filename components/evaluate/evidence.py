"""By how much one model is better than another on the same photographs, and how sure that is.

The photographs are a sample of those to come. The interval of a mean difference says which means are compatible with
this sample: with few photographs by the exact sign-flip test, with many by the bootstrap.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from components.artifacts import Candidate, Gain
from components.comparison import METRICS

EXACT_BELOW = 20
"""Number of photographs from which the bootstrap takes the place of the exact test."""
RESAMPLES = 10_000
_SEED = 20_211
_FEWEST = 6
_DRAWS_AT_ONCE = 2**22

Table = npt.NDArray[np.float64]


def photographs_required(confidence: float) -> int:
    """Return how many photographs an interval needs: with fewer, no signs of differences are improbable enough."""
    return max(_FEWEST, math.ceil(math.log2(2 / (1 - confidence))))


def _exact(differences: Table, tail: float) -> Table:
    """Invert the sign-flip test.

    If the true mean is m, each d - m is as probable as m - d. The test counts the 2^N ways to flip signs that give no
    smaller sum. Flipping the subset F gives no smaller sum exactly if the mean of F is at most m, and flipping nothing
    always counts. The limits are therefore order statistics of the means of all subsets.
    """
    sums, sizes = np.zeros((1, differences.shape[1])), np.zeros(1)
    for row in differences:
        sums, sizes = np.concatenate((sums, sums + row)), np.concatenate((sizes, sizes + 1))
    means = sums[1:] / sizes[1:, None]
    rank = int(tail * len(sums)) - 1
    ordered = np.partition(means, (rank, len(means) - 1 - rank), axis=0)
    limits: Table = ordered[[rank, len(means) - 1 - rank]]
    return limits


def students_quantile(tail: float, freedom: int) -> float:
    """Return the value that Student's t exceeds with a probability of `tail`.

    It is the expansion around the normal distribution (Abramowitz and Stegun 26.7.5), at 2.5 % within 0.3 % of the
    exact value from 4 degrees of freedom on.
    """
    z = -NormalDist().inv_cdf(tail)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def expanded_tail(tail: float, count: int) -> float:
    """Return the tail whose bootstrap percentile is as far out as Student's t interval of `count` normal values.

    Plain percentiles are too narrow: the spread of a sample is divided by N instead of N - 1, and is not known exactly.
    """
    freedom = count - 1
    return NormalDist().cdf(-students_quantile(tail, freedom) * math.sqrt(count / freedom))


def _bootstrap(differences: Table, tail: float) -> Table:
    """Resample whole photographs, so that all metrics are resampled together, and take percentiles of the means."""
    count = len(differences)
    random = np.random.default_rng(_SEED)
    rows = max(1, _DRAWS_AT_ONCE // count)
    means = np.empty((RESAMPLES, differences.shape[1]))
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        drawn = random.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        means[start : start + size] = weights @ differences / count
    tail = expanded_tail(tail, count)
    limits: Table = np.quantile(means, (tail, 1 - tail), axis=0)
    return limits


def intervals(differences: Table, confidence: float) -> Table | None:
    """Return the two-sided confidence interval of the mean of each column.

    Args:
        differences: (N, M), of N photographs in M metrics; the difference of one photograph is finite.
        confidence: above 0.5 and below 1; each limit has half of the remaining probability of error.

    Returns:
        (2, M), the lower and upper limits; None if N is below `photographs_required`. The same each time.
    """
    if len(differences) < photographs_required(confidence):
        return None
    tail = (1 - confidence) / 2
    return (_exact if len(differences) < EXACT_BELOW else _bootstrap)(differences, tail)


def _limits(differences: Table, confidence: float) -> Table:
    """Return `intervals` of each column without its NaN, (2, M); NaN where there are too few photographs."""
    limits = np.full((2, differences.shape[1]), np.nan)
    measured = ~np.isnan(differences)
    for rows in np.unique(measured, axis=1).T:
        # Columns that are measured on the same photographs are resampled together.
        columns = (measured == rows[:, None]).all(0)
        found = intervals(differences[rows][:, columns], confidence)
        if found is not None:
            limits[:, columns] = found
    return limits


def gains_of(values: Mapping[Candidate, Table], opponents: Sequence[Candidate], confidence: float) -> tuple[Gain, ...]:
    """Compare the challenger with each opponent, photograph by photograph.

    Args:
        values: (N, M) by candidate, the metrics in the order of `METRICS` on the same photographs in the same order;
            NaN where a metric cannot be measured on a photograph, which is left out for this metric alone.
        opponents: candidates other than the challenger.
        confidence: of the intervals.
    """
    better = np.array([1 if higher else -1 for higher in METRICS.values()])
    found: list[Gain] = []
    for opponent in opponents:
        differences = (values["challenger"] - values[opponent]) * better
        limits = _limits(differences, confidence)
        for column, metric in enumerate(METRICS):
            each = differences[~np.isnan(differences[:, column]), column]
            if not each.size:
                continue
            low, high = map(float, limits[:, column])
            found.append(
                Gain(
                    opponent=opponent,
                    metric=metric,
                    mean=float(each.mean()),
                    interval=None if math.isnan(low) else (low, high),
                    better=int((each > 0).sum()),
                    ties=int((each == 0).sum()),
                    worse=int((each < 0).sum()),
                )
            )
    return tuple(found)
