"""Samples of time in figures, and whether two sets of them differ: by ranks alone, and with every sample kept.

Times are skewed and have outliers, and neighbours in time resemble each other, so nothing here takes them for normal
or for independent, and nothing is thrown away.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from segship.benchmarks.record import BenchError

Verdict = Literal["faster", "slower", "no difference"]

CONFIDENCE: Final = 0.95

BLOCKS: Final = 9
"""Consecutive samples are put into so many blocks, and the blocks' medians stand for them (batch means, of medians).
Neighbours resemble each other; medians of blocks that are longer than that likeness lasts hardly do, and few blocks are
long ones. Simulated intervals of 9 hold what they promise where each of 100 samples is correlated by 0.5 with the one
before it, or each of 1000 by 0.9. Of more blocks they are hardly shorter, and no longer hold it."""

FEW_BLOCKS: Final = 6
"""So many where 9 would have fewer than 10 samples each: the least of which the sign test makes an interval."""

STABLE_WITHIN: Final = 0.10
_LEAST_FOR_STABLE: Final = 15


@dataclass(frozen=True)
class Distribution:
    """What samples are like, in their own unit; percentiles by nearest rank, so that each is a sample.

    Attributes:
        count: how many samples.
        mean: of all of them, outliers too.
        std: standard deviation, with n − 1; 0 of a single sample.
        min: smallest sample.
        p50: median.
        p90: 90 % of the samples are no larger.
        p95: 95 % of the samples are no larger.
        p99: 99 % of the samples are no larger.
        max: largest sample.
    """

    count: int
    mean: float
    std: float
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Distribution":
        """Describe all of ``samples``.

        Raises:
            BenchError: if there are none.
        """
        p50, p90, p95, p99, largest = (percentile(samples, share) for share in (0.50, 0.90, 0.95, 0.99, 1.0))
        std = float(np.std(samples, ddof=1)) if len(samples) > 1 else 0.0
        return cls(len(samples), float(np.mean(samples)), std, float(min(samples)), p50, p90, p95, p99, largest)


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the smallest sample that at least ``share`` of all samples, 0…1, do not exceed: the nearest rank.

    It is definition 1 of Hyndman and Fan (1996), "Sample quantiles in statistical packages".

    Raises:
        BenchError: if there are no samples.
    """
    if not len(samples):
        raise BenchError("there are no samples to describe; expected at least one")
    return float(sorted(samples)[max(math.ceil(share * len(samples)), 1) - 1])


def is_stable(samples: Sequence[float]) -> bool:
    """Tell whether the medians of the first, middle and last third are within 10 % of each other.

    Of fewer than 15 samples nobody can tell, so they are not.
    """
    if len(samples) < _LEAST_FOR_STABLE:
        return False
    medians = [float(np.median(window)) for window in np.array_split(np.asarray(samples, np.float64), 3)]
    return max(medians) <= (1 + STABLE_WITHIN) * min(medians)


@dataclass(frozen=True)
class Ratio:
    """How many times as long the second takes as the first.

    Attributes:
        median: the estimate.
        low: lower end of the confidence interval; 0 where there are too few samples for one.
        high: its upper end; infinite where there are too few samples.
        confidence: share of such intervals that hold the true ratio.
    """

    median: float
    low: float
    high: float
    confidence: float = CONFIDENCE

    def verdict(self, margin: float = 0.03) -> Verdict:
        """Tell whether the second is slower or faster by more than ``margin``: 0.03 is 3 %.

        It is only where the whole interval lies beyond 1 ± margin. So of two that truly differ by no more than the
        margin, at most 5 % are called different (2.5 % on either side, at the very margin), and of two that are equal
        next to none, since the interval must miss 1 by the margin as well. That is of one comparison: among twenty,
        the chances add up. A difference is found once the interval is shorter than its distance from the margin;
        "no difference" means that none was shown, and the interval says how large a one could still be.
        """
        if self.low > 1 + margin:
            return "slower"
        return "faster" if self.high < 1 - margin else "no difference"


def paired_ratio(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """Compare samples that were taken in turns, pair by pair: what disturbs both of a pair cancels out.

    The estimate is the median of all ratios second / first. The interval lies between two order statistics of the
    medians of blocks of consecutive ratios (:data:`BLOCKS`), as the binomial distribution of the sign test has it (W.R.
    Thompson, 1936, "On confidence ranges for the median"; David and Nagaraja, "Order Statistics", section 7.1). It asks
    nothing of the distribution but that the blocks have one median in common and are independent. The estimate is
    always within. With fewer than 6 pairs there is no such interval.

    What one run leaves to the next (warm caches, threads that still spin, the scheduler's favour) does not cancel out:
    in turns of one order it is in every pair, and in the ratio. A rest between the runs or a random order prevents it.

    Args:
        first: of the one that is compared with, above 0.
        second: of the other, above 0, in the same unit, each taken beside the one of ``first`` at its place.

    Raises:
        BenchError: if there are none, not as many of the one as of the other, or some that are no times.
    """
    before, after = _times(first), _times(second)
    if before.size != after.size:
        raise BenchError(f"got {before.size} and {after.size} samples; expected pairs, as many of the one as the other")
    ratios = after / before
    medians = _block_medians(ratios, _block_count(ratios.size))
    ways = [math.comb(medians.size, below) for below in range(medians.size + 1)]
    return _between_ranks(float(np.median(ratios)), medians, ways)


def unpaired_ratio(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """Compare samples that were taken apart from each other, such as on different days.

    The estimate is the ratio of the two medians, by nearest rank. The interval lies between two order statistics of the
    ratios of each block median of the second to each of the first (:data:`BLOCKS`), as the distribution of the
    Mann–Whitney statistic has it (E. L. Lehmann, 1963, "Nonparametric confidence intervals for a shift parameter", of
    logarithms). It asks nothing of the distribution of the samples but that the block medians of both are independent
    and alike up to their scale; where one run scatters five times as much as the other, its 95 % are 93 %. Two separate
    intervals of the two medians would ask less, and together be twice as long. The estimate is always within. With
    fewer than 4 samples each there is no such interval.

    It knows the noise within each of the two runs alone. What was different about the machine throughout one of them
    (its clock, its neighbours) is part of the ratio, and only a margin or measuring in turns helps against that.

    Args:
        first: of the one that is compared with, above 0.
        second: of the other, above 0, in the same unit.

    Raises:
        BenchError: if there are none, or some that are no times.
    """
    before, after = _times(first), _times(second)
    count = _block_count(min(before.size, after.size))
    ratios = (_block_medians(after, count)[:, None] / _block_medians(before, count)).ravel()
    return _between_ranks(percentile(second, 0.5) / percentile(first, 0.5), ratios, _orders(count))


def _times(samples: Sequence[float]) -> NDArray[np.float64]:
    times = np.asarray(samples, np.float64)
    if not times.size or not np.all(np.isfinite(times) & (times > 0)):
        raise BenchError("there are no samples, or some that are not above 0; expected times to compare")
    return times


def _block_count(samples: int) -> int:
    return BLOCKS if samples >= 10 * BLOCKS else min(FEW_BLOCKS, samples)


def _block_medians(values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    return np.array([np.median(block) for block in np.array_split(values, count)])


def _between_ranks(estimate: float, values: NDArray[np.float64], ways: Sequence[int]) -> Ratio:
    """Return the interval between the order statistics that leave out no more than 1 − confidence, half on each side.

    Args:
        estimate: of what the values scatter around.
        values: whose order statistics bound the interval.
        ways: in how many ways, equally probable, exactly 0, 1, 2 … values lie below the truth.
    """
    tail = (1 - CONFIDENCE) / 2 * sum(ways)
    rank = sum(total <= tail for total in itertools.accumulate(ways))
    if rank == 0:
        return Ratio(estimate, 0.0, math.inf)
    ordered = np.sort(values)
    return Ratio(estimate, min(float(ordered[rank - 1]), estimate), max(float(ordered[-rank]), estimate))


def _orders(count: int) -> list[int]:
    """Return in how many orders of two sets of ``count`` exactly 0, 1, 2 … pairs have the second's below the first's.

    They are the coefficients of a Gaussian binomial (Mann and Whitney, 1947), the product of
    (1 − q^(count + i)) / (1 − q^i) over i = 1 … count.
    """
    ways = [1] + [0] * (count * count)
    for i in range(1, count + 1):
        for pairs in reversed(range(count + i, len(ways))):
            ways[pairs] -= ways[pairs - count - i]
        for pairs in range(i, len(ways)):
            ways[pairs] += ways[pairs - i]
    return ways
