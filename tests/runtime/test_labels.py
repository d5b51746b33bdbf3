import dataclasses

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

from segship.runtime.card import ModelCard
from segship.runtime.labels import (
    labels_dtype,
    labels_from_logits,
    probabilities_from_logits,
    resize_labels,
    upscale,
)
from segship.runtime.preprocess import Preprocess

SIDE = st.integers(1, 12)
SIZE = st.tuples(SIDE, SIDE)
LOGITS = st_numpy.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), SIDE, SIDE),
    elements=st.sampled_from([-1e6, -3, -0.5, 0, 0.5, 0.5000001, 7, 1e6]) | st.floats(-50, 50, width=32),
)
LOGIT = st_numpy.arrays(np.float32, st.tuples(st.just(1), SIDE, SIDE), elements=st.floats(-1e4, 1e4, width=32))


def card_of(num_classes: int) -> ModelCard:
    names = tuple(map(str, range(num_classes)))
    return ModelCard(names, ((0, 0, 0),) * num_classes, Preprocess((4, 4)), ignore_index=65535)


def binary_card(threshold: float) -> ModelCard:
    return dataclasses.replace(card_of(2), task="binary", threshold=threshold)


@settings(max_examples=150, deadline=None)
@given(LOGITS, SIZE)
def test_labels_are_the_argmax_of_the_upscaled_planes(logits: NDArray[np.float32], size: tuple[int, int]) -> None:
    planes = [cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR).reshape(size) for plane in logits]
    labels = labels_from_logits(logits, size, card_of(len(logits)))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.argmax(planes, axis=0))


def test_labels_leave_the_logits_alone() -> None:
    logits = np.random.default_rng(0).standard_normal((4, 5, 6), np.float32)
    before = logits.copy()
    labels_from_logits(logits, (5, 6), card_of(4))
    np.testing.assert_array_equal(logits, before)


def test_of_equal_logits_the_lower_class_wins() -> None:
    logits = np.zeros((3, 2, 2), np.float32)
    logits[2, 0, 0] = 1
    logits[1, 1, 1] = logits[2, 1, 1] = 2
    np.testing.assert_array_equal(labels_from_logits(logits, (2, 2), card_of(3)), [[2, 0], [0, 1]])
    many = np.concatenate([logits, np.zeros((300, 2, 2), np.float32)])
    np.testing.assert_array_equal(labels_from_logits(many, (2, 2), card_of(303)), [[2, 0], [0, 1]])


@pytest.mark.parametrize(("num_classes", "dtype"), [(1, np.uint8), (256, np.uint8), (257, np.uint16), (300, np.uint16)])
def test_ids_get_sixteen_bits_above_256_classes(num_classes: int, dtype: type) -> None:
    logits = np.random.default_rng(1).standard_normal((num_classes, 9, 7), np.float32)
    logits[-1, 3, 4] = 99
    labels = labels_from_logits(logits, (9, 7), card_of(num_classes))
    assert labels.dtype == dtype == labels_dtype(num_classes)
    assert labels[3, 4] == num_classes - 1
    np.testing.assert_array_equal(labels, logits.argmax(axis=0))


@settings(max_examples=60, deadline=None)
@given(LOGITS, SIZE)
def test_probabilities_sum_to_one_and_agree_with_the_labels(logits: NDArray[np.float32], size: tuple[int, int]) -> None:
    probabilities = probabilities_from_logits(logits, size, card_of(len(logits)))
    assert probabilities.shape == (len(logits), *size)
    assert probabilities.dtype == np.float32
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    labels = labels_from_logits(logits, size, card_of(len(logits)))
    chosen = np.take_along_axis(probabilities, labels[None].astype(np.int64), axis=0)[0]
    np.testing.assert_array_equal(chosen, probabilities.max(axis=0))


@settings(max_examples=100, deadline=None)
@given(LOGIT, SIZE, st.floats(0.01, 0.99))
def test_the_second_of_two_classes_wins_where_the_only_logit_is_above_the_threshold(
    logits: NDArray[np.float32], size: tuple[int, int], threshold: float
) -> None:
    labels = labels_from_logits(logits, size, binary_card(threshold))
    assert labels.dtype == np.uint8
    plane = upscale(logits[0], size)
    np.testing.assert_array_equal(labels, plane > np.float32(np.log(threshold) - np.log1p(-threshold)))


def test_at_the_threshold_itself_the_first_class_wins() -> None:
    logits = np.array([[[0, np.nextafter(np.float32(0), np.float32(1)), -1, 1]]], np.float32)
    np.testing.assert_array_equal(labels_from_logits(logits, (1, 4), binary_card(0.5)), [[0, 1, 0, 1]])
    np.testing.assert_array_equal(labels_from_logits(logits, (1, 4), binary_card(0.7)), [[0, 0, 0, 1]])
    np.testing.assert_array_equal(labels_from_logits(logits, (1, 4), binary_card(0.2)), [[1, 1, 1, 1]])


@settings(max_examples=60, deadline=None)
@given(LOGIT, SIZE)
def test_probabilities_of_two_classes_are_the_sigmoid_and_what_it_lacks_of_one(
    logits: NDArray[np.float32], size: tuple[int, int]
) -> None:
    first, second = probabilities_from_logits(logits, size, binary_card(0.9))
    expected = 0.5 * (1 + np.tanh(upscale(logits[0], size).astype(np.float64) / 2))
    np.testing.assert_allclose(second, expected, atol=1e-6)
    np.testing.assert_allclose(first, 1 - expected, atol=1e-6)


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
