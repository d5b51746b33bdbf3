import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper
from PIL import Image as PillowImage

from segship.export import exporter
from segship.export.cli import seg_export
from segship.runtime.model_file import read_card, read_onnx_header

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def broken_simplifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simplifier that changes a weight."""

    def simplify(traced: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
        tensor = next(tensor for tensor in traced.graph.initializer if len(tensor.dims) == 4)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))
        return traced, ""

    monkeypatch.setattr(exporter, "_simplify", simplify)


def test_it_says_what_it_does_what_was_compared_and_what_comes_next(
    command: Command, tiny_checkpoint: Path, picture: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.onnx"
    status, out, err = command(seg_export, tiny_checkpoint, "-o", model, "--images", picture)
    assert status == 0
    assert err.splitlines() == ["tracing …", "simplifying …", "comparing with PyTorch …"]
    assert "| ONNX Runtime" in out
    assert "| OpenCV" in out
    assert f"{model}: opset 17, " in out
    assert out.endswith(f"next: seg-infer {model} PICTURES\n")
    assert read_card(model).head == "logits"


def test_opset_and_head_reach_the_file_and_quiet_prints_nothing(
    command: Command, tiny_checkpoint: Path, picture: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.onnx"
    arguments = (tiny_checkpoint, "-o", model, "--images", picture, "--opset", 13, "--head", "labels", "-q")
    assert command(seg_export, *arguments) == (0, "", "")
    assert read_onnx_header(model).opset == 13
    assert read_card(model).head == "labels"


def test_json_is_one_document_and_the_report_a_markdown_table(
    command: Command, tiny_checkpoint: Path, picture: Path, tmp_path: Path
) -> None:
    model, report = tmp_path / "model.onnx", tmp_path / "reports/parity.md"
    status, out, _ = command(
        seg_export, tiny_checkpoint, "-o", model, "--images", picture, "--json", "--report", report
    )
    assert status == 0
    document = json.loads(out)
    assert document["path"] == str(model)
    assert (document["opset"], document["head"], document["simplifier_fault"]) == (17, "logits", "")
    assert document["bytes"] == model.stat().st_size
    assert document["nodes"] == len(onnx.load(model).graph.node)
    assert document["parity"]["passes"] is True
    engines = [row["engine"]["engine"] for row in document["parity"]["rows"]]
    text = report.read_text(encoding="utf-8")
    assert len(engines) == 2
    assert [f"| {engine} | cpu |" in text for engine in engines] == [True, True]
    assert text.count("| same |") == 2


def test_of_many_pictures_as_many_are_compared_as_the_limit_says(
    command: Command, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(7):
        PillowImage.new("RGB", (20 + number, 10), (number, 2, 3)).save(folder / f"{number}.png")
    status, out, _ = command(
        seg_export, tiny_checkpoint, "-o", tmp_path / "model.onnx", "--images", folder, "--limit", 3, "--json"
    )
    assert status == 0
    parity = json.loads(out)["parity"]
    assert parity["pictures"] == "3 random, 3 given"
    assert {row["pixels"] for row in parity["rows"]} == {3 * 48 * 64 + 10 * (20 + 22 + 24)}


def test_a_file_that_is_there_is_written_over_only_when_asked(
    command: Command, tiny_checkpoint: Path, picture: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"an earlier model")
    status, out, err = command(seg_export, tiny_checkpoint, "-o", model, "--images", picture)
    assert (status, out) == (1, "")
    assert err == f"error: {model} is there already; add --overwrite, or choose another name\n"
    assert model.read_bytes() == b"an earlier model"
    assert command(seg_export, tiny_checkpoint, "-o", model, "--images", picture, "--overwrite", "-q")[0] == 0
    assert read_card(model).head == "logits"


@pytest.mark.usefixtures("broken_simplifier")
def test_a_file_that_computes_something_else_is_not_left_and_an_earlier_one_is(
    command: Command, tiny_checkpoint: Path, picture: Path, tmp_path: Path
) -> None:
    model, report = tmp_path / "model.onnx", tmp_path / "parity.md"
    model.write_bytes(b"an earlier model")
    status, out, err = command(
        seg_export, tiny_checkpoint, "-o", model, "--images", picture, "--overwrite", "-q", "--report", report
    )
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {model} was not written: ONNX Runtime")
    assert "computes something else than PyTorch" in err
    assert err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "parity.md"}
    assert model.read_bytes() == b"an earlier model"
    assert "| DIFFERS |" in report.read_text(encoding="utf-8")


def test_a_failing_simplifier_is_a_warning_not_an_end(
    command: Command, tiny_checkpoint: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_model: Any) -> Any:
        raise RuntimeError("it ran out of ideas")

    monkeypatch.setattr("onnxsim.simplify", fail)
    model = tmp_path / "model.onnx"
    status, out, err = command(seg_export, tiny_checkpoint, "-o", model, "--images", picture, "--json", "-q")
    assert status == 0
    assert err == "warning: the simplifier failed (it ran out of ideas); the graph as traced is kept\n"
    assert json.loads(out)["simplifier_fault"] == "the simplifier failed (it ran out of ideas)"
    assert model.exists()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--opset", "10"], "10 is not in the range 11<=x<=23"),
        (["--head", "probabilities"], "'probabilities' is not one of 'logits', 'labels'"),
        (["--limit", "0"], "0 is not in the range x>=1"),
    ],
)
def test_wrong_use_ends_with_status_2(
    command: Command, tiny_checkpoint: Path, tmp_path: Path, extra: list[str], words: str
) -> None:
    status, out, err = command(seg_export, tiny_checkpoint, "-o", tmp_path / "model.onnx", *extra)
    assert (status, out) == (2, "")
    assert words in err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.safetensors", r"No such file"),
        ("best.pt", "is no checkpoint of seg-train; expected a .safetensors file"),
        ("text.safetensors", "cannot be read as a checkpoint"),
    ],
)
def test_what_is_no_checkpoint_ends_with_status_1_and_one_line(
    command: Command, tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "text.safetensors").write_text("no weights")
    status, out, err = command(seg_export, tmp_path / name, "-o", tmp_path / "model.onnx")
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "model.onnx").exists()


def test_a_folder_without_pictures_ends_with_status_1(command: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    status, out, err = command(
        seg_export, tiny_checkpoint, "-o", tmp_path / "model.onnx", "--images", tmp_path / "empty"
    )
    assert (status, out) == (1, "")
    assert "empty" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "model.onnx").exists()
