import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.errors import CheckpointError
from segship.runtime.palettes import DEMO
from segship.runtime.preprocess import Depth
from segship.training.checkpoint import load_checkpoint
from segship.training.data import Sample
from segship.training.metrics import TOTALS, ConfusionMatrix, Scores
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
        made.append(_record(epoch, matrix.scores()))
    return made


def _record(epoch: int, scores: Scores | None) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        step=10 * epoch,
        learning_rate=0.001 / epoch,
        train_loss=1 / epoch,
        data_wait=0.1 / epoch,
        scores=scores,
        seconds=12.34,
    )


def test_the_csv_has_a_row_an_epoch_and_a_column_a_figure(records: list[EpochRecord], tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.csv", records, NAMES)
    with (tmp_path / "metrics.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == [
        "epoch",
        "step",
        "learning_rate",
        "train_loss",
        "pixel_accuracy",
        "mean_class_accuracy",
        "miou",
        "frequency_weighted_iou",
        "mean_f1",
        "seconds",
        "data_wait",
        *(f"{figure} {name}" for figure in ("IoU", "accuracy", "F1") for name in NAMES),
    ]
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "10"), ("2", "20"), ("3", "30")]
    for row, record in zip(rows, records, strict=True):
        scores = record.scores
        assert scores is not None
        for name, value in scores.summary().items():
            assert float(row[name]) == pytest.approx(value, abs=1e-6)
        for title, values in (("IoU", scores.iou), ("accuracy", scores.class_accuracy), ("F1", scores.f1)):
            for name, value in zip(NAMES, values, strict=True):
                assert float(row[f"{title} {name}"]) == pytest.approx(value, abs=1e-6, nan_ok=True)
        assert math.isnan(float(row["IoU wire"]))
        assert float(row["train_loss"]) == pytest.approx(record.train_loss, abs=1e-6)
        assert float(row["learning_rate"]) == pytest.approx(record.learning_rate, rel=1e-5)
        assert float(row["data_wait"]) == pytest.approx(record.data_wait, abs=1e-3)
        assert row["seconds"] == "12.3"


def test_an_epoch_without_validation_has_empty_figures_in_the_csv(records: list[EpochRecord], tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.csv", [_record(1, None), records[1]], NAMES)
    with (tmp_path / "metrics.csv").open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    not_validated = {name for name, value in first.items() if value == ""}
    assert not_validated == set(TOTALS) | {f"{figure} {name}" for figure in ("IoU", "accuracy", "F1") for name in NAMES}
    assert "" not in second.values()
    assert first["train_loss"] == "1.000000"


def test_a_record_comes_back_from_json_so_that_it_writes_the_same_csv(
    records: list[EpochRecord], tmp_path: Path
) -> None:
    odd = dataclasses.replace(records[0], learning_rate=0.1 + 0.2, train_loss=5e-324, seconds=1e300)
    for record in (odd, *records, _record(4, None)):
        again = EpochRecord.from_dict(json.loads(json.dumps(record.to_dict(), allow_nan=False)))
        for field in dataclasses.fields(EpochRecord):
            if field.name != "scores":
                assert getattr(again, field.name) == getattr(record, field.name)
        assert again.to_dict() == record.to_dict()
        write_metrics(tmp_path / "before.csv", [record], NAMES)
        write_metrics(tmp_path / "after.csv", [again], NAMES)
        assert (tmp_path / "before.csv").read_bytes() == (tmp_path / "after.csv").read_bytes()


@pytest.mark.parametrize("change", [{"step": None}, {"train_loss": "low"}, {"scores": {"miou": 0.5}}, {"scores": 7}])
def test_a_record_with_a_wrong_value_is_damaged(records: list[EpochRecord], change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="the record of an epoch is damaged"):
        EpochRecord.from_dict(records[0].to_dict() | change)


def test_a_record_that_lacks_a_value_is_damaged_naming_it(records: list[EpochRecord]) -> None:
    plain = records[0].to_dict()
    del plain["data_wait"]
    with pytest.raises(CheckpointError, match=r"damaged.*data_wait"):
        EpochRecord.from_dict(plain)


def _picture(path: Path) -> NDArray[np.uint8]:
    with PillowImage.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_curves_are_a_picture_also_with_nan_one_epoch_or_many_classes(
    records: list[EpochRecord], tmp_path: Path
) -> None:
    pictures = {}
    for name, shown, class_names in (
        ("three", records, NAMES),
        ("one", records[:1], NAMES),
        ("many", [_perfect(31)], tuple(f"class {number}" for number in range(31))),
        ("crowd", [_perfect(60)], tuple(f"class {number}" for number in range(60))),
    ):
        draw_curves(tmp_path / f"{name}.png", shown, class_names)
        pictures[name] = _picture(tmp_path / f"{name}.png")
        assert pictures[name].shape == (440, 1540, 3)
        assert len(np.unique(pictures[name].reshape(-1, 3), axis=0)) > 50
    assert (pictures["three"] != pictures["one"]).any()


def _perfect(num_classes: int) -> EpochRecord:
    matrix = ConfusionMatrix(num_classes, 255)
    matrix.add(np.arange(num_classes), np.arange(num_classes))
    return _record(1, matrix.scores())


def test_curves_skip_the_epochs_without_validation(records: list[EpochRecord], tmp_path: Path) -> None:
    draw_curves(tmp_path / "none.png", [_record(epoch, None) for epoch in (1, 2, 3)], NAMES)
    draw_curves(tmp_path / "some.png", [records[0], _record(2, None), records[2]], NAMES)
    draw_curves(tmp_path / "all.png", records, NAMES)
    nothing, some, everything = (_picture(tmp_path / f"{name}.png") for name in ("none", "some", "all"))
    loss = np.s_[:, :450]
    np.testing.assert_array_equal(nothing[loss], everything[loss])
    np.testing.assert_array_equal(some[loss], everything[loss])
    assert (nothing != some).any()
    assert (some != everything).any()


def test_curves_run_over_the_steps_where_an_epoch_was_validated_more_than_once(
    records: list[EpochRecord], tmp_path: Path
) -> None:
    within_one_epoch = [dataclasses.replace(record, epoch=1) for record in records]
    draw_curves(tmp_path / "within.png", within_one_epoch, NAMES)
    in_two_others = [dataclasses.replace(record, epoch=7 + (record.epoch == 3)) for record in records]
    draw_curves(tmp_path / "others.png", in_two_others, NAMES)
    draw_curves(tmp_path / "epochs.png", records, NAMES)
    assert (_picture(tmp_path / "within.png") == _picture(tmp_path / "others.png")).all(), "only steps are shown"
    assert (_picture(tmp_path / "within.png") != _picture(tmp_path / "epochs.png")).any()


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
