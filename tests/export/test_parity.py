import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from PIL import Image as PillowImage

from segship.export import parity
from segship.export.form import Form
from segship.export.parity import Reference, check_parity, expectations, resize_agreement
from segship.export.pictures import Picture, parity_pictures
from segship.export.report import ParityReport
from segship.export.trace import trace
from segship.export.wrapper import deployable
from segship.export.write import described, write_model
from segship.runtime.card import ModelCard
from segship.runtime.compare import Gate
from segship.runtime.errors import ExportError, ImageError
from segship.runtime.model_file import read_card
from segship.runtime.segmenter import Segmenter
from segship.training.checkpoint import load_checkpoint

ALL = ["ort", "opencv", "openvino"]


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Reference:
    """The tiny checkpoint."""
    return Reference(*load_checkpoint(tiny_checkpoint))


@pytest.fixture(scope="module")
def pictures(picture: Path, reference: Reference) -> list[Picture]:
    """The noise and one real picture."""
    return parity_pictures([picture], reference.card)[:4]


@pytest.fixture(scope="module")
def report(tiny_model: Path, reference: Reference, pictures: list[Picture]) -> ParityReport:
    """The tiny network, compared on each engine."""
    return check_parity(tiny_model, read_card(tiny_model), reference, pictures)


@pytest.fixture
def other(tiny_checkpoint: Path) -> Reference:
    """The same network with one weight of its head moved."""
    network, card = load_checkpoint(tiny_checkpoint)
    with torch.no_grad():
        network.get_submodule("head.4").get_parameter("bias")[2] += 0.5
    return Reference(network, card)


def compared(model: Path, reference: Reference, pictures: list[Picture], **how: Any) -> ParityReport:
    """Compare a file on ONNX Runtime alone."""
    return check_parity(model, how.pop("card", read_card(model)), reference, pictures, backends=["ort"], **how)


def test_every_engine_that_is_installed_has_a_row(report: ParityReport) -> None:
    assert [row.engine.backend for row in report.rows if row.gate is not None] == ALL
    assert {row.engine.precision for row in report.rows if row.gate is not None} == {"fp32"}
    assert {row.engine.device for row in report.rows} == {report.reference.device} == {"cpu"}
    assert report.reference.backend == "torch"
    assert (report.missing, report.refused) == ({}, {})


def test_what_openvino_does_by_itself_is_recorded_and_gates_nothing(report: ParityReport) -> None:
    recorded = [row for row in report.rows if row.gate is None]
    assert len(recorded) <= 1  # none on a CPU where float32 is the fastest
    assert {(row.engine.backend, row.verdict) for row in recorded} <= {("openvino", "recorded")}
    assert "fp32" not in {row.engine.precision for row in recorded}


def test_all_pixels_of_all_pictures_are_compared_at_the_pictures_own_sizes(report: ParityReport) -> None:
    assert report.pictures == "3 random, 1 given"
    assert report.passes
    for row in report.rows:
        assert row.comparison is not None
        assert row.comparison.pictures == 4
        assert row.comparison.pixels == 3 * 48 * 64 + 90 * 120
        assert row.comparison.max_abs is not None
        assert row.comparison.p99_abs is not None
        assert 0 <= row.comparison.p99_abs <= row.comparison.max_abs
    assert all(row.comparison and (row.comparison.max_abs or 0) < 1e-4 for row in report.rows if row.gate)


def test_a_file_of_other_weights_differs_on_every_engine(
    tiny_model: Path, other: Reference, pictures: list[Picture]
) -> None:
    report = check_parity(tiny_model, read_card(tiny_model), other, pictures[2:])
    assert not report.passes
    assert [row.engine.backend for row in report.failed] == ALL
    for row in report.failed:
        assert row.comparison is not None
        assert row.comparison.beyond_tolerance > 0
        assert row.comparison.max_abs == pytest.approx(0.5, abs=1e-3)
        assert row.fault.startswith("first differs at the stage network, most of all on ")
    worst = report.worst
    assert worst is not None
    assert worst.comparison.unexplained_flips > 0


def test_labels_are_compared_as_labels(
    tiny_labels_model: Path, reference: Reference, other: Reference, pictures: list[Picture]
) -> None:
    report = compared(tiny_labels_model, reference, pictures)
    assert report.passes
    assert report.rows[0].comparison is not None
    assert report.rows[0].comparison.max_abs is None
    report = compared(tiny_labels_model, other, pictures)
    assert not report.passes
    assert report.rows[0].comparison is not None
    assert report.rows[0].comparison.unexplained_flips > 0


def test_the_node_at_which_an_engine_leaves_pytorch_is_asked_for_with_what_the_graph_was_given(
    tiny_model: Path, other: Reference, pictures: list[Picture]
) -> None:
    asked: list[tuple[str, NDArray[Any]]] = []

    def locate(engine: Segmenter, batch: NDArray[Any]) -> str:
        asked.append((engine.info.backend, batch))
        return "network: the head, of course"

    report = compared(tiny_model, other, pictures[3:], locate=locate)
    assert report.rows[0].fault == ("first differs at the stage network: the head, of course, most of all on photo.png")
    ((backend, batch),) = asked
    assert backend == "ort"
    expected = other.card.preprocess(np.asarray(PillowImage.open(str(pictures[3].source))))
    np.testing.assert_array_equal(batch, expected)


@pytest.mark.parametrize(("lost", "fault"), [(0.5, ""), (0.75, "loses 0.750 points of mIoU")])
def test_a_budget_is_kept_by_what_is_measured_on_each_engine(
    tiny_model: Path, other: Reference, pictures: list[Picture], lost: float, fault: str
) -> None:
    budget = Gate(False, 0.0, 0.5, "points of mIoU")
    report = compared(tiny_model, other, pictures[2:3], gate=budget, measure=lambda _: lost)
    assert report.rows[0].fault == fault
    assert report.passes is (not fault)
    assert report.certificate("").rows[0].lost == lost


def test_an_engine_that_is_not_installed_is_named_with_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, reference: Reference, pictures: list[Picture]
) -> None:
    monkeypatch.setattr(parity, "ENGINES", {"ort": ("onnxruntime", "cpu"), "abacus": ("no_such_module", "beads")})
    card = read_card(tiny_model)
    report = check_parity(tiny_model, card, reference, pictures[:1])
    assert report.missing == {"abacus": 'pip install "segship[beads]"'}
    assert report.passes
    with pytest.raises(ExportError, match=r"on what is not installed: pip install .segship\[beads\]"):
        check_parity(tiny_model, card, reference, pictures[:1], backends=["ort", "abacus"])


def test_a_picture_that_would_lose_something_is_refused_unless_that_is_allowed(
    tiny_model: Path, reference: Reference, tmp_path: Path
) -> None:
    deep = tmp_path / "deep.png"
    cv2.imwrite(str(deep), np.random.default_rng(0).integers(0, 65536, (50, 60), np.uint16))
    pictures = [Picture("deep.png", deep)]
    with pytest.raises(ImageError, match=r"deep\.png.*--convert depth"):
        compared(tiny_model, reference, pictures)
    assert compared(tiny_model, reference, pictures, convert=["depth"]).passes


@pytest.fixture(scope="module")
def open_model(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network as it is traced, its batch and its size open."""
    path = tmp_path_factory.mktemp("open") / "open.onnx"
    card = Form(dynamic=("batch", "size")).card(reference.card)
    write_model(described(trace(deployable(reference.network, card), card, 17), card), path, 17)
    return path


def test_a_file_with_open_axes_is_compared_at_three_sizes_and_two_batches(
    open_model: Path, reference: Reference, pictures: list[Picture]
) -> None:
    report = compared(open_model, reference, pictures)
    assert report.pictures == "3 random, 1 given, at 48×64, 64×48, 32×96, in batches of 1, 2, 3"
    assert report.passes
    (row,) = report.rows
    assert row.comparison is not None
    assert row.comparison.pictures == 4 + 2 * 2 + (2 + 3)


@pytest.mark.parametrize(
    ("size", "stride", "others"),
    [
        ((48, 64), 16, [(64, 48), (32, 96)]),
        ((320, 320), 32, [(352, 256), (288, 384)]),
        ((32, 32), 32, [(64, 64), (64, 96)]),  # a single pixel at the bottom is too small for OpenCV 5
    ],
)
def test_the_other_sizes_are_good_ones_smaller_and_larger(
    reference: Reference, size: tuple[int, int], stride: int, others: list[tuple[int, int]]
) -> None:
    form = dataclasses.replace(reference.card.preprocess, size=size)
    card = dataclasses.replace(reference.card, preprocess=form, dynamic=("size",), stride=stride)
    assert parity._sizes(card) == [size, *others]
    for other in others:
        assert card.at_size(other).preprocess.size == other
    assert parity._sizes(dataclasses.replace(card, dynamic=())) == [size]


def test_a_graph_that_ignores_the_size_it_is_given_is_found_out(
    open_model: Path, reference: Reference, pictures: list[Picture], tmp_path: Path
) -> None:
    fixed = fixed_in_secret(open_model, tmp_path)
    report = compared(fixed, reference, pictures)
    assert [row.verdict for row in report.rows] == ["FAILS"]
    assert "at the stage network" in report.rows[0].fault


def fixed_in_secret(model: Path, folder: Path) -> Path:
    """Return a copy of a graph that says that its size is open, and is not."""
    proto = onnx.load(model)
    last = proto.graph.node[-1]
    last.output[0] = "of any size"
    shape = numpy_helper.from_array(np.array([0, 6, 48, 64]), "shape")
    proto.graph.initializer.append(shape)
    proto.graph.node.append(helper.make_node("Reshape", ["of any size", "shape"], ["logits"]))
    onnx.save(proto, folder / "fixed.onnx")
    return folder / "fixed.onnx"


def test_a_file_that_resizes_by_another_rule_is_also_asked_what_that_changes(
    reference: Reference, pictures: list[Picture]
) -> None:
    card: ModelCard = reference.card
    form = dataclasses.replace(card.preprocess, interpolation="linear_float")
    framed = dataclasses.replace(card, input_form="pixels", frame=(90, 120), preprocess=form)
    agreement = resize_agreement(reference, framed, pictures)
    assert agreement is not None
    assert 0.9 < agreement < 1
    assert resize_agreement(reference, card, pictures) is None
    trained_so = Reference(reference.network, dataclasses.replace(card, preprocess=form))
    assert resize_agreement(trained_so, framed, pictures) is None


def test_what_is_expected_comes_at_the_size_of_the_files_card(reference: Reference, pictures: list[Picture]) -> None:
    form = dataclasses.replace(reference.card.preprocess, size=(32, 48))
    card = dataclasses.replace(reference.card, preprocess=form)
    for picture, expected in expectations(reference, card, pictures):
        assert expected.logits is not None
        assert (expected.logits.shape, expected.labels.shape) == ((6, 32, 48), (32, 48))
        assert expected.stages.resized is not None
        assert expected.stages.resized.shape == (32, 48, 3), picture.name
