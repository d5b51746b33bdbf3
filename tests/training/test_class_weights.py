from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from segship.runtime.errors import DatasetError, TrainingError
from segship.runtime.palettes import ClassTable
from segship.runtime.preprocess import Depth
from segship.training.class_weights import median_frequency_weights, parse_weights, resolve_class_weights
from segship.training.data import Sample, open_dataset

VOID = 255


@dataclass
class Masks:
    """A dataset of given masks with classes a, b, c, …."""

    masks: list[list[int]]
    num_classes: int = 3
    channels: int = 1
    depth: Depth = "uint8"

    @property
    def classes(self) -> ClassTable:
        return ClassTable.of([("abcdef"[i], (i, i, i)) for i in range(self.num_classes)])

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> Sample:
        labels: NDArray[np.uint8] = np.array([self.masks[index]], np.uint8)
        return Sample(str(index), np.zeros((*labels.shape, 1), np.uint8), labels)


class TestMedianFrequency:
    def test_a_class_is_measured_against_the_pictures_that_it_occurs_in(self) -> None:
        masks = Masks([[0, 0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 2]])
        # frequencies 9/12, 2/8 and 1/4; their median is 1/4
        assert median_frequency_weights(masks) == pytest.approx((1 / 3, 1, 1))

    def test_void_pixels_count_nowhere(self) -> None:
        masks = Masks([[0, 0, 1, VOID, VOID], [VOID, 2, 2, 0, VOID]])
        # frequencies 3/6, 1/3 and 2/3
        assert median_frequency_weights(masks) == pytest.approx((1, 3 / 2, 3 / 4))

    def test_a_class_that_never_occurs_gets_0_and_is_left_out_of_the_median(self) -> None:
        masks = [[0, 0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 3]]
        with_c, without_c = Masks(masks, num_classes=5), Masks([[x - (x == 3) for x in mask] for mask in masks])
        a, b, d = median_frequency_weights(without_c)
        assert median_frequency_weights(with_c) == (a, b, 0, d, 0)

    def test_progress_is_told_of_each_sample(self) -> None:
        told: list[int] = []
        median_frequency_weights(Masks([[0], [1], [2]]), lambda: told.append(1))
        assert len(told) == 3

    def test_nothing_but_void_is_refused(self) -> None:
        with pytest.raises(DatasetError, match="every pixel of the training part is void"):
            median_frequency_weights(Masks([[VOID, VOID], [VOID]]))

    def test_a_dataset_on_disk_gives_what_a_naive_loop_gives(
        self, write_camvid: Callable[..., Path], tmp_path: Path
    ) -> None:
        dataset = open_dataset(f"camvid:{write_camvid(tmp_path / 'camvid', size=(16, 24))}").train
        frequencies = []
        for c in range(len(dataset.classes)):
            masks = [
                sample.labels for sample in (dataset[i] for i in range(len(dataset))) if (sample.labels == c).any()
            ]
            frequencies.append(sum((m == c).sum() for m in masks) / sum((m != VOID).sum() for m in masks))
        weights = median_frequency_weights(dataset)
        assert len({round(weight, 6) for weight in weights}) > 5
        np.testing.assert_allclose(weights, np.median(frequencies) / frequencies)


class TestParsing:
    def test_numbers_are_read_in_the_order_of_the_classes(self) -> None:
        assert parse_weights("1, 2,0.5,0", 4) == (1, 2, 0.5, 0)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("1,2", "is '1,2', a list of 2; expected none, auto, or 3 numbers separated by commas, one for each class"),
            ("1,2,3,4", "a list of 4"),
            ("atuo", "class_weights is 'atuo'; expected none, auto, or 3 numbers"),
            ("", "class_weights is ''; expected none, auto"),
            ("1,,3", "class_weights is '1,,3'; expected none, auto"),
            ("1,-2,3", "class_weights is '1,-2,3'; expected numbers of 0 or more, not all 0"),
            ("0,0,0", "not all 0"),
            ("1,nan,1", "expected numbers of 0 or more"),
            ("1,inf,1", "expected numbers of 0 or more"),
        ],
    )
    def test_what_are_no_weights_is_refused(self, text: str, words: str) -> None:
        with pytest.raises(TrainingError, match=words):
            parse_weights(text, 3)


def test_a_setting_is_none_auto_or_the_numbers_themselves() -> None:
    masks = Masks([[0, 0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 2]])
    assert resolve_class_weights("none", masks) is None
    assert resolve_class_weights("auto", masks) == median_frequency_weights(masks)
    assert resolve_class_weights("1,2,3", masks) == (1, 2, 3)
    with pytest.raises(TrainingError, match="a list of 1"):
        resolve_class_weights("1", masks)
