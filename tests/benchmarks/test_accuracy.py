from pathlib import Path

import numpy as np
import pytest

from segship.benchmarks.accuracy import held_out, measure_accuracy
from segship.benchmarks.record import BenchError, digest
from segship.runtime.segmenter import Segmenter
from segship.training.data import IGNORE_INDEX, Dataset, Sample
from segship.training.metrics import ConfusionMatrix


class WithoutTruth:
    """A dataset all of whose pixels are void."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.classes, self.channels, self.depth = dataset.classes, dataset.channels, dataset.depth

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self._dataset[index]
        return Sample(sample.name, sample.image, np.full_like(sample.labels, IGNORE_INDEX))


def test_accuracy_is_that_of_single_calls(tiny_model: Path) -> None:
    dataset, name = held_out("demo", 5)
    with Segmenter(tiny_model, backend="opencv") as segmenter:
        found = measure_accuracy(segmenter, dataset, name)
        matrix = ConfusionMatrix(segmenter.card.num_classes, IGNORE_INDEX)
        for sample in (dataset[index] for index in range(len(dataset))):
            matrix.add(sample.labels, segmenter(sample.image).labels)
    scores = matrix.scores()
    assert (found.miou, found.pixel_accuracy) == (scores.miou, scores.pixel_accuracy)
    assert (found.data, found.images) == ("demo, validation", 5)
    names = [dataset[index].name for index in range(len(dataset))]
    assert found.names_digest == digest("\0".join(names).encode())
    assert list(found.iou) == list(dataset.classes.names)
    values = [np.nan if value is None else value for value in found.iou.values()]
    np.testing.assert_array_equal(values, scores.iou)


def test_a_limit_takes_pictures_from_all_over_the_validation_part() -> None:
    every, _ = held_out("demo")
    some, _ = held_out("demo", 3)
    assert [some[index].name for index in range(len(some))] == [every[index].name for index in (0, 20, 40)]
    assert (some.classes, some.channels, some.depth) == (every.classes, every.channels, every.depth)
    assert len(held_out("demo", 10_000)[0]) == len(every)


def test_other_classes_are_an_error_that_says_both(binary_model: Path) -> None:
    dataset, name = held_out("demo", 1)
    words = r"has the 2 classes rest, object, and the dataset has the \d+ classes ground, brick, "
    with Segmenter(binary_model, backend="opencv") as segmenter, pytest.raises(BenchError, match=words):
        measure_accuracy(segmenter, dataset, name)


def test_pictures_without_any_truth_are_an_error(tiny_model: Path) -> None:
    dataset = WithoutTruth(held_out("demo", 2)[0])
    with Segmenter(tiny_model, backend="opencv") as segmenter, pytest.raises(BenchError, match="no pixel with a class"):
        measure_accuracy(segmenter, dataset, "void")


def test_an_error_of_a_picture_ends_the_measurement(tiny_model: Path) -> None:
    class Damaged(WithoutTruth):
        def __getitem__(self, index: int) -> Sample:
            raise BenchError("picture 0 is damaged")

    dataset = Damaged(held_out("demo", 2)[0])
    with Segmenter(tiny_model, backend="opencv") as segmenter, pytest.raises(BenchError, match="picture 0 is damaged"):
        measure_accuracy(segmenter, dataset, "damaged")
