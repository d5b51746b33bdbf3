import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from segship.benchmarks.distribution import (
    BLOCKS,
    Distribution,
    Ratio,
    is_stable,
    paired_ratio,
    percentile,
    unpaired_ratio,
)
from segship.benchmarks.record import BenchError

TRIALS = 1000
RUNS = 200
BOTH = pytest.mark.parametrize("compare", [paired_ratio, unpaired_ratio])
Compare = Callable[[Any, Any], Ratio]


def times(seed: int, correlation: float, spread: float = 0.05, runs: int = RUNS) -> NDArray[np.float64]:
    """Log-normal times around 1, (TRIALS, runs), each correlated with the one before it: autoregressive, order 1."""
    noise = np.random.default_rng(seed).standard_normal((TRIALS, runs))
    for run in range(1, runs):
        noise[:, run] = correlation * noise[:, run - 1] + math.sqrt(1 - correlation**2) * noise[:, run]
    return np.exp(spread * noise)


def ratios(compare: Compare, first: NDArray[np.float64], second: NDArray[np.float64]) -> list[Ratio]:
    return [compare(*pair) for pair in zip(first, second, strict=True)]


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, 15), (0.05, 15), (0.2, 15), (0.3, 20), (0.4, 20), (0.5, 35), (0.61, 40), (0.8, 40), (1.0, 50)],
)
def test_a_percentile_is_the_sample_of_the_nearest_rank(share: float, expected: float) -> None:
    assert percentile([40, 15, 50, 35, 20], share) == expected


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=300), st.integers(0, 100))
def test_percentiles_are_those_of_numpy(samples: list[int], hundredths: int) -> None:
    assert percentile(samples, hundredths / 100) == np.quantile(samples, hundredths / 100, method="inverted_cdf")


def test_a_distribution_tells_of_every_sample() -> None:
    samples = [float(value) for value in range(1, 101)]
    described = Distribution.of(samples[::-1])
    assert described == Distribution(100, 50.5, described.std, 1, 50, 90, 95, 99, 100)
    assert described.std == pytest.approx(statistics.stdev(samples))


def test_a_single_sample_is_all_of_its_distribution() -> None:
    assert Distribution.of([7]) == Distribution(1, 7, 0, 7, 7, 7, 7, 7, 7)


def test_outliers_show_in_the_tail_and_move_no_median() -> None:
    samples = [10.0 + number / 100 for number in range(100)]
    planted = [*samples[:-2], 5000.0, 9000.0]
    before, after = Distribution.of(samples), Distribution.of(planted)
    assert (after.p99, after.max, after.count) == (5000, 9000, 100)
    assert (after.p50, after.p90, after.p95) == (before.p50, before.p90, before.p95)
    assert after.mean == pytest.approx(statistics.mean(planted))


def test_an_outlier_moves_a_ratio_hardly() -> None:
    first, second = times(1, 0.0)[0], times(2, 0.0)[0]
    planted = second.copy()
    planted[0] *= 1000
    for compare in (paired_ratio, unpaired_ratio):
        assert compare(first, planted).median == pytest.approx(compare(first, second).median, abs=0.01)
        assert compare(first, planted).high < 1.05


def test_steady_noise_is_stable() -> None:
    steady = sum(is_stable(samples) for samples in times(3, 0.5, spread=0.1))
    assert steady >= 0.98 * TRIALS


@pytest.mark.parametrize("slope", [0.3, -0.3])
def test_a_drift_is_not_stable(slope: float) -> None:
    drift = 1 + slope * np.linspace(0, 1, RUNS)
    assert sum(is_stable(samples * drift) for samples in times(4, 0.0)) <= 0.02 * TRIALS


def test_a_middle_that_differs_is_not_stable() -> None:
    assert is_stable([10.0] * 30 + [10.9] * 30 + [10.0] * 30)
    assert not is_stable([10.0] * 30 + [11.1] * 30 + [10.0] * 30)


def test_too_few_samples_are_not_stable() -> None:
    assert not is_stable([])
    assert not is_stable([10.0] * 14)
    assert is_stable([10.0] * 15)


def in_blocks(medians: Any, runs: int) -> list[float]:
    """Samples of which each of as many blocks as there are medians has one and the same."""
    return [
        float(medians[number]) for number, block in enumerate(np.array_split(range(runs), len(medians))) for _ in block
    ]


@pytest.mark.parametrize(("pairs", "rank"), [(6, 1), (50, 1), (90, 2), (900, 2)])
def test_the_paired_interval_has_the_ranks_of_the_published_tables(pairs: int, rank: int) -> None:
    medians = range(1, (BLOCKS if pairs >= 90 else 6) + 1)
    ratio = paired_ratio([1.0] * pairs, in_blocks(medians, pairs))
    assert (ratio.low, ratio.high) == (medians[rank - 1], medians[-rank])


@pytest.mark.parametrize(("runs", "critical"), [(4, 0), (5, 2), (6, 5), (60, 5), (90, 17)])
def test_the_unpaired_interval_has_the_ranks_of_the_published_tables(runs: int, critical: int) -> None:
    blocks = np.arange(BLOCKS if runs >= 90 else min(runs, 6))
    first, second = 1 + blocks / 7, 20 + blocks**1.5
    ratio = unpaired_ratio(in_blocks(first, runs), in_blocks(second, runs))
    expected = np.sort(np.divide.outer(second, first).ravel())
    assert (ratio.low, ratio.high) == (expected[critical], expected[-1 - critical])


@pytest.mark.parametrize(("compare", "samples"), [(paired_ratio, 5), (unpaired_ratio, 3)])
def test_too_few_samples_bound_nothing_and_show_nothing(compare: Compare, samples: int) -> None:
    ratio = compare(np.ones(samples), np.full(samples, 9.0))
    assert ratio == Ratio(9, 0, math.inf)
    assert ratio.verdict() == "no difference"


@BOTH
@pytest.mark.parametrize(
    ("correlation", "spread"),
    [(0.0, 0.05), (0.0, 0.5), (0.5, 0.05), (0.7, 0.1)],
    ids=["iid", "skewed", "ar", "long ar"],
)
def test_the_interval_holds_the_truth_as_often_as_it_says(compare: Compare, correlation: float, spread: float) -> None:
    found = ratios(compare, times(5, correlation, spread), 1.1 * times(6, correlation, spread))
    assert sum(ratio.low <= 1.1 <= ratio.high for ratio in found) >= 0.93 * TRIALS


def test_runs_of_different_length_and_scatter_are_compared_honestly() -> None:
    found = ratios(unpaired_ratio, times(7, 0.5, 0.1, runs=30), times(8, 0.5, 0.03, runs=400))
    assert sum(ratio.low <= 1 <= ratio.high for ratio in found) >= 0.93 * TRIALS


@BOTH
def test_a_planted_slowdown_is_found_and_none_is_where_there_is_none(compare: Compare) -> None:
    first, second = times(9, 0.5), times(10, 0.5)
    slower = [ratio.verdict() for ratio in ratios(compare, first, 1.1 * second)]
    faster = [ratio.verdict() for ratio in ratios(compare, 1.1 * first, second)]
    same = [ratio.verdict() for ratio in ratios(compare, first, second)]
    assert slower.count("slower") >= 0.95 * TRIALS
    assert faster.count("faster") >= 0.95 * TRIALS
    assert same.count("no difference") >= 0.95 * TRIALS


@BOTH
def test_a_difference_as_large_as_the_margin_is_rarely_called_one(compare: Compare) -> None:
    found = ratios(compare, times(11, 0.5, 0.02), 1.03 * times(12, 0.5, 0.02))
    assert sum(ratio.verdict(0.03) == "slower" for ratio in found) <= 0.05 * TRIALS


def test_what_disturbs_both_of_a_pair_cancels_out() -> None:
    shared = times(13, 0.95, spread=0.5)
    first, second = shared * times(14, 0.0, 0.02), shared * 1.1 * times(15, 0.0, 0.02)
    verdicts = [ratio.verdict() for ratio in ratios(paired_ratio, first, second)]
    assert verdicts.count("slower") >= 0.95 * TRIALS


@BOTH
def test_the_estimate_is_within_the_interval(compare: Compare) -> None:
    rng = np.random.default_rng(16)
    for _ in range(200):
        ratio = compare(*(rng.choice([1.0, 3.0], 40) * rng.uniform(1, 1.01, 40) for _ in range(2)))
        assert ratio.low <= ratio.median <= ratio.high


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (Ratio(1.1, 1.04, 1.2), "slower"),
        (Ratio(1.1, 1.03, 1.2), "no difference"),
        (Ratio(0.9, 0.8, 0.96), "faster"),
        (Ratio(0.9, 0.8, 0.97), "no difference"),
        (Ratio(1.0, 0.5, 2.0), "no difference"),
    ],
)
def test_only_a_whole_interval_beyond_the_margin_is_a_difference(ratio: Ratio, verdict: str) -> None:
    assert ratio.verdict(0.03) == verdict


def test_what_cannot_be_compared_or_described_is_refused() -> None:
    with pytest.raises(BenchError, match="no samples"):
        percentile([], 0.5)
    with pytest.raises(BenchError, match="expected pairs"):
        paired_ratio([1.0, 2.0], [1.0])
    for times_of_none in ([], [1.0, 0.0], [1.0, -1.0], [math.nan]):
        for compare in (paired_ratio, unpaired_ratio):
            with pytest.raises(BenchError, match="above 0"):
                compare(times_of_none, times_of_none)
