import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segship.training.metrics import ConfusionMatrix, Scores

VOID = 255
TRUTH = np.array([[0, 0, 0, 1], [1, 2, VOID, VOID]], np.uint8)
PREDICTION = np.array([[0, 0, 1, 1], [2, 2, 0, 1]], np.uint8)


def _scores(truth: NDArray[np.uint8], prediction: NDArray[np.uint8], num_classes: int = 3) -> Scores:
    matrix = ConfusionMatrix(num_classes, VOID)
    matrix.add(truth, prediction)
    return matrix.scores()


def test_every_figure_equals_the_one_computed_by_hand() -> None:
    scores = _scores(TRUTH, PREDICTION)
    assert scores.pixel_accuracy == pytest.approx(4 / 6)
    np.testing.assert_allclose(scores.class_accuracy, [2 / 3, 1 / 2, 1])
    assert scores.mean_class_accuracy == pytest.approx(13 / 18)
    np.testing.assert_allclose(scores.precision, [1, 1 / 2, 1 / 2])
    np.testing.assert_allclose(scores.iou, [2 / 3, 1 / 3, 1 / 2])
    assert scores.miou == pytest.approx(1 / 2)
    assert scores.frequency_weighted_iou == pytest.approx(19 / 36)
    np.testing.assert_allclose(scores.f1, [4 / 5, 1 / 2, 2 / 3])
    assert scores.mean_f1 == pytest.approx(59 / 90)


def test_rows_are_the_truth_and_columns_the_prediction() -> None:
    matrix = ConfusionMatrix(3, VOID)
    matrix.add(TRUTH, PREDICTION)
    np.testing.assert_array_equal(matrix.counts, [[2, 1, 0], [0, 1, 1], [0, 0, 1]])


def test_void_pixels_count_nowhere_whatever_was_predicted_there() -> None:
    for predicted in range(3):
        prediction = np.where(TRUTH == VOID, predicted, PREDICTION).astype(np.uint8)
        assert _scores(TRUTH, prediction).summary() == _scores(TRUTH, PREDICTION).summary()


def test_a_class_in_neither_truth_nor_prediction_is_nan_and_left_out_of_the_means() -> None:
    with_a_fourth = _scores(TRUTH, PREDICTION, num_classes=4)
    per_classes = (with_a_fourth.class_accuracy, with_a_fourth.precision, with_a_fourth.iou, with_a_fourth.f1)
    for per_class in per_classes:
        assert np.isnan(per_class).tolist() == [False, False, False, True]
    assert with_a_fourth.summary() == _scores(TRUTH, PREDICTION).summary()


def test_a_class_that_is_only_predicted_has_an_iou_and_f1_of_zero_and_no_accuracy() -> None:
    scores = _scores(np.zeros(4, np.uint8), np.array([0, 0, 0, 1], np.uint8), num_classes=2)
    assert math.isnan(scores.class_accuracy[1])
    assert (scores.precision[1], scores.iou[1], scores.f1[1]) == (0, 0, 0)
    assert scores.mean_class_accuracy == 0.75
    assert scores.miou == 0.375


def test_nothing_but_void_gives_nan_everywhere() -> None:
    scores = _scores(np.full((2, 2), VOID, np.uint8), np.zeros((2, 2), np.uint8))
    assert all(math.isnan(value) for value in scores.summary().values())
    assert np.isnan(scores.iou).all()


def test_the_summary_names_the_five_figures_in_order() -> None:
    scores = _scores(TRUTH, PREDICTION)
    assert list(scores.summary()) == [
        "pixel_accuracy",
        "mean_class_accuracy",
        "miou",
        "frequency_weighted_iou",
        "mean_f1",
    ]
    assert scores.summary()["miou"] == scores.miou


def test_a_class_that_is_never_predicted_has_no_precision() -> None:
    scores = _scores(np.array([0, 1], np.uint8), np.zeros(2, np.uint8), num_classes=2)
    assert math.isnan(scores.precision[1])
    assert (scores.class_accuracy[1], scores.iou[1]) == (0, 0)


@pytest.mark.parametrize("prediction", [PREDICTION, np.zeros_like(TRUTH)], ids=["all classes", "one class"])
def test_scores_come_back_from_json_to_the_last_bit(prediction: NDArray[np.uint8]) -> None:
    scores = _scores(TRUTH, prediction, num_classes=4)
    again = Scores.from_dict(json.loads(json.dumps(scores.to_dict(), allow_nan=False)))
    for field in dataclasses.fields(Scores):
        before, after = getattr(scores, field.name), getattr(again, field.name)
        assert type(after) is type(before)
        np.testing.assert_array_equal(after, before)  # for which NaN equals NaN


@pytest.mark.parametrize("figures", [{}, {"miou": 0.5}, {"miou": "much"}, {"unknown": 1}, 3])
def test_what_are_no_scores_is_refused(figures: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        Scores.from_dict(figures)


@given(seed=st.integers(0, 2**32 - 1), num_classes=st.integers(1, 7), pictures=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_adding_picture_by_picture_equals_adding_at_once(seed: int, num_classes: int, pictures: int) -> None:
    truth, prediction = _random(seed, num_classes, (pictures, 5, 6))
    one_by_one, at_once = ConfusionMatrix(num_classes, VOID), ConfusionMatrix(num_classes, VOID)
    for one_truth, one_prediction in zip(truth, prediction, strict=True):
        one_by_one.add(one_truth, one_prediction)
    at_once.add(truth, prediction)
    np.testing.assert_array_equal(one_by_one.counts, at_once.counts)


@given(seed=st.integers(0, 2**32 - 1), num_classes=st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_scores_equal_those_of_a_naive_loop_over_classes(seed: int, num_classes: int) -> None:
    truth, prediction = _random(seed, num_classes, (9, 11))
    scores = _scores(truth, prediction, num_classes)
    valid = truth != VOID
    t, p = truth[valid], prediction[valid]
    recalls, precisions, ious, dices, weighted = [], [], [], [], []
    for c in range(num_classes):
        hits, in_truth, in_prediction = int(((t == c) & (p == c)).sum()), int((t == c).sum()), int((p == c).sum())
        union = int(((t == c) | (p == c)).sum())
        recalls.append(hits / in_truth if in_truth else math.nan)
        precisions.append(hits / in_prediction if in_prediction else math.nan)
        ious.append(hits / union if union else math.nan)
        dices.append(2 * hits / (in_truth + in_prediction) if union else math.nan)
        weighted.append(in_truth * hits / union if union else 0.0)
    np.testing.assert_allclose(scores.class_accuracy, recalls)
    np.testing.assert_allclose(scores.precision, precisions)
    np.testing.assert_allclose(scores.iou, ious)
    np.testing.assert_allclose(scores.f1, dices)
    for mean, values in (
        (scores.mean_class_accuracy, recalls),
        (scores.miou, ious),
        (scores.mean_f1, dices),
    ):
        there = [value for value in values if not math.isnan(value)]
        assert mean == pytest.approx(sum(there) / len(there))
    assert scores.pixel_accuracy == pytest.approx((t == p).mean())
    assert scores.frequency_weighted_iou == pytest.approx(sum(weighted) / len(t))


def test_shapes_that_differ_are_refused_naming_both() -> None:
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(4, 2\)"):
        _scores(TRUTH, PREDICTION.reshape(4, 2))


@pytest.mark.parametrize(("true", "predicted", "words"), [(3, 0, r"truth has ids 3…3"), (0, 3, "prediction has ids 3")])
def test_an_id_outside_the_classes_is_refused_and_nothing_counted(true: int, predicted: int, words: str) -> None:
    matrix = ConfusionMatrix(3, VOID)
    with pytest.raises(ValueError, match=rf"{words}.*expected 0…2"):
        matrix.add(np.array([true], np.uint8), np.array([predicted], np.uint8))
    assert not matrix.counts.any()


def test_a_negative_id_is_refused_not_counted_from_the_end() -> None:
    matrix = ConfusionMatrix(3, VOID)
    with pytest.raises(ValueError, match="prediction has ids -1"):
        matrix.add(np.array([0]), np.array([-1]))


def test_small_integer_types_do_not_overflow_above_16_classes() -> None:
    matrix = ConfusionMatrix(200, VOID)
    matrix.add(np.array([199, 150], np.uint8), np.array([199, 3], np.uint8))
    assert (matrix.counts[199, 199], matrix.counts[150, 3], matrix.counts.sum()) == (1, 1, 2)


def _random(seed: int, num_classes: int, shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, num_classes, shape, np.uint8)
    truth[rng.random(shape) < 0.2] = VOID
    truth.flat[0] = 0
    return truth, rng.integers(0, num_classes, shape, np.uint8)
