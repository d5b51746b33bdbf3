import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segship.export.exporter import ExportResult, export
from segship.export.golden import write_golden_of
from segship.runtime.check import check_model
from segship.runtime.errors import ExportError
from segship.runtime.golden import Golden, read_golden
from segship.runtime.model_file import content_sha256
from segship.runtime.segmenter import Segmenter


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, picture: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """The tiny network, compared on noise, on one file and on seven built-in pictures."""
    path = tmp_path_factory.mktemp("golden") / "model.onnx"
    return export(tiny_checkpoint, path, images=[picture], backends=["ort"])


def golden_of(result: ExportResult, path: Path) -> Golden:
    write_golden_of(result, path)
    return read_golden(path)


def test_it_holds_the_pictures_that_the_file_was_compared_on_and_what_pytorch_says_of_them(
    exported: ExportResult, tiny_checkpoint: Path, picture: Path, tmp_path: Path
) -> None:
    golden = golden_of(exported, tmp_path / "golden.npz")
    assert golden.content_sha256 == content_sha256(exported.path)
    assert golden.names == tuple(one.name for one in exported.pictures)
    assert len(golden.names) == 11
    examples = list(golden.examples(exported.card))
    assert [example.name for example in examples if example.file] == ["photo.png"]
    assert examples[3].file == picture.read_bytes()
    with Segmenter(tiny_checkpoint, backend="torch", device="cpu") as pytorch:
        for example, own in zip(examples, exported.pictures, strict=True):
            logits = pytorch(own.source).logits
            np.testing.assert_array_equal(example.expected.logits, logits)


def test_the_exported_file_passes_by_it(exported: ExportResult, tmp_path: Path) -> None:
    write_golden_of(exported, tmp_path / "golden.npz")
    check = check_model(exported.path, golden=tmp_path / "golden.npz", backends=["ort", "opencv"])
    assert [row.verdict for row in check.against_golden or ()] == ["same", "same"]
    assert check.faults == []


@pytest.mark.usefixtures("unsimplified")
@pytest.mark.parametrize(
    "form",
    [{"head": "labels", "input_form": "pixels"}, {"dynamic": ("batch", "size"), "head": "probabilities"}],
    ids=str,
)
def test_every_form_of_a_file_passes_by_its_own(
    tiny_checkpoint: Path, picture: Path, tmp_path: Path, form: dict[str, Any]
) -> None:
    result = export(tiny_checkpoint, tmp_path / "model.onnx", images=[picture], backends=["ort"], **form)
    golden = golden_of(result, tmp_path / "golden.npz")
    with_logits = [example.expected.logits is not None for example in golden.examples(result.card)]
    assert with_logits == [form["head"] != "labels"] * 11
    check = check_model(result.path, golden=tmp_path / "golden.npz", backends=["ort"])
    assert [row.verdict for row in check.against_golden or ()] == ["same"]
    assert check.faults == []


def test_what_was_not_compared_has_none(exported: ExportResult, tmp_path: Path) -> None:
    uncertified = dataclasses.replace(exported, card=dataclasses.replace(exported.card, certificate=None))
    with pytest.raises(ExportError, match="those of a file that was compared, which this one was not"):
        write_golden_of(uncertified, tmp_path / "golden.npz")
    assert not (tmp_path / "golden.npz").exists()
