import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

from segship.runtime.labels import (
    labels_dtype,
    labels_from_logits,
    probabilities_from_logits,
    resize_labels,
    upscale,
)

SIDE = st.integers(1, 12)
SIZE = st.tuples(SIDE, SIDE)
LOGITS = st_numpy.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), SIDE, SIDE),
    elements=st.sampled_from([-1e6, -3, -0.5, 0, 0.5, 0.5000001, 7, 1e6]) | st.floats(-50, 50, width=32),
)


@settings(max_examples=150, deadline=None)
@given(LOGITS, SIZE)
def test_labels_are_the_argmax_of_the_upscaled_planes(logits: NDArray[np.float32], size: tuple[int, int]) -> None:
    planes = [cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR).reshape(size) for plane in logits]
    labels = labels_from_logits(logits, size)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.argmax(planes, axis=0))


def test_labels_leave_the_logits_alone() -> None:
    logits = np.random.default_rng(0).standard_normal((4, 5, 6), np.float32)
    before = logits.copy()
    labels_from_logits(logits, (5, 6))
    np.testing.assert_array_equal(logits, before)


def test_of_equal_logits_the_lower_class_wins() -> None:
    logits = np.zeros((3, 2, 2), np.float32)
    logits[2, 0, 0] = 1
    logits[1, 1, 1] = logits[2, 1, 1] = 2
    np.testing.assert_array_equal(labels_from_logits(logits, (2, 2)), [[2, 0], [0, 1]])
    many = np.concatenate([logits, np.zeros((300, 2, 2), np.float32)])
    np.testing.assert_array_equal(labels_from_logits(many, (2, 2)), [[2, 0], [0, 1]])


@pytest.mark.parametrize(("num_classes", "dtype"), [(1, np.uint8), (256, np.uint8), (257, np.uint16), (300, np.uint16)])
def test_ids_get_sixteen_bits_above_256_classes(num_classes: int, dtype: type) -> None:
    logits = np.random.default_rng(1).standard_normal((num_classes, 9, 7), np.float32)
    logits[-1, 3, 4] = 99
    labels = labels_from_logits(logits, (9, 7))
    assert labels.dtype == dtype == labels_dtype(num_classes)
    assert labels[3, 4] == num_classes - 1
    np.testing.assert_array_equal(labels, logits.argmax(axis=0))


@settings(max_examples=60, deadline=None)
@given(LOGITS, SIZE)
def test_probabilities_sum_to_one_and_agree_with_the_labels(logits: NDArray[np.float32], size: tuple[int, int]) -> None:
    probabilities = probabilities_from_logits(logits, size)
    assert probabilities.shape == (len(logits), *size)
    assert probabilities.dtype == np.float32
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    labels = labels_from_logits(logits, size)
    chosen = np.take_along_axis(probabilities, labels[None].astype(np.int64), axis=0)[0]
    np.testing.assert_array_equal(chosen, probabilities.max(axis=0))


@settings(max_examples=60, deadline=None)
@given(st_numpy.arrays(np.uint16, SIZE), SIZE)
def test_upscaled_labels_hold_no_new_ids(labels: NDArray[np.uint16], size: tuple[int, int]) -> None:
    upscaled = resize_labels(labels, size)
    assert upscaled.shape == size
    assert upscaled.dtype == np.uint16
    assert set(np.unique(upscaled)) <= set(np.unique(labels))


def test_labels_twice_as_large_repeat_each_pixel() -> None:
    labels = np.array([[1, 2], [3, 4]], np.uint8)
    np.testing.assert_array_equal(resize_labels(labels, (4, 4)), labels.repeat(2, axis=0).repeat(2, axis=1))


def test_pixel_centres_are_aligned_when_a_plane_is_upscaled() -> None:
    plane = np.array([[0, 1]], np.float32)
    np.testing.assert_allclose(upscale(plane, (1, 4)), [[0, 0.25, 0.75, 1]])
