import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from PIL import Image as PillowImage
from torch import Tensor, nn
from torch.nn import functional

from segship.benchmarks.seeded import seeded_network
from segship.export import calibration, exporter, pictures, trial
from segship.export.exporter import ExportResult, Quantisation, export
from segship.export.parity import Reference
from segship.export.write import drafting
from segship.runtime.card import CARD_KEY, DynamicAxis, Head, ModelCard
from segship.runtime.errors import CardError, CheckpointError, ExportError, ImageError
from segship.runtime.external_data import external_files
from segship.runtime.model_file import content_sha256, read_card, read_onnx_header
from segship.runtime.palettes import distinct_colors
from segship.runtime.segmenter import Segmenter
from segship.training.checkpoint import load_checkpoint, save_checkpoint

ENGINES = ["ort", "opencv", "openvino"]


@pytest.fixture(scope="module")
def default_export(tiny_checkpoint: Path, picture: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """The tiny network, exported with what is the default."""
    return export(tiny_checkpoint, tmp_path_factory.mktemp("default_export") / "tiny.onnx", images=[picture])


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time and measure reduced graphs on little."""
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    monkeypatch.setattr(calibration, "MEASURED", 4)


@pytest.fixture
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare on two real pictures."""
    monkeypatch.setattr(pictures, "REAL_PICTURES", 2)


def gated(result: ExportResult) -> list[tuple[str, str]]:
    return [(row.engine.backend, row.verdict) for row in result.parity.rows if row.gate is not None]


def shape(value: onnx.ValueInfoProto) -> tuple[str, str, list[int | str]]:
    kind = value.type.tensor_type
    sides = [side.dim_param or side.dim_value for side in kind.shape.dim]
    return value.name, TensorProto.DataType.Name(kind.elem_type), sides


def seeded(card: ModelCard, size: tuple[int, int], classes: int) -> Reference:
    """Return a seeded network for the form of a card, of another size and number of classes."""
    card = dataclasses.replace(
        card,
        class_names=tuple(f"class {number}" for number in range(classes)),
        palette=distinct_colors(classes),
        ignore_index=65535,
        preprocess=dataclasses.replace(card.preprocess, size=size),
    )
    return Reference(seeded_network(card), card)


# What is in the file


@pytest.mark.parametrize("opset", [11, 23])
def test_the_file_has_the_opset_that_was_asked_for_and_less_nodes_than_were_traced(
    tiny_checkpoint: Path, picture: Path, tmp_path: Path, opset: int
) -> None:
    path = tmp_path / "model.onnx"
    result = export(tiny_checkpoint, path, opset=opset, input_form="pixels", images=[picture], backends=["ort"])
    model = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert result.opset == read_onnx_header(result.path).opset == opset
    assert len(model.graph.node) == result.nodes < result.nodes_traced
    assert gated(result) == [("ort", "same")]
    assert result.warnings == ()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("opset", [0, 10, 24, 99])
def test_an_opset_that_cannot_be_written_is_refused(tiny_checkpoint: Path, tmp_path: Path, opset: int) -> None:
    with pytest.raises(ExportError, match=rf"opset {opset} was asked for; 11…23 can be written"):
        export(tiny_checkpoint, tmp_path / "model.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


def test_a_tracer_that_writes_another_opset_is_found_out(
    monkeypatch: pytest.MonkeyPatch, unsimplified: None, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    trace = exporter.trace
    monkeypatch.setattr(exporter, "trace", lambda module, card, opset: trace(module, card, opset + 1))
    with pytest.raises(ExportError, match="opset 17 was asked for, but the exporter wrote opset 18; no file is left"):
        export(tiny_checkpoint, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_the_card_in_the_file_is_that_of_the_result_and_the_only_metadata(default_export: ExportResult) -> None:
    model = onnx.load(default_export.path)
    assert [entry.key for entry in model.metadata_props] == [CARD_KEY]
    assert ModelCard.from_json(model.metadata_props[0].value, origin="test") == default_export.card
    assert read_card(default_export.path) == default_export.card


def test_the_card_keeps_what_the_checkpoint_says_and_adds_where_it_comes_from(
    default_export: ExportResult, tiny_checkpoint: Path
) -> None:
    trained, card = read_card(tiny_checkpoint), default_export.card
    assert card.provenance.checkpoint_sha256 == hashlib.sha256(tiny_checkpoint.read_bytes()).hexdigest()
    assert {"onnx", "onnxsim", "segship"} <= card.provenance.versions.keys()
    assert dataclasses.replace(card, provenance=trained.provenance, certificate=None) == trained


def test_the_certificate_is_this_files_and_says_what_was_compared(default_export: ExportResult) -> None:
    certificate = default_export.card.certificate
    assert certificate is not None
    assert certificate == default_export.parity.certificate(content_sha256(default_export.path))
    assert certificate.reference == f"PyTorch {torch.__version__} on cpu"
    assert certificate.pictures == "3 random, 1 given, 7 built-in"
    assert [row.backend for row in certificate.rows if row.passes] == ENGINES


def test_the_graph_takes_one_picture_and_returns_what_the_card_promises(default_export: ExportResult) -> None:
    graph = onnx.load(default_export.path).graph
    assert [shape(value) for value in graph.input] == [("image", "FLOAT", [1, 3, 48, 64])]
    assert [shape(value) for value in graph.output] == [("logits", "FLOAT", [1, 6, 48, 64])]


def test_nothing_of_tools_and_this_machine_is_left_in_the_file(default_export: ExportResult) -> None:
    model = onnx.load(default_export.path)
    assert (model.producer_name, model.graph.name) == ("segship", "unet")
    content = default_export.path.read_bytes()
    for trace in (
        str(Path(exporter.__file__).resolve().parent),
        "site-packages",
        "torch.nn",
        "/tmp/",
        ".py",
        "onnxsim.",
    ):
        assert trace.encode() not in content, trace


def test_the_result_counts_what_is_in_the_file(default_export: ExportResult) -> None:
    model = onnx.load(default_export.path)
    assert default_export.nodes == len(model.graph.node) <= default_export.nodes_traced
    assert default_export.bytes == default_export.path.stat().st_size
    assert (default_export.sheet, default_export.speed_ratio) == (None, None)


def test_the_same_checkpoint_gives_the_same_file(
    default_export: ExportResult, tiny_checkpoint: Path, picture: Path, tmp_path: Path
) -> None:
    again = export(tiny_checkpoint, tmp_path / "again.onnx", images=[picture])
    assert again.path.read_bytes() == default_export.path.read_bytes()


def test_what_is_done_is_told(unsimplified: None, tiny_checkpoint: Path, tmp_path: Path) -> None:
    told: list[str] = []
    export(tiny_checkpoint, tmp_path / "model.onnx", backends=["ort"], tell=told.append)
    assert told == ["tracing", "simplifying", "comparing with PyTorch"]


def test_large_weights_lie_beside_the_file_and_are_part_of_what_was_proven(
    monkeypatch: pytest.MonkeyPatch, unsimplified: None, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(exporter, "drafting", functools.partial(drafting, external_above=10_000))
    result = export(tiny_checkpoint, tmp_path / "tiny.onnx", backends=["ort"])
    (weights,) = external_files(result.path)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.onnx", weights.name}
    assert result.bytes == result.path.stat().st_size + weights.stat().st_size
    certificate = result.card.certificate
    assert certificate is not None
    assert certificate.content_sha256 == content_sha256(result.path)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert certificate.content_sha256 != content_sha256(result.path)


# Its form


def test_labels_and_probabilities_are_those_of_the_logits(
    unsimplified: None, tiny_checkpoint: Path, tiny_model: Path, tiny_labels_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "probabilities.onnx"
    result = export(tiny_checkpoint, path, head="probabilities", backends=["ort", "opencv"])
    assert gated(result) == [("ort", "same"), ("opencv", "same")]
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    with Segmenter(tiny_model, backend="ort") as segmenter:
        logits = segmenter(noise).logits
        assert logits is not None
    batch = read_card(tiny_model).preprocess(noise)
    found = {}
    for model in (path, tiny_labels_model):
        card = read_card(model)
        with Segmenter(model, backend="ort") as segmenter:
            found[card.output_name] = segmenter.processing.backend.run(batch)[0]
    assert (found["labels"].dtype, found["labels"].shape) == (np.uint8, (48, 64))
    assert (found["labels"] == logits.argmax(axis=0)).mean() > 0.9999
    expected = np.exp(logits) / np.exp(logits).sum(axis=0)
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)


@pytest.mark.usefixtures("unsimplified")
@pytest.mark.parametrize(("head", "opset"), [("logits", 11), ("probabilities", 23), ("labels", 13)])
def test_a_binary_network_exports_with_any_head(
    make_checkpoint: Callable[..., Path], tmp_path: Path, head: Head, opset: int
) -> None:
    checkpoint = make_checkpoint(tmp_path / "binary.safetensors", threshold=0.45)
    result = export(checkpoint, tmp_path / "binary.onnx", opset=opset, head=head, backends=["ort", "opencv"])
    assert gated(result) == [("ort", "same"), ("opencv", "same")]
    assert read_onnx_header(result.path).outputs == {head: (1, 48, 64) if head == "labels" else (1, 1, 48, 64)}
    assert (result.card.task, result.card.threshold, result.card.num_logits) == ("binary", 0.45, 1)


@pytest.mark.usefixtures("unsimplified")
def test_open_axes_pixels_and_another_size_reach_the_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    axes: list[DynamicAxis] = ["batch", "size"]
    result = export(tiny_checkpoint, tmp_path / "m.onnx", dynamic=axes, input_form="pixels", size=(32, 64))
    assert gated(result) == [(name, "same") for name in ENGINES]
    assert result.parity.pictures == "3 random, 8 built-in, at 32×64, 48×48, 32×96, in batches of 1, 2, 3"
    graph = onnx.load(result.path).graph
    assert shape(graph.input[0]) == ("image", "UINT8", ["batch", "height", "width", 3])
    assert shape(graph.output[0]) == ("logits", "FLOAT", ["batch", 6, "height", "width"])
    assert (result.card.preprocess.size, result.card.stride) == ((32, 64), 16)


@pytest.mark.usefixtures("unsimplified")
def test_a_frame_goes_in_and_labels_of_its_size_come_out(tiny_checkpoint: Path, tmp_path: Path) -> None:
    network, card = load_checkpoint(tiny_checkpoint)
    form = dataclasses.replace(card.preprocess, interpolation="linear_float")  # trained as the graph resizes
    reference = Reference(network, dataclasses.replace(card, preprocess=form))
    result = export(reference, tmp_path / "camera.onnx", frame=(59, 81))
    assert gated(result) == [(name, "same") for name in ENGINES]
    graph = onnx.load(result.path).graph
    assert shape(graph.input[0]) == ("image", "UINT8", [1, 59, 81, 3])
    assert shape(graph.output[0]) == ("labels", "UINT8", [1, 59, 81])


@pytest.mark.usefixtures("unsimplified")
def test_a_network_for_tiles_has_the_size_of_one_and_is_compared_on_blended_pictures(
    make_checkpoint: Callable[..., Path], picture: Path, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "tiled.safetensors", tile_overlap=0.25)
    result = export(checkpoint, tmp_path / "tiled.onnx", images=[picture] * 8, backends=["ort"])
    assert read_onnx_header(result.path).inputs == {"image": (1, 3, 48, 64)}
    assert result.card.tile_overlap == 0.25
    assert [row.comparison.pixels for row in result.parity.rows if row.comparison] == [3 * 48 * 64 + 8 * 90 * 120]
    with pytest.raises(CardError, match=r"tile_overlap is 0\.25 and its head labels.*export with --head logits"):
        export(checkpoint, tmp_path / "labels.onnx", head="labels")
    assert {path.name for path in tmp_path.iterdir()} == {"tiled.safetensors", "tiled.onnx"}


@pytest.mark.usefixtures("unsimplified")
@pytest.mark.parametrize("depth", ["uint8", "uint16"])
def test_grey_networks_export_in_their_depth(make_checkpoint: Callable[..., Path], tmp_path: Path, depth: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "grey.safetensors", channels=1, depth=depth)
    noise = np.random.default_rng(0).integers(0, np.iinfo(depth).max, (60, 80), depth)
    PillowImage.fromarray(noise).save(tmp_path / "picture.png")
    images = [tmp_path / "picture.png"]
    result = export(checkpoint, tmp_path / "grey.onnx", input_form="pixels", images=images, backends=["ort", "opencv"])
    assert gated(result) == [("ort", "same"), ("opencv", "same")]
    assert shape(onnx.load(result.path).graph.input[0]) == ("image", depth.upper(), [1, 48, 64, 1])


# Odd numbers


@pytest.mark.usefixtures("unsimplified", "few_pictures")
def test_sizes_that_no_pool_divides_are_exported_right(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    # U²-Net rounds up in every pool, which engines have ignored; 33×47 is odd at every scale but one.
    checkpoint = make_checkpoint(tmp_path / "u2netp.safetensors", arch="u2netp", size=(33, 47), threshold=0.45)
    result = export(checkpoint, tmp_path / "u2netp.onnx", backends=["ort", "opencv"])
    assert gated(result) == [("ort", "same"), ("opencv", "same")]
    assert read_onnx_header(result.path).outputs == {"logits": (1, 1, 33, 47)}


@pytest.mark.usefixtures("unsimplified", "few_pictures")
def test_forty_one_classes_are_exported_right_in_batches_of_three(tiny_checkpoint: Path, tmp_path: Path) -> None:
    reference = seeded(read_card(tiny_checkpoint), (45, 61), 41)
    result = export(reference, tmp_path / "many.onnx", dynamic=["batch"], backends=["ort", "opencv"])
    assert gated(result) == [("ort", "same"), ("opencv", "same")]
    assert result.parity.pictures.endswith(", in batches of 1, 2, 3")
    assert read_onnx_header(result.path).outputs == {"logits": (None, 41, 45, 61)}
    noise = np.random.default_rng(0).integers(0, 256, (3, 45, 61, 3), np.uint8)
    with Segmenter(result.path, backend="opencv") as segmenter:
        for one, image in zip(segmenter.batch(list(noise)), noise, strict=True):
            np.testing.assert_array_equal(one.labels, segmenter(image).labels)


@pytest.mark.usefixtures("unsimplified", "few_pictures")
def test_more_classes_than_8_bits_hold_are_16_bit_labels(tiny_checkpoint: Path, tmp_path: Path) -> None:
    reference = seeded(read_card(tiny_checkpoint), (16, 32), 300)
    result = export(reference, tmp_path / "many.onnx", head="labels", backends=["ort"])
    assert shape(onnx.load(result.path).graph.output[0]) == ("labels", "UINT16", [1, 16, 32])


# Its precision


@pytest.mark.usefixtures("unsimplified", "impatient")
def test_half_precision_keeps_the_labels_and_float32_at_the_door(tiny_checkpoint: Path, tmp_path: Path) -> None:
    told: list[str] = []
    result = export(tiny_checkpoint, tmp_path / "half.onnx", precision="fp16", backends=["ort"], tell=told.append)
    assert told[-1] == "comparing fp16 with PyTorch"
    graph = onnx.load(result.path).graph
    assert shape(graph.input[0]) == ("image", "FLOAT", [1, 3, 48, 64])
    assert shape(graph.output[0]) == ("logits", "FLOAT", [1, 6, 48, 64])
    assert TensorProto.FLOAT16 in {tensor.data_type for tensor in graph.initializer}
    assert result.card.precision == "fp16"
    (row,) = result.parity.certificate("").rows
    assert (row.precision, row.gate, row.passes) == ("fp16", "≥ 99.9 % same labels", True)
    assert 1e-5 < (row.max_abs or 0) < 0.1
    assert result.nodes == len(graph.node)


class FourLayers(nn.Module):
    """A network that has few layers to measure."""

    def __init__(self) -> None:
        super().__init__()
        sides = [3, 8, 8, 8, 6]
        layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(sides)]
        self.layers = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))[:-1]

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.layers(image),)


@pytest.fixture
def few_layers(tiny_checkpoint: Path) -> Reference:
    torch.manual_seed(0)
    return Reference(FourLayers().eval(), dataclasses.replace(read_card(tiny_checkpoint), network=None))


@pytest.mark.usefixtures("unsimplified", "impatient")
def test_8_bits_within_a_budget_and_with_a_sheet(few_layers: Reference, tmp_path: Path) -> None:
    quantisation = Quantisation("demo", images=4, budget=20)
    result = export(few_layers, tmp_path / "q.onnx", precision="int8", quantisation=quantisation, backends=["ort"])
    assert result.card.precision == "int8"
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(result.path).graph.node}
    assert result.sheet is not None
    assert result.sheet.unit == "points of mIoU"
    assert [row.decision for row in result.sheet.rows] == ["int8"] * len(result.sheet.rows)
    (row,) = result.parity.certificate("").rows
    assert (row.precision, row.gate) == ("int8", "≤ 20 points of mIoU lost")
    assert row.lost is not None
    assert row.lost == pytest.approx(result.sheet.damage, abs=1e-9)
    assert result.speed_ratio is not None
    slow = "int8 is not faster than fp32 here: "
    assert any(warning.startswith(slow) for warning in result.warnings) is (result.speed_ratio <= 1)


@pytest.mark.usefixtures("unsimplified", "impatient")
def test_a_budget_that_nothing_keeps_is_an_error_and_leaves_no_file(
    few_layers: Reference, picture: Path, tmp_path: Path
) -> None:
    quantisation = Quantisation(str(picture.parent), images=1, budget=0)
    path = tmp_path / "q.onnx"
    with pytest.raises(ExportError, match="no choice of layers keeps within the budget of 0 % of the labels"):
        export(few_layers, path, precision="int8", quantisation=quantisation, backends=["ort"])
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("unsimplified", "impatient")
def test_what_is_not_faster_is_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch, few_layers: Reference, tmp_path: Path
) -> None:
    monkeypatch.setattr(exporter, "speed_ratio", lambda *_: 0.5)
    result = export(few_layers, tmp_path / "half.onnx", precision="fp16", backends=["ort"])
    assert result.warnings == ("fp16 is not faster than fp32 here: 0.50 times as fast in ONNX Runtime",)


@pytest.mark.parametrize("how", [{"precision": "int8"}, {"quantisation": Quantisation("demo")}], ids=str)
def test_8_bits_need_pictures_and_nothing_else_takes_them(
    tiny_checkpoint: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    with pytest.raises(ExportError, match="give them with --calibrate, and only for int8"):
        export(tiny_checkpoint, tmp_path / "model.onnx", **how)


# What goes wrong


class Folded(nn.Module):
    """Does what ONNX Runtime alone can."""

    def forward(self, image: Tensor) -> tuple[Tensor]:
        patches = functional.unfold(image, 3, padding=1)
        return (torch.cat([image, functional.fold(patches, (48, 64), 3, padding=1)], dim=1),)


@pytest.mark.usefixtures("unsimplified")
def test_an_engine_that_cannot_run_the_file_is_said_under_the_files_own_name(
    few_layers: Reference, tmp_path: Path
) -> None:
    odd = dataclasses.replace(few_layers, network=Folded().eval())
    result = export(odd, tmp_path / "odd.onnx", opset=18, backends=["ort", "opencv"])
    assert gated(result) == [("ort", "same")]
    (warning,) = result.warnings
    assert warning.startswith("opencv cannot run this file, and says so: odd.onnx: OpenCV ")
    with pytest.raises(ExportError, match=r"odd\.onnx was not written: no engine here can run it \(opencv: odd\.onnx"):
        export(odd, tmp_path / "odd.onnx", opset=18, backends=["opencv"])
    assert [path.name for path in tmp_path.iterdir()] == ["odd.onnx"]
    certificate = read_card(result.path).certificate
    assert certificate is not None
    assert certificate.content_sha256 == content_sha256(result.path)


@pytest.mark.usefixtures("unsimplified")
def test_an_interruption_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def interrupt(step: str) -> None:
        if step == "comparing with PyTorch":
            assert len(list(tmp_path.iterdir())) == 1, "the temporary file should be there by now"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(tiny_checkpoint, tmp_path / "model.onnx", tell=interrupt)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("unsimplified")
def test_pictures_that_cannot_be_read_leave_no_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"?")
    with pytest.raises(ImageError, match=r"broken\.png"):
        export(tiny_checkpoint, tmp_path / "out/model.onnx", images=[broken])
    assert not list((tmp_path / "out").iterdir())


def test_weights_that_are_no_numbers_are_named_and_not_exported(tiny_checkpoint: Path, tmp_path: Path) -> None:
    network, card = load_checkpoint(tiny_checkpoint)
    network.get_submodule("head.0").get_parameter("weight").data[0] = float("nan")
    save_checkpoint(tmp_path / "nan.safetensors", network, card)
    with pytest.raises(ExportError, match=r"the weight head\.0\.weight holds values that are no numbers"):
        export(tmp_path / "nan.safetensors", tmp_path / "nan.onnx")
    assert not (tmp_path / "nan.onnx").exists()


def test_what_is_no_checkpoint_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tiny\.onnx is no checkpoint of seg-train"):
        export(tiny_model, tmp_path / "model.onnx")
