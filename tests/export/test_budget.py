import csv
import dataclasses
import io
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from segship.export.budget import Quantised, quantise
from segship.export.calibration import Calibration, open_calibration
from segship.export.trial import segmenting
from segship.runtime.errors import ExportError
from segship.runtime.model_file import read_card


@pytest.fixture(scope="module")
def unlabelled(tiny_model: Path) -> Calibration:
    """Few pictures of the demo set, their labels not looked at."""
    pictures = open_calibration("demo", read_card(tiny_model), images=3)
    return dataclasses.replace(pictures, measured=pictures.measured.some(3), labelled=False)


@pytest.fixture(scope="module")
def hurt(tiny_model: Path) -> onnx.ModelProto:
    """The tiny network with one channel of one layer so large that 8 bits cannot tell the layer's other values apart.

    The layer that follows takes it back, so that float32 computes what it did.
    """
    model = onnx.load(tiny_model)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    first, second = convolutions[2], convolutions[3]
    for name, factor, place in (
        (first.input[1], 2000.0, 0),
        (first.input[2], 2000.0, 0),
        (second.input[1], 1 / 2000, 1),
    ):
        values = numpy_helper.to_array(weights[name]).copy()
        values[(slice(None),) * place + (0,)] *= factor
        weights[name].CopyFrom(numpy_helper.from_array(values, name))
    return model


@pytest.fixture(scope="module")
def within(hurt: onnx.ModelProto, tiny_model: Path, unlabelled: Calibration) -> Quantised:
    return quantise(hurt, read_card(tiny_model), unlabelled, budget=8.0)


def test_the_worst_layer_goes_back_and_the_budget_holds(within: Quantised) -> None:
    assert within.damage_before > 8.0 >= within.damage
    assert within.unit == "% of the labels"
    assert 0 < within.in_float32 < 4
    back = {row.layer for row in within.rows if row.decision == "float32"}
    worst = sorted(within.rows, key=lambda row: -(row.error or 0))[: len(back)]
    assert {row.layer for row in worst} == back


def test_the_damage_is_that_of_the_graph_that_is_returned(
    within: Quantised, hurt: onnx.ModelProto, tiny_model: Path, unlabelled: Calibration
) -> None:
    onnx.checker.check_model(within.model, full_check=True)
    card = read_card(tiny_model)
    differing = pixels = 0
    with segmenting(hurt, card) as reference, segmenting(within.model, card) as candidate:
        for image, _ in unlabelled.measured:
            differing += int((reference(image).labels != candidate(image).labels).sum())
            pixels += image.shape[0] * image.shape[1]
    assert within.damage == pytest.approx(100 * differing / pixels)


def test_the_sheet_names_every_layer_with_its_error_and_decision(within: Quantised) -> None:
    rows = list(csv.DictReader(io.StringIO(within.to_csv())))
    assert [row["layer"] for row in rows] == [row.layer for row in within.rows]
    assert [row["decision"] for row in rows].count("float32") == within.in_float32
    assert all(float(row["error_percent"]) >= 0 for row in rows)
    text = within.to_markdown()
    assert (
        f"{len(rows) - within.in_float32} of {len(rows)} layers in 8 bits. Damage: {within.damage:.3f} % of the labels"
        in text
    )
    assert text.count("| float32 |") == within.in_float32
    assert text.index("| float32 |") < text.index("| int8 |")  # the worst come first


def test_with_labels_damage_is_in_points_of_miou(tiny_model: Path, unlabelled: Calibration) -> None:
    card = read_card(tiny_model)
    labelled = dataclasses.replace(unlabelled, labelled=True)
    said: list[str] = []
    runs: list[None] = []
    result = quantise(
        onnx.load(tiny_model), card, labelled, budget=50.0, tell=said.append, advance=lambda: runs.append(None)
    )
    assert result.unit == "points of mIoU"
    assert result.reference_miou is not None
    assert 0 < result.reference_miou < 100
    assert (result.in_float32, result.damage) == (0, result.damage_before)
    assert said[:2] == ["taking ranges from 3 pictures", "measuring float32 on 3 pictures"]
    assert len(runs) == 3 + 3 + 3 + 3 + 3 * len(result.rows)


def test_without_a_budget_no_layer_is_measured_and_all_are_in_8_bits(tiny_model: Path, unlabelled: Calibration) -> None:
    result = quantise(onnx.load(tiny_model), read_card(tiny_model), unlabelled, target="tensorrt")
    assert {row.decision for row in result.rows} == {"int8"}
    assert {row.error for row in result.rows} == {None}
    assert result.damage == result.damage_before > 0
    assert "| not measured | int8 |" in result.to_markdown()


def test_a_budget_that_cannot_be_held_is_an_error_that_says_what_the_best_lost(
    tiny_model: Path, unlabelled: Calibration
) -> None:
    one = dataclasses.replace(unlabelled, measured=unlabelled.measured.some(1))
    with pytest.raises(
        ExportError, match=r"within the budget of -1 % of the labels: the best came to \d\.\d{3}; raise"
    ):
        quantise(onnx.load(tiny_model), read_card(tiny_model), one, budget=-1.0)
