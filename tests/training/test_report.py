import csv
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.palettes import DEMO
from segship.runtime.preprocess import Depth
from segship.training.checkpoint import load_checkpoint
from segship.training.data import Sample
from segship.training.metrics import ConfusionMatrix
from segship.training.report import EpochRecord, draw_curves, draw_samples, write_metrics

NAMES = ("road", "tree, or bush", "wire")


class Photos:
    """The same picture so many times, its truth of one class and void."""

    classes = DEMO
    channels = 3
    depth: Depth = "uint8"

    def __init__(self, photo: NDArray[np.uint8], count: int) -> None:
        labels = np.full(photo.shape[:2], 3, np.uint8)
        labels[:, ::2] = 255
        self.sample, self.count = Sample("photo", photo, labels), count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return dataclasses.replace(self.sample, name=str(range(self.count)[index]))


@pytest.fixture
def records() -> list[EpochRecord]:
    """Three epochs; the class "wire" occurs nowhere, so that its figures are NaN."""
    made = []
    for epoch in (1, 2, 3):
        matrix = ConfusionMatrix(3, 255)
        matrix.add(np.array([0] * 4 + [1] * 4), np.array([0] * epoch + [1] * (8 - epoch)))
        made.append(EpochRecord(epoch, 0.001 / epoch, 1 / epoch, matrix.scores(), 12.34))
    return made


def test_the_csv_has_a_row_an_epoch_and_a_column_a_figure(records: list[EpochRecord], tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.csv", records, NAMES)
    with (tmp_path / "metrics.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == [
        "epoch",
        "learning_rate",
        "train_loss",
        "pixel_accuracy",
        "mean_class_accuracy",
        "miou",
        "frequency_weighted_iou",
        "mean_f1",
        "seconds",
        *(f"{figure} {name}" for figure in ("IoU", "accuracy", "F1") for name in NAMES),
    ]
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for row, record in zip(rows, records, strict=True):
        for name, value in record.scores.summary().items():
            assert float(row[name]) == pytest.approx(value, abs=1e-6)
        for title, values in (
            ("IoU", record.scores.iou),
            ("accuracy", record.scores.class_accuracy),
            ("F1", record.scores.f1),
        ):
            for name, value in zip(NAMES, values, strict=True):
                assert float(row[f"{title} {name}"]) == pytest.approx(value, abs=1e-6, nan_ok=True)
        assert math.isnan(float(row["IoU wire"]))
        assert float(row["train_loss"]) == pytest.approx(record.train_loss, abs=1e-6)
        assert float(row["learning_rate"]) == pytest.approx(record.learning_rate, rel=1e-5)
        assert row["seconds"] == "12.3"


def test_curves_are_a_picture_also_with_nan_one_epoch_or_many_classes(
    records: list[EpochRecord], tmp_path: Path
) -> None:
    draw_curves(tmp_path / "three.png", records, NAMES)
    draw_curves(tmp_path / "one.png", records[:1], NAMES)
    matrix = ConfusionMatrix(31, 255)
    matrix.add(np.arange(31), np.arange(31))
    many = EpochRecord(1, 0.0, 0.7, matrix.scores(), 1.0)
    draw_curves(tmp_path / "many.png", [many], tuple(f"class {number}" for number in range(31)))
    pictures = {}
    for name in ("three", "one", "many"):
        with PillowImage.open(tmp_path / f"{name}.png") as image:
            assert image.size == (1540, 440)
            pictures[name] = np.asarray(image.convert("RGB"))
        assert len(np.unique(pictures[name].reshape(-1, 3), axis=0)) > 50
    assert (pictures["three"] != pictures["one"]).any()


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 3), (9, 4)])
def test_the_sheet_shows_photo_truth_and_prediction_of_up_to_four_pictures(
    tiny_checkpoint: Path, photo: NDArray[np.uint8], tmp_path: Path, count: int, rows: int
) -> None:
    network, card = load_checkpoint(tiny_checkpoint)
    draw_samples(tmp_path / "samples/sheet.png", network, card, Photos(photo, count), torch.device("cpu"))
    with PillowImage.open(tmp_path / "samples/sheet.png") as image:
        sheet = np.asarray(image.convert("RGB"))
    height, width = 180, 240  # of a cell: the photo is 90×120
    assert sheet.shape == (24 + rows * (height + 4), 3 * (width + 4), 3)
    first = sheet[24 : 24 + height]
    np.testing.assert_array_equal(first[::2, :width:2], photo)  # doubled
    truth = first[::2, width + 4 : 2 * width + 4 : 2]
    assert (truth[:, 1::2] == DEMO.palette[3]).all()
    assert (truth[:, ::2] == 0).all(), "void is black"
    prediction = first[:, 2 * (width + 4) : 2 * (width + 4) + width].reshape(-1, 3)
    assert {tuple(map(int, color)) for color in np.unique(prediction, axis=0)} <= set(DEMO.palette)
