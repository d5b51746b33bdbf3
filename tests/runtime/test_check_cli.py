import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.card import ModelCard, Network, Provenance
from segship.runtime.certificate import Certificate, Proof
from segship.runtime.check_cli import seg_check
from segship.runtime.compare import Expected
from segship.runtime.golden import Example, write_golden
from segship.runtime.model_file import content_sha256, has_card, read_card, write_card
from segship.runtime.segmenter import Segmenter

Command = Callable[..., tuple[int, str, str]]

VALUES = ("--class-names", "a,b,c,d,e,f", "--mean", "0.4,0.45,0.5", "--std", "0.2,0.21,0.22")
MORE = ("--color-order", "RGB", "--scale", "full_scale", "--head", "logits")
ENGINES = ("--backend", "ort", "--backend", "opencv")


@pytest.fixture
def check(command: Command) -> Command:
    """Run ``seg-check``; return exit status, stdout and stderr."""
    return lambda *arguments: command(seg_check, *arguments)


@pytest.fixture
def foreign(conv_model: Path) -> Path:
    """``conv_model`` without its card."""
    model = onnx.load(conv_model)
    del model.metadata_props[:]
    path = conv_model.with_name("foreign.onnx")
    onnx.save(model, path)
    return path


@pytest.fixture
def picture(tmp_path: Path, photo: NDArray[np.uint8]) -> Path:
    path = tmp_path / "picture.png"
    PillowImage.fromarray(photo).save(path)
    return path


@pytest.fixture
def golden(conv_model: Path, picture: Path, tmp_path: Path) -> Path:
    with Segmenter(conv_model, backend="ort", device="cpu") as segmenter:
        expected = Expected.of(segmenter(picture), segmenter.processing.stages(picture), segmenter.card)
    path = tmp_path / "golden.npz"
    write_golden(
        path, read_card(conv_model), content_sha256(conv_model), [Example("p", picture.read_bytes(), expected)]
    )
    return path


def _certify(model: Path) -> None:
    proof = Proof("ort", "ONNX Runtime 1", "cpu", "fp32", "a gate", True, 1e-6, 1e-7, 1.0, 1.0, 0, 1.0)
    certificate = Certificate(content_sha256(model), "PyTorch 2.13.0 on cpu", "3 random", 1e-4, 1e-3, (proof,))
    write_card(model, dataclasses.replace(read_card(model), certificate=certificate))


def test_a_model_that_is_the_same_ends_with_0(
    check: Command, conv_model: Path, golden: Path, picture: Path, tmp_path: Path
) -> None:
    _certify(conv_model)
    report, drawing = tmp_path / "report.md", tmp_path / "drawing.png"
    arguments = ("model", conv_model, picture, "--golden", golden, *ENGINES, "--report", report)
    status, out, err = check(*arguments, "--compare-images", drawing)
    assert status == 0, err
    assert "Certificate: matches this file" in out
    assert out.count("| same |") == 4  # two engines against golden, one against the other, one in the certificate
    assert report.read_text() == out
    with PillowImage.open(drawing) as image:
        assert image.size[0] > 400
    assert "loading ort …" in err
    assert check(*arguments)[0] == 1
    assert check(*arguments, "--overwrite", "-q")[1:] == ("", "")


@pytest.mark.extras
def test_a_changed_card_ends_with_1_and_is_named(check: Command, conv_model: Path) -> None:
    _certify(conv_model)
    card = read_card(conv_model)
    write_card(conv_model, dataclasses.replace(card, preprocess=dataclasses.replace(card.preprocess, mean=(0.5,) * 3)))
    status, out, _ = check("model", conv_model, *ENGINES)
    assert status == 1
    assert "DOES NOT match this file" in out
    assert "NOT THE SAME: the certificate is not this file's" in out
    status, out, err = check("model", conv_model, *ENGINES, "-q")
    assert (status, out) == (1, "")
    assert err == "the certificate is not this file's: its graph, weights or card were changed after the proof\n"


def test_json_is_one_document(check: Command, conv_model: Path, golden: Path) -> None:
    status, out, _ = check("model", conv_model, "--golden", golden, *ENGINES, "--json")
    assert status == 0
    assert json.loads(out)["passes"] is True


def test_golden_outputs_of_another_model_are_one_line(
    check: Command, golden: Path, conv_card: ModelCard, write_conv_model: Callable[..., Path], tmp_path: Path
) -> None:
    other = write_conv_model(tmp_path / "other.onnx", conv_card, seed=4)
    status, out, err = check("model", other, "--golden", golden, "-q")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "was made for another model" in err


def test_a_drawing_needs_something_to_compare(check: Command, conv_model: Path, tmp_path: Path) -> None:
    status, _, err = check("model", conv_model, "--compare-images", tmp_path / "x.png")
    assert status == 2
    assert "give --golden FILE or pictures" in err


def test_a_card_is_shown(check: Command, conv_model: Path) -> None:
    card = read_card(conv_model)
    shown = dataclasses.replace(
        card,
        network=Network("unet", {"base_channels": 16}),
        provenance=Provenance("ab" * 32, "camvid", 40, {"miou": 0.5}, {"torch": "2.13.0"}),
        class_names=("ground\x1b[2J", *card.class_names[1:]),
    )
    write_card(conv_model, shown)
    _certify(conv_model)
    status, out, err = check("card", conv_model)
    assert (status, err) == (0, "")
    for words in (
        "unet base_channels=16, fp32",
        "multiclass, 6 classes",
        "brought to 24×32 (height × width)",
        "(value / 255 − mean) / std, mean 0.4, 0.45, 0.5, std 0.2, 0.21, 0.22",
        "image (1, 3, 24, 32) float32",
        "logits (1, 6, 24, 32): logits",
        "camvid, epoch 40",
        "miou 0.5",
        "torch=2.13.0",
        "ab" * 32,
        r"0    #70543c  ground\x1b[2J",
        "5    #ececec  wire",
        "matches this file; against PyTorch 2.13.0 on cpu, on 3 random",
        "| ONNX Runtime 1 | cpu | fp32 |",
    ):
        assert words in out
    assert "\x1b" not in out


def test_every_form_of_a_card_is_shown(check: Command, conv_model: Path) -> None:
    card = read_card(conv_model)
    frame = dataclasses.replace(card, input_form="pixels", frame=(48, 64), dynamic=("batch",))
    write_card(conv_model, frame)
    out = check("card", conv_model)[1]
    assert "image (open, 48, 64, 3) uint8, open: batch" in out
    assert "linear_exact, in the graph" in out
    tiles = dataclasses.replace(card, tile_overlap=0.5, class_names=("x", "y"), palette=card.palette[:2], task="binary")
    write_card(conv_model, tiles)
    out = check("card", conv_model)[1]
    assert "cut into tiles that overlap by 50%" in out
    assert "binary, y above 0.5, 2 classes" in out


def test_a_card_is_printed_as_json(check: Command, conv_model: Path) -> None:
    status, out, _ = check("card", conv_model, "--json")
    assert status == 0
    assert ModelCard.from_json(out, origin="out") == read_card(conv_model)


def test_the_card_of_a_checkpoint_is_shown(check: Command, tmp_path: Path, conv_card: ModelCard) -> None:
    header = json.dumps({"__metadata__": {"segship": conv_card.to_json()}}).encode()
    (tmp_path / "best.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "multiclass, 6 classes" in check("card", tmp_path / "best.safetensors")[1]


def test_a_foreign_model_gets_a_card_and_runs(check: Command, foreign: Path, conv_model: Path, picture: Path) -> None:
    output = foreign.with_name("described.onnx")
    status, out, err = check("card", foreign, *VALUES, *MORE, "-o", output)
    assert (status, err) == (0, "")
    assert "0    #ffffff  a" in out
    assert not has_card(foreign)
    with Segmenter(output, backend="ort") as described, Segmenter(conv_model, backend="ort") as original:
        np.testing.assert_array_equal(described(picture).labels, original(picture).labels)


def test_how_pictures_are_brought_to_size_is_kept(check: Command, foreign: Path) -> None:
    output = foreign.with_name("described.onnx")
    status, out, err = check("card", foreign, *VALUES, *MORE, "--resize", "letterbox", "--fill", "114", "-o", output)
    assert (status, err) == (0, "")
    assert "letterbox, linear_exact, filled with 114" in out
    assert (read_card(output).preprocess.resize, read_card(output).preprocess.fill) == ("letterbox", 114)
    assert check("card", output, "-o", foreign.with_name("again.onnx"))[0] == 2


def test_what_a_file_of_ultralytics_says_is_shown_and_kept_without_values(check: Command, foreign: Path) -> None:
    model = onnx.load(foreign)
    names = str(dict(enumerate("abcdef")))
    onnx.helper.set_model_props(model, {"author": "Ultralytics", "task": "semantic", "names": names})
    onnx.save(model, foreign)
    status, out, err = check("card", foreign)
    assert (status, err) == (0, "")
    assert "letterbox, linear_exact, filled with 114" in out
    output = foreign.with_name("kept.onnx")
    assert check("card", foreign, "-q", "-o", output) == (0, "", "")
    assert read_card(output).class_names == tuple("abcdef")
    assert not has_card(foreign)


def test_a_model_is_changed_in_place_only_if_that_is_asked_for(check: Command, foreign: Path) -> None:
    before = foreign.read_bytes()
    status, _, err = check("card", foreign, *VALUES, *MORE)
    assert (status, foreign.read_bytes()) == (1, before)
    assert "would be changed; add --overwrite" in err
    assert check("card", foreign, *VALUES, *MORE, "--overwrite")[0] == 0
    assert read_card(foreign).class_names == tuple("abcdef")
    status, _, err = check("card", foreign, *VALUES, *MORE, "-o", foreign.with_name("again.onnx"))
    assert status == 1
    assert "carries its own card" in err


def test_a_card_file_is_embedded(check: Command, foreign: Path, conv_card: ModelCard, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(conv_card.to_json())
    output = foreign.with_name("described.onnx")
    assert check("card", foreign, "--card", tmp_path / "card.json", "-o", output, "-q") == (0, "", "")
    assert read_card(output) == conv_card
    status, _, err = check("card", foreign, "--card", tmp_path / "card.json", "-o", output)
    assert status == 1
    assert "described.onnx is there already" in err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (VALUES, 1, "the card lacks what only you know: give --color-order, --scale; or a whole card"),
        ((*VALUES, *MORE, "--class-names", "a,b"), 1, "returns logits (1, 6, 24, 32), which cannot be logits of"),
        ((*VALUES, *MORE, "--fill", "9"), 1, "fill is 9 and resize is stretch"),
        ((*VALUES, *MORE, "--output-stride", "2"), 1, "but its graph has (1, 6, 24, 32)"),
        ((*VALUES, *MORE, "--size", "48x64"), 1, "but its graph has (1, 3, 24, 32)"),
        ((*VALUES, *MORE, "--input-name", "other"), 1, "--input-name is 'other', but the graph has image"),
        (("--card", "x.json", "--scale", "full_scale"), 2, "give it alone"),
        (("--color-order", "RBG"), 2, "'RBG' is not one of"),
        (("--resize", "crop"), 2, "'crop' is not one of"),
        ((), 1, "the card lacks what only you know: give --class-names (the graph returns (1, 6, 24, 32)), --mean"),
        (("--card", "x.json"), 1, "x.json: the card cannot be read"),
    ],
)
def test_a_card_that_does_not_fit_is_not_written(
    check: Command, foreign: Path, arguments: tuple[str, ...], status: int, words: str
) -> None:
    output = foreign.with_name("described.onnx")
    got, out, err = check("card", foreign, *arguments, "-o", output)
    assert (got, out) == (status, "")
    assert words in err
    assert not output.exists()


def test_what_is_no_model_is_one_line(check: Command, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("text")
    for arguments in (("card",), ("model",), ("card", *VALUES, *MORE)):
        status, out, err = check(arguments[0], tmp_path / "text.onnx", *arguments[1:])
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert "no ONNX file" in err or "would be changed" in err
