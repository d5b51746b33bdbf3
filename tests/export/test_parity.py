import json
import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from segship.export import parity
from segship.export.parity import ParityReport, check_parity
from segship.runtime.errors import ImageError
from segship.runtime.model_file import read_card
from segship.training.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def report(tiny_model: Path, tiny_checkpoint: Path, picture: Path) -> ParityReport:
    """The tiny network, compared on one given picture."""
    return check_parity(tiny_model, tiny_checkpoint, [picture])


@pytest.fixture
def other_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The same network with one weight of its head moved by 1 %."""
    network, card = load_checkpoint(tiny_checkpoint)
    with torch.no_grad():
        network.get_submodule("head.4").get_parameter("weight")[0] *= 1.01
    save_checkpoint(tmp_path / "other.safetensors", network, card)
    return tmp_path / "other.safetensors"


def test_every_engine_that_is_installed_has_a_row(report: ParityReport) -> None:
    assert [row.engine.backend for row in report.rows] == ["ort", "opencv"]
    assert [row.engine.engine.split()[0] for row in report.rows] == ["ONNX", "OpenCV"]
    assert report.reference.backend == "torch"
    assert {row.engine.device for row in report.rows} == {report.reference.device} == {"cpu"}
    assert report.missing == {}


def test_all_pixels_of_given_and_random_pictures_are_compared(report: ParityReport) -> None:
    assert report.pictures == "3 random, 1 given"
    for row in report.rows:
        assert row.comparison.pictures == 4
        assert row.comparison.pixels == 3 * 48 * 64 + 90 * 120
        assert 0 <= row.comparison.p99_abs <= row.comparison.max_abs < 1e-4
        assert row.comparison.passes
    assert report.passes


def test_without_pictures_those_of_the_built_in_dataset_are_taken(tiny_model: Path, tiny_checkpoint: Path) -> None:
    report = check_parity(tiny_model, tiny_checkpoint, [])
    assert report.pictures == "3 random, 8 of the built-in dataset"
    assert {row.comparison.pictures for row in report.rows} == {11}


@pytest.mark.parametrize("depth", ["uint8", "uint16"])
def test_the_built_in_pictures_come_in_the_cards_form(
    make_checkpoint: Callable[..., Path], tmp_path: Path, depth: str
) -> None:
    checkpoint = make_checkpoint(tmp_path / "grey.safetensors", channels=1, depth=depth)
    pictures = list(parity._pictures([], read_card(checkpoint)))
    assert len(pictures) == 11
    assert {(str(image.dtype), image.shape[2]) for image in pictures if isinstance(image, np.ndarray)} == {(depth, 1)}


def test_a_file_of_other_weights_differs_on_every_engine(
    tiny_model: Path, other_checkpoint: Path, picture: Path
) -> None:
    report = check_parity(tiny_model, other_checkpoint, [picture])
    assert not report.passes
    for row in report.rows:
        assert not row.comparison.passes
        assert row.comparison.beyond_tolerance > 0
        assert row.comparison.max_abs > 1e-3
    assert report.to_markdown().count("DIFFERS") == 2
    assert json.loads(report.to_json())["passes"] is False


def test_the_markdown_table_has_a_line_an_engine(report: ParityReport) -> None:
    lines = report.to_markdown().splitlines()
    assert lines[0] == f"Reference: PyTorch {torch.__version__} on cpu. Pictures: 3 random, 1 given."
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 2 + len(report.rows)
    for line, row in zip(table[2:], report.rows, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:2] == [row.engine.engine, "cpu"]
        assert cells[2] == f"{row.comparison.max_abs:.1e}"
        assert cells[4] == "0"
        assert cells[-1] == "same"


def test_the_json_document_says_the_same(report: ParityReport) -> None:
    document = json.loads(report.to_json())
    assert document["passes"] is True
    assert document["pictures"] == report.pictures
    for found, row in zip(document["rows"], report.rows, strict=True):
        assert found["engine"]["backend"] == row.engine.backend
        assert found["max_abs"] == row.comparison.max_abs
        assert found["label_agreement"] == row.comparison.label_agreement
        assert found["passes"] is True


def test_labels_have_no_logits_to_compare_and_the_report_says_so(
    tiny_labels_model: Path, tiny_checkpoint: Path, picture: Path
) -> None:
    report = check_parity(tiny_labels_model, tiny_checkpoint, [picture])
    assert report.passes
    assert all(math.isnan(row.comparison.max_abs) for row in report.rows)
    assert [row["max_abs"] for row in json.loads(report.to_json())["rows"]] == [None, None]
    assert "| n/a | n/a |" in report.to_markdown()


def test_labels_of_another_network_differ(
    tiny_labels_model: Path, make_checkpoint: Callable[..., Path], tmp_path: Path, picture: Path
) -> None:
    other = make_checkpoint(tmp_path / "other.safetensors")
    network, card = load_checkpoint(other)
    with torch.no_grad():
        network.get_submodule("head.4").get_parameter("bias")[2] += 0.5
    save_checkpoint(other, network, card)
    report = check_parity(tiny_labels_model, other, [picture])
    assert not report.passes
    assert all(row.comparison.unexplained_flips > 0 for row in report.rows)


def test_an_engine_that_is_not_installed_is_named_with_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tiny_checkpoint: Path, picture: Path
) -> None:
    engines = parity.ENGINES | {"abacus": ("no_such_engine_module", "beads")}
    monkeypatch.setattr(parity, "ENGINES", engines)
    report = check_parity(tiny_model, tiny_checkpoint, [picture])
    assert report.missing == {"abacus": 'pip install "segship[beads]"'}
    assert report.passes
    assert 'Not checked: abacus is not installed (pip install "segship[beads]").' in report.to_markdown()


def test_a_picture_that_would_lose_something_is_refused_unless_that_is_allowed(
    tiny_model: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    deep = tmp_path / "deep.png"
    cv2.imwrite(str(deep), np.random.default_rng(0).integers(0, 65536, (50, 60), np.uint16))
    with pytest.raises(ImageError, match=r"deep\.png.*--convert depth"):
        check_parity(tiny_model, tiny_checkpoint, [deep])
    assert check_parity(tiny_model, tiny_checkpoint, [deep], convert=["depth"]).passes


def test_the_random_pictures_are_noise_over_the_whole_range_and_always_the_same(tiny_checkpoint: Path) -> None:
    form = read_card(tiny_checkpoint).preprocess
    first, again = (list(parity._random_pictures(form)) for _ in range(2))
    assert len(first) == 3
    for one, other in zip(first, again, strict=True):
        assert isinstance(one, np.ndarray)
        assert one.shape == (48, 64, 3)
        assert (one.min(), one.max()) == (0, 255)
        np.testing.assert_array_equal(one, other)
    assert (np.asarray(first[0]) != np.asarray(first[1])).any()


def test_the_pictures_own_size_counts_not_the_networks(tiny_model: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    PillowImage.effect_noise((301, 203), 80).convert("RGB").save(large)
    report = check_parity(tiny_model, tiny_checkpoint, [large])
    assert report.rows[0].comparison.pixels == 3 * 48 * 64 + 301 * 203
