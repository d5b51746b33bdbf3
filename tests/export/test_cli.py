import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image as PillowImage
from torch import nn

from segship.export import exporter, trial
from segship.export.cli import seg_export
from segship.export.simplify import Simplified
from segship.export.trace import trace
from segship.runtime.card import ModelCard
from segship.runtime.golden import read_golden
from segship.runtime.model_file import content_sha256, read_card, read_onnx_header
from segship.runtime.segmenter import Segmenter
from segship.training.data import spread_evenly

Command = Callable[..., tuple[int, str, str]]
Export = Callable[..., tuple[int, str, str]]

NETS = """
import torch
from torch import nn

def make(classes=4):
    torch.manual_seed(0)
    return nn.Conv2d(3, classes, 3, padding=1)
"""
VALUES = ("--class-names", "road,car,tree,sky", "--mean", "imagenet", "--size", "24x32")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Where the exported file goes: a folder of its own."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out/model.onnx"


@pytest.fixture
def run(command: Command, tiny_checkpoint: Path, model: Path) -> Export:
    """Run ``seg-export`` on the small checkpoint."""

    def call(*arguments: object) -> tuple[int, str, str]:
        return command(seg_export, tiny_checkpoint, "-o", model, *arguments)

    return call


@pytest.fixture
def fast(unsimplified: None, run: Export, picture: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Likewise, without simplification, compared in ONNX Runtime on one picture of our own, timed briefly."""
    monkeypatch.setattr(trial, "SECONDS", 0.1)

    def call(*arguments: object) -> tuple[int, str, str]:
        return run("--backend", "ort", "--images", picture, *arguments)

    return call


@pytest.fixture
def wrong_trace(unsimplified: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracer that changes a weight."""

    def wrong(module: nn.Module, card: ModelCard, opset: int) -> onnx.ModelProto:
        traced = trace(module, card, opset)
        tensor = next(tensor for tensor in traced.graph.initializer if len(tensor.dims) == 4)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))
        return traced

    monkeypatch.setattr(exporter, "trace", wrong)


@pytest.fixture
def nets(tmp_path: Path) -> str:
    """A network that segship did not define, as the command names it; its weights lie beside it in ``nets.pt``."""
    (tmp_path / "nets.py").write_text(NETS)
    torch.manual_seed(1)
    torch.save(nn.Conv2d(3, 4, 3, padding=1).state_dict(), tmp_path / "nets.pt")
    return f"{tmp_path / 'nets.py'}:make"


def test_it_says_what_it_does_what_was_compared_and_what_comes_next(run: Export, picture: Path, model: Path) -> None:
    status, out, err = run("--images", picture)
    assert status == 0
    assert err.splitlines() == ["tracing …", "simplifying …", "comparing with PyTorch …"]
    for engine in ("ONNX Runtime", "OpenCV", "OpenVINO"):
        assert f"| {engine}" in out
    assert f"{model}: opset 17, " in out
    assert "fp32, takes float (1, 3, 48, 64), returns logits (1, 6, 48, 64)\n" in out
    assert out.endswith(f"next: seg-infer {model} PICTURES\n")
    card = read_card(model)
    assert card.certificate is not None
    assert [row.backend for row in card.certificate.rows][:2] == ["ort", "opencv"]


def test_opset_head_and_input_reach_the_file_and_quiet_prints_nothing(fast: Export, model: Path) -> None:
    assert fast("--opset", 13, "--head", "labels", "--input", "pixels", "-q") == (0, "", "")
    assert read_onnx_header(model).opset == 13
    card = read_card(model)
    assert (card.head, card.input_form) == ("labels", "pixels")


def test_a_graph_for_frames_takes_pixels_and_returns_labels(fast: Export, model: Path) -> None:
    status, out, _ = fast("--frame", "48x64")
    assert status == 0
    assert "takes pixels (1, 48, 64, 3), returns labels (1, 48, 64)\n" in out
    assert read_card(model).frame == (48, 64)


def test_axes_are_left_open_at_the_size_that_is_given(fast: Export, model: Path) -> None:
    status, out, _ = fast("--dynamic", "size,batch", "--size", "32x64")
    assert status == 0
    assert "takes float (?, 3, ?, ?), returns logits (?, 6, ?, ?)\n" in out
    card = read_card(model)
    assert (card.dynamic, card.preprocess.size, card.stride) == (("batch", "size"), (32, 64), 16)


def test_what_lies_beside_the_model_belongs_to_it(fast: Export, model: Path, tmp_path: Path) -> None:
    report, drawing, golden, folder = (
        tmp_path / name for name in ("reports/parity.md", "drawn/worst.png", "golden.npz", "street")
    )
    options = ("--report", report, "--compare-images", drawing, "--golden", golden, "--hand-over", folder)
    status, out, _ = fast("--json", *options)
    assert status == 0
    document = json.loads(out)
    assert document["path"] == str(model)
    assert (document["opset"], document["head"], document["input"]) == (17, "logits", "float")
    assert (document["frame"], document["dynamic"], document["precision"]) == (None, [], "fp32")
    assert (document["warnings"], document["speed_ratio"], document["quantised"]) == ([], None, None)
    assert document["bytes"] == model.stat().st_size
    assert document["nodes"] == len(onnx.load(model).graph.node)
    assert document["content_sha256"] == content_sha256(model)
    assert document["parity"]["passes"] is True
    (row,) = document["parity"]["rows"]
    assert (row["engine"]["backend"], row["pictures"]) == ("ort", 3 + 8)
    assert f"| {row['engine']['engine']} | cpu | fp32 |" in report.read_text(encoding="utf-8")
    drawn = cv2.imread(str(drawing))
    assert drawn is not None
    assert drawn.shape[1] > 4 * drawn.shape[0]  # the picture, both masks, and where they differ
    assert read_golden(golden).content_sha256 == content_sha256(model)
    assert {path.name for path in folder.iterdir()} == {"README.md", "card.json", "golden.npz", "model.onnx", "triton"}
    assert (folder / "golden.npz").read_bytes() == golden.read_bytes()


def test_a_hand_over_brings_its_own_golden_outputs(fast: Export, model: Path, tmp_path: Path) -> None:
    assert fast("-q", "--hand-over", tmp_path / "street") == (0, "", "")
    assert read_golden(tmp_path / "street/golden.npz").content_sha256 == content_sha256(model)
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]


def test_of_many_pictures_as_many_are_compared_as_the_limit_says(
    unsimplified: None, run: Export, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(17):
        PillowImage.new("RGB", (20 + number, 10), (number, 2, 3)).save(folder / f"{number:02}.png")
    status, out, _ = run("--backend", "ort", "--images", folder, "--limit", 9, "--json")
    assert status == 0
    parity = json.loads(out)["parity"]
    assert parity["pictures"] == "3 random, 9 given"
    assert parity["rows"][0]["pixels"] == 3 * 48 * 64 + sum(10 * (20 + number) for number in spread_evenly(17, 9))


def test_pictures_are_converted_with_loss_only_when_asked(
    unsimplified: None, run: Export, model: Path, tmp_path: Path
) -> None:
    PillowImage.fromarray(np.full((9, 9), 3000, np.uint16)).save(tmp_path / "deep.png")
    status, out, err = run("--backend", "ort", "--images", tmp_path / "deep.png", "-q")
    assert (status, out) == (1, "")
    assert "ask for it: --convert depth" in err
    assert err.count("\n") == 1
    assert not any(model.parent.iterdir())
    assert run("--backend", "ort", "--images", tmp_path / "deep.png", "-q", "--convert", "depth") == (0, "", "")


def test_half_precision_says_how_fast_it_is(fast: Export, model: Path) -> None:
    status, out, err = fast("--precision", "fp16")
    assert status == 0
    assert err.splitlines()[3] == "comparing fp16 with PyTorch …"
    assert "fp16 runs " in out
    assert "times as fast as fp32 in ONNX Runtime here.\n" in out
    assert read_card(model).precision == "fp16"


def test_8_bits_take_their_ranges_from_real_pictures_and_leave_a_sheet(
    fast: Export, model: Path, photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    folder, report = tmp_path / "pictures", tmp_path / "parity.md"
    folder.mkdir()
    for turns in range(4):
        PillowImage.fromarray(np.rot90(photo, turns)).save(folder / f"{turns}.png")
    calibration = ("--calibrate", folder, "--calibration-images", 2, "--int8-for", "tensorrt", "--budget", 40)
    status, out, err = fast("--precision", "int8", *calibration, "--report", report, "--json")
    assert status == 0
    assert "taking ranges from 2 pictures …\n" in err
    sheet = json.loads(out)["quantised"]
    assert sheet["budget"] == 40
    assert {row["decision"] for row in sheet["rows"]} >= {"int8"}
    text = report.read_text(encoding="utf-8")
    assert "| layer | operator |" in text
    assert "Asked of int8: ≤ 40 " in text
    zeros = [node.input[2] for node in onnx.load(model).graph.node if node.op_type == "QuantizeLinear"]
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(model).graph.initializer}
    assert all(tensors[zero].dtype == np.int8 and not tensors[zero].any() for zero in zeros)  # as TensorRT asks


def test_a_file_that_is_there_is_written_over_only_when_asked(fast: Export, model: Path) -> None:
    model.write_bytes(b"an earlier model")
    assert fast() == (1, "", f"error: {model} is there already; add --overwrite, or choose another name\n")
    assert model.read_bytes() == b"an earlier model"
    assert fast("--overwrite", "-q")[0] == 0
    assert read_card(model).head == "logits"


def test_a_file_that_computes_something_else_is_not_left_and_an_earlier_one_is(
    wrong_trace: None, fast: Export, model: Path, tmp_path: Path
) -> None:
    model.write_bytes(b"an earlier model")
    report, drawing, golden = tmp_path / "parity.md", tmp_path / "worst.png", tmp_path / "golden.npz"
    others = ("--report", report, "--compare-images", drawing, "--golden", golden, "--hand-over", tmp_path / "street")
    status, out, err = fast("--overwrite", "-q", *others)
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {model} was not written, since it computes something else than PyTorch: ONNX Run")
    assert "first differs at the stage network: " in err
    assert err.count("\n") == 1
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]
    assert model.read_bytes() == b"an earlier model"
    assert "| DIFFERS |" in report.read_text(encoding="utf-8")
    assert cv2.imread(str(drawing)) is not None
    assert not golden.exists()
    assert not (tmp_path / "street").exists()


def test_what_the_user_should_know_is_a_warning_also_when_quiet(
    monkeypatch: pytest.MonkeyPatch, fast: Export, model: Path
) -> None:
    monkeypatch.setattr(exporter, "simplify", lambda traced: Simplified(traced, "the simplifier hung", 1, 1))
    status, out, err = fast("--json", "-q")
    assert status == 0
    assert err == "warning: the simplifier hung; the graph as traced is kept\n"
    assert json.loads(out)["warnings"] == ["the simplifier hung; the graph as traced is kept"]
    assert model.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--opset", "10"], "10 is not in the range 11<=x<=23"),
        (["--head", "masks"], "'masks' is not one of 'logits', 'probabilities', 'labels'"),
        (["--input", "bytes"], "'bytes' is not one of 'float', 'pixels'"),
        (["--frame", "48by64"], "'48by64' is no size; expected HEIGHTxWIDTH in pixels"),
        (["--dynamic", "width"], "--dynamic: 'width' is not known; known are batch, size"),
        (["--limit", "7", "--images", "."], "7 is not in the range x>=8"),
        (["--limit", "9"], "--limit: for the pictures of --images only"),
        (["--convert", "grey"], "--convert: for the pictures of --images and --calibrate only"),
        (["--convert", "gray", "--images", "."], "--convert: 'gray' is not known"),
        (
            ["--backend", "ort", "--backend", "torch"],
            "--backend: 'torch' is not known; known are opencv, openvino, ort",
        ),
        (["--precision", "int4"], "'int4' is not one of 'fp32', 'fp16', 'int8'"),
        (["--precision", "int8"], "takes its ranges from real pictures; add --calibrate DATA"),
        (["--calibrate", "demo"], "--calibrate: for --precision int8 only"),
        (
            ["--precision", "fp16", "--budget", "1", "--int8-for", "cpu"],
            "--int8-for, --budget: for --precision int8 only",
        ),
        (["--weights", "w.pt", "--std", "1,1,1"], "--weights, --std: for MODULE:CALLABLE or FILE.py:CALLABLE only"),
        (["--report", "a/b.md", "--golden", "a/../a/b.md"], "--golden and --report name the same file"),
        (["--report", "street/b.md", "--hand-over", "street"], "--report lies in the folder of --hand-over"),
    ],
)
def test_wrong_use_ends_with_status_2(run: Export, model: Path, options: list[str], words: str) -> None:
    status, out, err = run(*options)
    assert (status, out) == (2, "")
    assert words in " ".join(err.split())
    assert not any(model.parent.iterdir())


def test_a_model_is_not_written_over_what_it_is_made_of(command: Command, tiny_checkpoint: Path) -> None:
    before = tiny_checkpoint.read_bytes()
    status, _, err = command(seg_export, tiny_checkpoint, "-o", tiny_checkpoint, "--overwrite")
    assert (status, tiny_checkpoint.read_bytes()) == (2, before)
    assert "--output and CHECKPOINT name the same file" in err


@pytest.mark.parametrize("option", ["--report", "--compare-images", "--golden"])
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("there.txt", "is there already; add --overwrite, or choose another name"),
        (".", "is a folder; expected the name of a file"),
        ("there.txt/new", "there.txt is no folder that you may write into"),
    ],
)
def test_places_are_looked_at_before_the_work(
    run: Export, model: Path, tmp_path: Path, option: str, place: str, words: str
) -> None:
    (tmp_path / "there.txt").write_text("something")
    status, out, err = run(option, tmp_path / place)
    assert (status, out) == (1, "")
    assert words in err
    assert err.count("\n") == 1
    assert not model.exists()


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (["chapter.tex"], ["--overwrite"], "holds other things than a hand-over (chapter.tex"),
        (["README.md", "card.json", "golden.npz", "triton"], [], "holds a hand-over already; add --overwrite"),
    ],
)
def test_the_folder_of_a_hand_over_is_looked_at_before_the_work(
    run: Export, model: Path, tmp_path: Path, content: list[str], options: list[str], words: str
) -> None:
    folder = tmp_path / "street"
    folder.mkdir()
    for name in content:
        (folder / name).touch()
    status, out, err = run("--hand-over", folder, *options)
    assert (status, out) == (1, "")
    assert words in err
    assert err.count("\n") == 1
    assert not model.exists()
    assert sorted(path.name for path in folder.iterdir()) == sorted(content)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.safetensors", "No such file"),
        ("best.pt", "is no checkpoint of seg-train; expected a .safetensors file"),
        ("text.safetensors", "cannot be read as a checkpoint"),
    ],
)
def test_what_is_no_checkpoint_ends_with_status_1_and_one_line(
    command: Command, tmp_path: Path, model: Path, name: str, words: str
) -> None:
    (tmp_path / "text.safetensors").write_text("no weights")
    status, out, err = command(seg_export, tmp_path / name, "-o", model)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1
    assert not any(model.parent.iterdir())


def test_a_folder_without_pictures_ends_with_status_1(run: Export, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    status, out, err = run("--images", tmp_path / "empty")
    assert (status, out) == (1, "")
    assert "empty holds no pictures" in err
    assert err.count("\n") == 1
    assert not any(model.parent.iterdir())


def test_a_network_of_ones_own_is_exported_with_its_weights(
    unsimplified: None, command: Command, nets: str, model: Path, tmp_path: Path, photo: NDArray[np.uint8]
) -> None:
    options = ("-o", model, "--weights", tmp_path / "nets.pt", *VALUES, "--backend", "ort", "-q")
    assert command(seg_export, nets, *options) == (0, "", "")
    card = read_card(model)
    assert (card.network, card.class_names) == (None, ("road", "car", "tree", "sky"))
    assert card.preprocess.mean == (0.485, 0.456, 0.406)
    with Segmenter(model, backend="ort") as segmenter:
        logits = segmenter(photo).logits
    assert logits is not None
    layer = nn.Conv2d(3, 4, 3, padding=1)
    layer.load_state_dict(torch.load(tmp_path / "nets.pt", weights_only=True))
    expected = layer(torch.from_numpy(card.preprocess(photo)))[0].detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_network_without_weights_says_whose_it_has(
    unsimplified: None, command: Command, nets: str, model: Path
) -> None:
    status, _, err = command(seg_export, nets, "-o", model, *VALUES, "--backend", "ort", "-q")
    assert status == 0
    assert err == f"warning: without --weights, the network has those that {nets} gives it\n"


def test_a_network_of_ones_own_takes_a_card_which_says_its_stride(
    unsimplified: None, command: Command, nets: str, model: Path, tmp_path: Path
) -> None:
    weights = ("--weights", tmp_path / "nets.pt")
    status, _, err = command(seg_export, nets, "-o", model, *weights, *VALUES, "--dynamic", "size")
    assert status == 2
    assert "give it as stride in a whole card: --card FILE.json" in " ".join(err.split())
    assert not model.exists()
    assert command(seg_export, nets, "-o", model, *weights, *VALUES, "--backend", "ort", "-q")[0] == 0
    whole = tmp_path / "card.json"
    whole.write_text(json.dumps(json.loads(read_card(model).to_json()) | {"stride": 4}))
    options = ("--card", whole, "--size", "28x32", "--dynamic", "size", "--backend", "ort", "-q", "--overwrite")
    assert command(seg_export, nets, "-o", model, *weights, *options) == (0, "", "")
    card = read_card(model)
    assert (card.stride, card.dynamic, card.preprocess.size) == (4, ("size",), (28, 32))


@pytest.mark.parametrize(
    ("target", "options", "status", "words"),
    [
        ("nets.py", [], 2, "nets.py is a file of code; add what to call in it, such as nets.py:make"),
        ("nets.py:make", [], 1, "give --class-names, --size, --mean, --std; or a whole card: --card FILE.json"),
        ("nets.py:build", VALUES, 1, "nets.py has no build; it has make"),
        ("nets.py:make(classes=3)", VALUES, 1, "expected logits (1, 4, h, w) float32, one for each of 4 classes"),
        ("no_such_module:make", VALUES, 1, "no module is called no_such_module"),
        ("nets.py:make", [*VALUES, "--weights", "none.pt"], 1, "none.pt is not there"),
        ("nets.pt", ["--class-names", "a,b"], 2, "--class-names: for MODULE:CALLABLE or FILE.py:CALLABLE only"),
    ],
)
def test_what_is_wrong_with_a_network_of_ones_own_is_one_line(
    command: Command,
    nets: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    options: list[str],
    status: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = command(seg_export, target, "-o", model, *options)
    assert (found, out) == (status, "")
    assert words in " ".join(err.split())
    lines = [line for line in err.splitlines() if line.lower().startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in err
    assert not any(model.parent.iterdir())


def test_a_checkpoint_whose_name_looks_like_code_is_a_checkpoint(
    unsimplified: None, command: Command, tiny_checkpoint: Path, model: Path, tmp_path: Path
) -> None:
    place = tmp_path / "run:best.safetensors"
    place.write_bytes(tiny_checkpoint.read_bytes())
    assert command(seg_export, place, "-o", model, "--backend", "ort", "-q") == (0, "", "")
