import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from segship.benchmarks.accuracy import held_out, measure_accuracy
from segship.benchmarks.model_update import ModelUpdate, compare_models, update_sheet, update_table, write_update
from segship.benchmarks.record import BenchError
from segship.benchmarks.update_counts import PictureCounts, miou_interval
from segship.benchmarks.update_facts import FEWEST_PICTURES, Flips
from segship.benchmarks.update_sheet import change_row
from segship.runtime.card import ModelCard
from segship.runtime.model_file import read_card, write_card
from segship.runtime.preprocess import Preprocess
from segship.runtime.segmenter import Segmenter
from segship.training.data import IGNORE_INDEX, Dataset, Sample

TRUTH = np.array([[0, 0, 1, 1, 2, IGNORE_INDEX]], np.uint8)
OLD = np.array([[0, 1, 0, 0, 2, 0]], np.uint8)
NEW = np.array([[0, 0, 1, 2, 0, 1]], np.uint8)


@pytest.fixture(scope="module")
def pictures() -> Dataset:
    return held_out("demo", FEWEST_PICTURES)[0]


@pytest.fixture(scope="module")
def models(tiny_model: Path, open_model: Path) -> Iterator[tuple[Segmenter, Segmenter]]:
    """The same network twice, the second time on smaller pictures."""
    with Segmenter(tiny_model, backend="opencv") as old, Segmenter(open_model, backend="ort", size=(32, 48)) as new:
        yield old, new


@pytest.fixture(scope="module")
def update(models: tuple[Segmenter, Segmenter], pictures: Dataset) -> ModelUpdate:
    return compare_models(*models, pictures)


def test_a_pixel_that_changes_is_counted_at_its_true_class() -> None:
    counts = PictureCounts.of(TRUTH, OLD, NEW, 3)
    assert counts.flips.tolist() == [[0, 0, 1], [1, 1, 0], [0, 1, 0]]
    assert counts.sums.tolist() == [[2, 2, 1], [1, 0, 1], [3, 1, 1], [2, 1, 0], [3, 1, 1]]


def test_figures_are_those_of_each_model_measured_alone(
    update: ModelUpdate, models: tuple[Segmenter, Segmenter], pictures: Dataset
) -> None:
    old, new = (measure_accuracy(segmenter, pictures, "demo") for segmenter in models)
    assert [update.old_miou, update.new_miou] == pytest.approx([old.miou, new.miou])
    accuracies = (update.old_pixel_accuracy, update.new_pixel_accuracy)
    assert accuracies == (old.pixel_accuracy, new.pixel_accuracy)
    assert {one.name: one.old_iou for one in update.classes} == old.iou
    assert {one.name: one.new_iou for one in update.classes} == new.iou


def test_what_changed_is_the_same_by_class_and_by_picture_and_explains_the_difference(
    update: ModelUpdate, pictures: Dataset
) -> None:
    for parts in (update.classes, update.images):
        sums = [sum(getattr(part.flips, field.name) for part in parts) for field in dataclasses.fields(Flips)]
        assert Flips(*sums) == update.flips
    gained = (update.flips.to_right - update.flips.to_wrong) / update.flips.pixels
    assert update.new_pixel_accuracy - update.old_pixel_accuracy == pytest.approx(gained)
    assert update.flips.changed > 0
    shares = [image.flips.share for image in update.most_changed(3)]
    assert shares == sorted((image.flips.share for image in update.images), reverse=True)[:3]
    assert [image.name for image in update.images] == [pictures[index].name for index in range(len(pictures))]


def test_a_model_in_its_own_place_changes_nothing(tiny_model: Path, pictures: Dataset, tmp_path: Path) -> None:
    with Segmenter(tiny_model, backend="opencv") as old, Segmenter(tiny_model, backend="opencv") as new:
        update = compare_models(old, new, pictures)
        sheet = update_sheet(update, pictures, old, new)
    assert sheet is None
    assert write_update(update, sheet, tmp_path) == {"update.json", "update.md"}
    assert (update.flips.changed, update.interval) == (0, (0.0, 0.0))
    assert update.verdict == "no more than chance"
    assert not update.is_worse()
    assert not (tmp_path / "update.png").exists()
    assert "update.png" not in (tmp_path / "update.md").read_text()


def _counts(rng: np.random.Generator, *, old_right: float, new_right: float) -> PictureCounts:
    truth = rng.integers(0, 3, (20, 20)).astype(np.uint8)
    old, new = (
        np.where(rng.random(truth.shape) < share, truth, (truth + 1) % 3).astype(np.uint8)
        for share in (old_right, new_right)
    )
    return PictureCounts.of(truth, old, new, 3)


def test_the_interval_holds_the_difference_and_is_the_same_again() -> None:
    rng = np.random.default_rng(5)
    pictures = [_counts(rng, old_right=0.8, new_right=0.7) for _ in range(40)]
    first = miou_interval(pictures)
    assert first is not None
    low, high = first
    assert -0.15 < low < 0.7 / 1.3 - 0.8 / 1.2 < high < -0.1  # what is right, over that and twice what is wrong
    assert miou_interval(pictures) == first
    four_times = miou_interval(pictures * 4)
    assert four_times is not None
    assert (four_times[1] - four_times[0]) / (high - low) == pytest.approx(0.5, abs=0.08)
    assert miou_interval(pictures[: FEWEST_PICTURES - 1]) is None


def test_alike_models_differ_by_no_more_than_chance() -> None:
    rng = np.random.default_rng(6)
    interval = miou_interval([_counts(rng, old_right=0.8, new_right=0.8) for _ in range(40)])
    assert interval is not None
    assert interval[0] < 0 < interval[1]


@pytest.mark.parametrize(("tolerance", "is_worse"), [(0.0, True), (0.009, True), (0.011, False)])
def test_worse_is_what_loses_more_than_is_tolerated(update: ModelUpdate, tolerance: float, is_worse: bool) -> None:
    lost = dataclasses.replace(update, old_miou=0.60, new_miou=0.59)
    assert lost.is_worse(tolerance) == is_worse
    assert not dataclasses.replace(update, old_miou=0.59, new_miou=0.60).is_worse(tolerance)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.01, 0.02), "better"),
        ((-0.02, -0.01), "worse"),
        ((-0.01, 0.02), "no more than chance"),
        (None, "not decided: fewer than 10 pictures"),
    ],
)
def test_the_verdict_is_that_of_the_interval(
    update: ModelUpdate, interval: tuple[float, float] | None, verdict: str
) -> None:
    assert dataclasses.replace(update, interval=interval).verdict == verdict


def test_models_of_other_classes_are_an_error(
    tiny_model: Path, binary_model: Path, pictures: Dataset, tmp_path: Path
) -> None:
    turned = tmp_path / "turned.onnx"
    turned.write_bytes(tiny_model.read_bytes())
    card = read_card(turned)
    write_card(turned, dataclasses.replace(card, class_names=card.class_names[::-1], certificate=None))
    words = {
        binary_model: r"tiny.onnx has the 6 classes ground, .*, and binary.onnx the 2 classes rest, object; only",
        turned: "the same classes in another order: class 0 is ground and wire",
    }
    for model, expected in words.items():
        with (
            Segmenter(tiny_model, backend="opencv") as old,
            Segmenter(model, backend="opencv") as new,
            pytest.raises(BenchError, match=expected),
        ):
            compare_models(old, new, pictures)


def test_an_update_is_written_as_document_report_and_sheet(
    update: ModelUpdate, models: tuple[Segmenter, Segmenter], pictures: Dataset, tmp_path: Path
) -> None:
    write_update(update, update_sheet(update, pictures, *models), tmp_path / "out")
    document = json.loads((tmp_path / "out/update.json").read_text())
    assert document["old_miou"] == update.old_miou
    assert document["verdict"] == update.verdict
    assert len(document["images"]) == len(pictures)
    report = (tmp_path / "out/update.md").read_text()
    most = update.most_changed(1)[0]
    assert f"| {most.name} | {100 * most.flips.share:.2f} % |" in report
    assert "![changes](update.png)" in report
    assert all(f"| {one.name} | " in report for one in update.classes)
    with Image.open(tmp_path / "out/update.png") as sheet:
        assert sheet.width >= 5 * 320
        assert sheet.height > 8 * 256
    console = Console(width=140, record=True)
    console.print(update_table(update))
    text = console.export_text()
    assert f"{update.old_miou:.4f}" in text
    assert all(one.name in text for one in update.classes)


def test_a_row_shows_in_colours_what_became_right_wrong_and_otherwise_wrong() -> None:
    card = ModelCard(("a", "b", "c"), ((0, 0, 0), (0, 0, 255), (255, 255, 0)), Preprocess((1, 1)))
    large: list[NDArray[np.uint8]] = [labels.repeat(320, axis=0).repeat(53, axis=1) for labels in (TRUTH, OLD, NEW)]
    truth, old, new = large
    sample = Sample("ä", np.full((*truth.shape, 3), 255, np.uint8), truth)
    row = change_row(sample, old, new, card, ["ä" * 99, "truth", "old", "new", "changed"])
    change = row[24 + 160, -322:]  # the middle line of the last cell, below its title
    colors = [tuple(change[round((place + 0.5) * 53)].tolist()) for place in range(6)]
    green, red, grey, pale = (0, 158, 60), (220, 20, 40), (70, 70, 70), (255, 255, 255)
    assert colors == [pale, green, green, grey, red, pale]
