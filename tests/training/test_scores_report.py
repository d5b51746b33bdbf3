import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from segship.runtime.card import ModelCard
from segship.runtime.errors import OutputError
from segship.runtime.preprocess import Preprocess
from segship.training.metrics import TOTALS, ConfusionMatrix
from segship.training.scores_report import Fact, report_of, table, write_report

FACTS: dict[str, Fact] = {"checkpoint": "best.safetensors", "pictures": 7, "seconds": 1.5, "device": "cpu"}


@pytest.fixture
def card() -> ModelCard:
    """Four classes, of which "wire" is nowhere and "sign" only predicted in ``matrix``."""
    form = Preprocess((32, 32), 3, "uint8", mean=(0.0,) * 3, std=(1.0,) * 3)
    palette = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))
    return ModelCard(("road", "道路 tree", "wire", "sign"), palette, form)


@pytest.fixture
def matrix() -> ConfusionMatrix:
    """Ten pixels of class 0, of which 6 were found, and five of class 1, all found."""
    made = ConfusionMatrix(4, 255)
    made.counts[0] = [6, 3, 0, 1]
    made.counts[1] = [0, 5, 0, 0]
    return made


def _written(folder: Path) -> dict[str, Any]:
    value = json.loads((folder / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert isinstance(value, dict)
    return value


def test_the_report_holds_every_figure_of_every_class(matrix: ConfusionMatrix, card: ModelCard, tmp_path: Path) -> None:
    write_report(tmp_path / "new", matrix, card, FACTS)
    report = _written(tmp_path / "new")
    assert report["task"] == "multiclass"
    assert report["facts"] == FACTS
    assert report["pixels"] == 15
    assert report["confusion_matrix"] == [[6, 3, 0, 1], [0, 5, 0, 0], [0] * 4, [0] * 4]
    assert [entry["id"] for entry in report["classes"]] == [0, 1, 2, 3]
    assert report["classes"][0] == {
        "id": 0,
        "name": "road",
        "color": [0, 0, 0],
        "iou": 0.6,
        "accuracy": 0.6,
        "precision": 1,
        "f1": pytest.approx(0.75),
        "true_pixels": 10,
        "true_share": pytest.approx(10 / 15),
        "predicted_pixels": 6,
        "predicted_share": pytest.approx(6 / 15),
    }
    assert report["classes"][1]["name"] == "道路 tree"
    assert report["classes"][1]["precision"] == 0.625


def test_the_totals_are_those_of_the_scores(matrix: ConfusionMatrix, card: ModelCard, tmp_path: Path) -> None:
    write_report(tmp_path, matrix, card, FACTS)
    totals = _written(tmp_path)["totals"]
    assert set(totals) == set(TOTALS)
    assert totals == matrix.scores().summary()
    assert totals["pixel_accuracy"] == pytest.approx(11 / 15)


def test_what_the_pictures_do_not_tell_is_null(matrix: ConfusionMatrix, card: ModelCard, tmp_path: Path) -> None:
    write_report(tmp_path, matrix, card, {"sha256": None})
    report = _written(tmp_path)
    nowhere, only_predicted = report["classes"][2:]
    assert [nowhere[name] for name in ("iou", "accuracy", "precision", "f1")] == [None] * 4
    assert [only_predicted[name] for name in ("iou", "accuracy", "precision", "f1")] == [0, None, 0, 0]
    assert report["facts"] == {"sha256": None}


def test_a_measurement_of_no_pixels_is_all_null_and_still_a_report(card: ModelCard, tmp_path: Path) -> None:
    write_report(tmp_path, ConfusionMatrix(4, 255), card, FACTS)
    report = _written(tmp_path)
    assert report["totals"] == dict.fromkeys(TOTALS)
    assert report["pixels"] == 0
    assert all(entry["true_share"] == 0 for entry in report["classes"])


def test_the_report_has_a_line_for_each_class_and_each_row_of_the_matrix(
    matrix: ConfusionMatrix, card: ModelCard, tmp_path: Path
) -> None:
    write_report(tmp_path, matrix, card, FACTS)
    lines = (tmp_path / "report.json").read_text(encoding="utf-8").splitlines()
    assert "    [6, 3, 0, 1]," in lines
    assert sum(line.startswith('    {"id":') for line in lines) == 4


def test_the_report_names_the_versions_that_made_it(matrix: ConfusionMatrix, card: ModelCard) -> None:
    versions = report_of(matrix, card, FACTS)["versions"]
    assert {"segship", "python", "numpy", "pillow", "opencv-python-headless", "torch"} == set(versions)
    assert versions["numpy"] == np.__version__


def test_a_file_name_that_is_no_unicode_comes_back_from_the_report(
    matrix: ConfusionMatrix, card: ModelCard, tmp_path: Path
) -> None:
    write_report(tmp_path, matrix, card, {"data": "folder:/d\udcff"})
    assert _written(tmp_path)["facts"]["data"] == "folder:/d\udcff"


def test_a_picture_of_the_confusion_lies_beside_the_report(
    matrix: ConfusionMatrix, card: ModelCard, tmp_path: Path
) -> None:
    write_report(tmp_path, matrix, card, FACTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["confusion.png", "report.json"]
    with PillowImage.open(tmp_path / "confusion.png") as picture:
        assert picture.format == "PNG"


def test_a_folder_that_cannot_be_made_is_an_error(matrix: ConfusionMatrix, card: ModelCard, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match=r"cannot write .*taken"):
        write_report(tmp_path / "taken", matrix, card, FACTS)


def test_the_table_has_a_row_for_each_class_by_id_and_the_totals_last(matrix: ConfusionMatrix, card: ModelCard) -> None:
    rows, _, totals = table(matrix, card).partition("\n\n")
    cells = [re.split(r"  +", line.strip()) for line in rows.splitlines()]
    assert cells == [
        ["id", "class", "IoU", "accuracy", "precision", "F1", "pixels", "share"],
        ["0", "road", "0.6000", "0.6000", "1.0000", "0.7500", "10", "0.6667"],
        ["1", "道路 tree", "0.6250", "1.0000", "0.6250", "0.7692", "5", "0.3333"],
        ["2", "wire", "–", "–", "–", "–", "0", "0.0000"],
        ["3", "sign", "0.0000", "–", "0.0000", "0.0000", "0", "0.0000"],
    ]
    assert [re.split(r"  +", line) for line in totals.splitlines()] == [
        ["pixel accuracy", "0.7333"],
        ["mean class accuracy", "0.8000"],
        ["mIoU", "0.4083"],
        ["frequency-weighted IoU", "0.6083"],
        ["mean F1", "0.5064"],
    ]


def test_the_columns_of_the_table_are_aligned_also_beside_wide_letters(
    matrix: ConfusionMatrix, card: ModelCard
) -> None:
    header, first, second, *_ = table(matrix, card).splitlines()
    assert header.endswith("share")
    assert len(first) == len(header)
    assert len(second) == len(header) - 2, "two letters of that name are twice as wide as they are many"
    assert first.index("0.6000") + 6 == header.index("IoU") + 3


def test_a_name_with_line_breaks_or_markup_stays_one_row_of_plain_text(
    matrix: ConfusionMatrix, card: ModelCard
) -> None:
    odd = dataclasses.replace(card, class_names=("[bold]a", "two\nlines", "c", "d"))
    lines = table(matrix, odd).splitlines()
    assert len(lines) == 5 + 1 + 5
    assert " [bold]a " in lines[1]
    assert " two lines " in lines[2]


def test_a_binary_network_has_two_rows(card: ModelCard) -> None:
    binary = dataclasses.replace(card, class_names=("back", "crack"), palette=card.palette[:2], task="binary")
    matrix = ConfusionMatrix(2, 255)
    matrix.add(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]))
    report = report_of(matrix, binary, FACTS)
    assert report["task"] == "binary"
    assert [entry["iou"] for entry in report["classes"]] == [0.5, pytest.approx(2 / 3)]
    assert len(table(matrix, binary).splitlines()) == 3 + 1 + 5
