import dataclasses
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from segship.runtime.card import ModelCard
from segship.runtime.compare import (
    LOOSE,
    STRICT,
    Comparison,
    Expected,
    compare,
    gap_map,
    gate_of,
    near_tie_map,
    tolerance,
)
from segship.runtime.labels import labels_from_logits, resize_labels
from segship.runtime.preprocess import Preprocess
from segship.runtime.processing import Stages
from segship.runtime.result import Result

SIZE = (12, 16)
CARD = ModelCard(("a", "b", "c"), ((0, 0, 0), (9, 9, 9), (99, 0, 0)), Preprocess((6, 8)))


BINARY = ModelCard(("a", "b"), ((0, 0, 0), (9, 9, 9)), Preprocess((6, 8)), task="binary", threshold=0.7)
AT_THRESHOLD = math.log(0.7 / 0.3)


def result(logits: NDArray[np.float32], size: tuple[int, int] = SIZE, card: ModelCard = CARD) -> Result:
    image = np.zeros((*size, 3), np.uint8)
    return Result("picture", image, labels_from_logits(logits, size, card), logits, card)


def expected(logits: NDArray[np.float32], size: tuple[int, int] = SIZE, card: ModelCard = CARD) -> Expected:
    reference = result(logits, size, dataclasses.replace(card, head="logits"))
    return Expected.of(reference, Stages(reference.image, None, None), card)


def only_labels(logits: NDArray[np.float32]) -> Result:
    labels = resize_labels(labels_from_logits(logits, (6, 8), CARD), SIZE)
    return dataclasses.replace(result(logits), labels=labels, logits=None)


@pytest.fixture
def logits() -> NDArray[np.float32]:
    """Of which no two are near each other."""
    classes = np.random.default_rng(2).integers(0, 3, (6, 8))
    return np.where(classes == np.arange(3)[:, None, None], np.float32(3), np.float32(-1))


def test_a_result_passes_against_itself(logits: NDArray[np.float32]) -> None:
    comparison = compare(expected(logits), result(logits.copy()))
    assert (comparison.max_abs, comparison.p99_abs, comparison.beyond_tolerance, comparison.pixels) == (
        0,
        0,
        0,
        12 * 16,
    )
    assert comparison.cosine == pytest.approx(1)
    assert (comparison.differing_pixels, comparison.unexplained_flips, comparison.miou) == (0, 0, 1)
    assert comparison.passes(STRICT)
    assert comparison.label_agreement == 1


def test_the_tolerance_is_absolute_plus_relative() -> None:
    np.testing.assert_allclose(tolerance(np.array([0, 1, -10.0])), [1e-4, 1.1e-3, 1.01e-2])


@pytest.mark.parametrize(("share", "passes"), [(0.9, True), (1.2, False)])
def test_a_logit_may_differ_by_the_tolerance_and_no_more(
    logits: NDArray[np.float32], share: float, passes: bool
) -> None:
    changed = logits.copy()
    changed[1, 2, 3] += share * tolerance(logits)[1, 2, 3]
    comparison = compare(expected(logits), result(changed))
    assert comparison.passes(STRICT) is passes
    assert comparison.beyond_tolerance == (0 if passes else 1)
    assert comparison.max_abs == pytest.approx(share * tolerance(logits)[1, 2, 3], rel=1e-3)


def test_logits_that_are_no_numbers_do_not_pass(logits: NDArray[np.float32]) -> None:
    changed = logits.copy()
    changed[0, 0, 0] = np.nan
    comparison = compare(expected(logits), dataclasses.replace(result(logits), logits=changed))
    assert comparison.beyond_tolerance == 1
    assert not comparison.passes(STRICT)


def test_a_flip_is_explained_where_the_reference_is_a_near_tie(logits: NDArray[np.float32]) -> None:
    logits[:, 2, 3] = [1, 1.0001, -1]
    changed = logits.copy()
    changed[:, 2, 3] = [1.0001, 1, -1]
    comparison = compare(expected(logits, (6, 8)), result(changed, (6, 8)))
    assert comparison.differing_pixels == 1
    assert comparison.unexplained_flips == 0
    assert comparison.beyond_tolerance == 0
    assert comparison.label_agreement == pytest.approx(47 / 48)
    assert not comparison.passes(STRICT)  # one pixel in 48 is more than one in 10,000


def test_a_flip_elsewhere_is_a_fault(logits: NDArray[np.float32]) -> None:
    changed = logits.copy()
    changed[:, 2, 3] = np.roll(changed[:, 2, 3], 1)
    comparison = compare(expected(logits, (6, 8)), result(changed, (6, 8)))
    assert (comparison.differing_pixels, comparison.unexplained_flips, comparison.beyond_tolerance) == (1, 1, 2)
    assert not comparison.passes(STRICT)


def test_labels_are_compared_as_labels_are_upscaled(logits: NDArray[np.float32]) -> None:
    comparison = compare(expected(logits), only_labels(logits))
    assert (comparison.differing_pixels, comparison.unexplained_flips, comparison.beyond_tolerance) == (0, 0, 0)
    assert (comparison.max_abs, comparison.p99_abs, comparison.cosine) == (None, None, None)
    assert comparison.passes(STRICT)


def test_a_wrong_label_is_a_fault_without_logits_too(logits: NDArray[np.float32]) -> None:
    candidate = only_labels(logits)
    candidate.labels[5, 5] = (candidate.labels[5, 5] + 1) % 3
    comparison = compare(expected(logits), candidate)
    assert comparison.unexplained_flips == 1
    assert not comparison.passes(STRICT)


def test_near_ties_are_where_the_two_largest_may_swap() -> None:
    gaps = np.array([[0, 2e-4, 2.1e-3, 2.3e-3, 1]], np.float32)
    logits = np.stack([np.ones_like(gaps), 1 - gaps, np.full_like(gaps, -5)])
    np.testing.assert_array_equal(near_tie_map(logits, (1, 5), CARD), [[True, True, True, False, False]])


def test_near_ties_of_one_logit_are_where_it_may_cross_the_threshold() -> None:
    allowed = 1e-4 + 1e-3 * AT_THRESHOLD
    logits = np.float32(AT_THRESHOLD) + np.float32(allowed) * np.array([[[0, 0.9, -0.9, 1.1, -1.1]]], np.float32)
    np.testing.assert_array_equal(near_tie_map(logits, (1, 5), BINARY), [[True, True, True, False, False]])


@pytest.mark.parametrize(("share", "unexplained"), [(0.9, 0), (1.1, 1)])
@pytest.mark.parametrize("head", ["logits", "labels"])
def test_a_flip_of_one_logit_is_explained_where_it_was_near_the_threshold(
    share: float, unexplained: int, head: str
) -> None:
    logits = np.where(np.random.default_rng(2).random((1, 6, 8)) < 0.5, np.float32(3), np.float32(-1))
    changed = logits.copy()
    logits[0, 2, 3] = AT_THRESHOLD + share * tolerance(np.array(AT_THRESHOLD))
    changed[0, 2, 3] = AT_THRESHOLD - 1e-5
    candidate = dataclasses.replace(result(changed, (6, 8), BINARY), logits=changed if head == "logits" else None)
    comparison = compare(expected(logits, (6, 8), BINARY), candidate)
    assert (comparison.differing_pixels, comparison.unexplained_flips) == (1, unexplained)


def test_comparisons_of_several_pictures_add_up() -> None:
    one = Comparison(1, 0.1, 0.02, 0.9, 3, 100, 5, 1, (60, 35), (65, 40))
    other = Comparison(2, 0.05, 0.03, 0.8, 1, 300, 1, 0, (299, 0), (300, 1))
    merged = Comparison.merged([one, other])
    assert merged == Comparison(3, 0.1, 0.03, 0.8, 4, 400, 6, 1, (359, 35), (365, 41))
    assert merged.label_agreement == pytest.approx(1 - 6 / 400)
    assert merged.miou == pytest.approx((359 / 365 + 35 / 41) / 2)


def test_the_iou_of_masks_leaves_out_classes_that_neither_shows(logits: NDArray[np.float32]) -> None:
    logits[2] = -5
    logits[0, 0, 0], logits[1, 0, 0] = 3, -1
    changed = logits.copy()
    changed[0, 0, 0], changed[1, 0, 0] = -1, 3
    comparison = compare(expected(logits, (6, 8)), result(changed, (6, 8)))
    assert comparison.either[2] == 0
    ious = [both / either for both, either in zip(comparison.shared[:2], comparison.either[:2], strict=True)]
    assert comparison.miou == pytest.approx(sum(ious) / 2)
    assert comparison.miou < 1


def test_sixteen_bits_may_move_values_but_not_labels(logits: NDArray[np.float32]) -> None:
    comparison = compare(expected(logits), result(logits + np.float32(0.1)))
    assert not comparison.passes(STRICT)
    assert comparison.passes(LOOSE)
    changed = logits.copy()
    changed[:, 2, 3] = np.roll(changed[:, 2, 3], 1)
    assert not compare(expected(logits), result(changed)).passes(LOOSE)


def test_a_precision_has_its_gate() -> None:
    assert [gate_of(precision) for precision in ("fp32", "fp16", "bf16")] == [STRICT, LOOSE, LOOSE]
    assert str(LOOSE) == "≥ 99.9 % same labels"
    assert str(STRICT).startswith("|Δ| ≤ 1e-4 + 1e-3·|ref|")


def test_probabilities_are_compared_as_probabilities(logits: NDArray[np.float32]) -> None:
    card = dataclasses.replace(CARD, head="probabilities", output_name="probabilities")
    shifted = logits + np.float32(7)  # the same probabilities
    comparison = compare(expected(logits, (6, 8), card), result(shifted, (6, 8), card))
    assert comparison.beyond_tolerance == 0
    assert comparison.max_abs == pytest.approx(0, abs=1e-6)


def test_a_frame_is_expected_at_its_own_size(logits: NDArray[np.float32]) -> None:
    card = dataclasses.replace(CARD, head="labels", output_name="labels", input_form="pixels", frame=SIZE)
    wanted = expected(logits, SIZE, card)
    assert wanted.labels.shape == wanted.gap.shape == SIZE
    assert wanted.logits is None
    np.testing.assert_array_equal(wanted.labels, labels_from_logits(logits, SIZE, CARD))


def test_the_gap_is_measured_in_what_rounding_may_move() -> None:
    logits = np.array([[[1.0]], [[0.5]], [[-5.0]]], np.float32)
    assert gap_map(logits, (1, 1), CARD)[0, 0] == pytest.approx(0.5 / (2 * 1.1e-3))


def test_pictures_of_two_sizes_and_references_without_logits_are_refused(logits: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match=r"a picture of \(12, 16\) is compared with one of \(6, 8\)"):
        compare(expected(logits), result(logits, (6, 8)))
    with pytest.raises(ValueError, match="a reference needs logits"):
        Expected.of(only_labels(logits), Stages(np.zeros((*SIZE, 3), np.uint8), None, None), CARD)
