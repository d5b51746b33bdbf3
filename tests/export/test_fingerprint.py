from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segship.export.fingerprint import RUNS, allowance, contrast, fingerprint

SHAPES = [(1, 3, 20, 30), (1, 16, 120, 161)]


def _values(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _matches(changed: NDArray[Any], values: NDArray[Any]) -> bool:
    expected = fingerprint(values)
    return fingerprint(changed).matches(expected, allowance(expected, 0, 1e-5))


@pytest.mark.parametrize("shape", SHAPES)
def test_rounding_and_another_shape_are_no_difference(shape: tuple[int, ...]) -> None:
    values = _values(shape)
    assert _matches((values * np.float32(1 + 1e-7)).reshape(shape[1:]), values)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "change",
    [
        lambda values: values + np.float32(1e-3),
        lambda values: values * np.float32(1.001),
        lambda values: values[:, ::-1],
        lambda values: values[..., ::-1],
        lambda values: np.roll(values, 1, -1),
        lambda values: values.transpose(0, 2, 3, 1),
        lambda values: np.where(values == values.max(), values.max() * 1.1, values),
        lambda values: np.where(values == values.max(), np.nan, values),
        lambda values: values[..., :-1],
    ],
)
def test_a_difference_anywhere_is_seen(
    shape: tuple[int, ...], change: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> None:
    assert not _matches(change(_values(shape)), _values(shape))


def test_what_is_kept_is_small_and_tells_magnitude_and_what_is_not_finite() -> None:
    values = _values((1, 16, 120, 161))
    values.flat[:3] = [np.nan, np.inf, -np.inf]
    mark = fingerprint(values)
    assert mark.sums.size <= RUNS
    assert mark.magnitude == np.abs(values[np.isfinite(values)]).max()
    assert (mark.non_finite, mark.uniform, mark.exact) == (3, False, False)


def test_the_root_mean_square_of_a_difference_is_about_right() -> None:
    values, change = _values((1, 16, 120, 161)), 0.1 * np.random.default_rng(1).standard_normal((1, 16, 120, 161))
    assert fingerprint(values + change).root_mean_square(fingerprint(values)) == pytest.approx(0.1, rel=0.05)


def test_labels_may_flip_at_one_pixel_in_ten_thousand() -> None:
    labels = np.random.default_rng(0).integers(0, 12, (1, 200, 300), np.uint8)
    changed = labels.copy()
    changed.flat[:60000:10000] += 1
    assert _matches(changed, labels)
    changed.flat[1:60000:5000] += 1
    assert not _matches(changed, labels)


def test_a_difference_is_told_in_words() -> None:
    zeros, ones = fingerprint(np.zeros((2, 3), np.float32)), fingerprint(np.ones((2, 3), np.float32))
    nan, five = fingerprint(np.full((2, 3), np.nan)), fingerprint(np.ones(5))
    assert (
        contrast(zeros, ones, "it") == "returns values about 1 (root mean square) away from those of it, which reach 1"
    )
    assert contrast(nan, ones, "it") == "returns NaN or infinity in 6 of 6 values, it in 0"
    assert contrast(five, ones, "it") == "returns 5 values, it 6"
