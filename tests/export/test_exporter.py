import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image as PillowImage

from segship.export import exporter
from segship.export.exporter import ExportResult, export
from segship.runtime.card import CARD_KEY, Head, ModelCard
from segship.runtime.errors import CardError, CheckpointError, ExportError, ParityError
from segship.runtime.model_file import read_card, read_onnx_header
from segship.runtime.palettes import ClassTable
from segship.runtime.segmenter import Segmenter
from segship.training.checkpoint import load_checkpoint, save_checkpoint
from segship.training.networks import build_network

Change = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, picture: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """The tiny network, exported with what is the default."""
    return export(tiny_checkpoint, tmp_path_factory.mktemp("exported") / "tiny.onnx", images=[picture])


@pytest.fixture
def sabotage(monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], None]:
    """Let the simplifier change the graph as it is told, and say that all is well."""

    def install(change: Change) -> None:
        def simplify(traced: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
            changed = onnx.ModelProto()
            changed.CopyFrom(traced)
            change(changed)
            return changed, ""

        monkeypatch.setattr(exporter, "_simplify", simplify)

    return install


def _convolutions(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [tensor for tensor in model.graph.initializer if len(tensor.dims) == 4]


def _perturb_one_weight(model: onnx.ModelProto) -> None:
    tensor = _convolutions(model)[3]
    weights = numpy_helper.to_array(tensor).copy()
    weights.flat[7] += 0.5
    tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))


def _swap_red_and_blue(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in _convolutions(model) if tensor.dims[1] == 3)
    weights = numpy_helper.to_array(tensor)[:, ::-1]
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weights), tensor.name))


def _divide_by_zero(model: onnx.ModelProto) -> None:
    tensor = _convolutions(model)[0]
    infinite = np.full_like(numpy_helper.to_array(tensor), np.inf)
    tensor.CopyFrom(numpy_helper.from_array(infinite, tensor.name))


def _lose_an_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "nowhere"


def _claim_another_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 16


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_the_file_has_the_opset_that_was_asked_for(
    tiny_checkpoint: Path, picture: Path, tmp_path: Path, opset: int
) -> None:
    result = export(tiny_checkpoint, tmp_path / "model.onnx", opset=opset, images=[picture])
    model = onnx.load(result.path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert result.opset == read_onnx_header(result.path).opset == opset
    assert all(row.comparison.passes for row in result.parity.rows)
    assert result.simplifier_fault == ""
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("opset", [0, 10, 24, 99])
def test_an_opset_that_cannot_be_written_is_refused(tiny_checkpoint: Path, tmp_path: Path, opset: int) -> None:
    with pytest.raises(ExportError, match=rf"opset {opset} was asked for; 11…23 can be written"):
        export(tiny_checkpoint, tmp_path / "model.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


def test_the_card_in_the_file_is_that_of_the_result_and_the_only_metadata(exported: ExportResult) -> None:
    model = onnx.load(exported.path)
    assert [entry.key for entry in model.metadata_props] == [CARD_KEY]
    assert ModelCard.from_json(model.metadata_props[0].value, origin="test") == exported.card
    assert read_card(exported.path) == exported.card


def test_the_card_keeps_what_the_checkpoint_says_and_adds_where_it_comes_from(
    exported: ExportResult, tiny_checkpoint: Path
) -> None:
    trained, card = read_card(tiny_checkpoint), exported.card
    assert card.provenance.checkpoint_sha256 == hashlib.sha256(tiny_checkpoint.read_bytes()).hexdigest()
    assert {"onnx", "onnxsim", "segship"} <= card.provenance.versions.keys()
    assert (card.head, card.output_name) == ("logits", "logits")
    assert dataclasses.replace(card, provenance=trained.provenance) == trained


def test_nothing_of_tools_and_this_machine_is_left_in_the_file(exported: ExportResult) -> None:
    model = onnx.load(exported.path)
    assert model.producer_name == "segship"
    assert model.graph.name == "unet"
    graph = model.graph
    described = [model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info]
    assert not [item for item in described if item.doc_string]
    assert not [node for node in [graph, *graph.node] if node.metadata_props]
    content = exported.path.read_bytes()
    for trace in (str(Path(exporter.__file__).resolve().parent), "site-packages", "torch.nn", "/tmp/", ".py"):
        assert trace.encode() not in content, trace


def test_traces_that_a_tool_leaves_are_taken_out(
    sabotage: Callable[[Change], None], tiny_checkpoint: Path, picture: Path, tmp_path: Path
) -> None:
    def leave_traces(model: onnx.ModelProto) -> None:
        for holder in (model, model.graph, model.graph.node[0]):
            holder.doc_string = "/home/somebody/train.py"
            entry = holder.metadata_props.add()
            entry.key, entry.value = "namespace", "/home/somebody/train.py"

    sabotage(leave_traces)
    result = export(tiny_checkpoint, tmp_path / "model.onnx", images=[picture])
    assert b"somebody" not in result.path.read_bytes()


def test_the_graph_takes_one_picture_and_returns_what_the_card_promises(exported: ExportResult) -> None:
    graph = onnx.load(exported.path).graph

    def shape(value: onnx.ValueInfoProto) -> tuple[str, int, list[int]]:
        kind = value.type.tensor_type
        return value.name, kind.elem_type, [dimension.dim_value for dimension in kind.shape.dim]

    assert [shape(value) for value in graph.input] == [("image", onnx.TensorProto.FLOAT, [1, 3, 48, 64])]
    assert [shape(value) for value in graph.output] == [("logits", onnx.TensorProto.FLOAT, [1, 6, 48, 64])]


def test_the_result_counts_what_is_in_the_file(exported: ExportResult) -> None:
    model = onnx.load(exported.path)
    assert exported.nodes == len(model.graph.node) < exported.nodes_traced
    assert exported.bytes == exported.path.stat().st_size
    assert not [node for node in model.graph.node if node.op_type == "BatchNormalization"]


def test_the_same_checkpoint_gives_the_same_file(
    exported: ExportResult, tiny_checkpoint: Path, picture: Path, tmp_path: Path
) -> None:
    again = export(tiny_checkpoint, tmp_path / "again.onnx", images=[picture])
    assert again.path.read_bytes() == exported.path.read_bytes()


def test_what_is_done_is_told(tiny_checkpoint: Path, picture: Path, tmp_path: Path) -> None:
    told: list[str] = []
    export(tiny_checkpoint, tmp_path / "model.onnx", images=[picture], tell=told.append)
    assert told == ["tracing", "simplifying", "comparing with PyTorch"]


def test_the_labels_head_returns_uint8_and_agrees_with_the_logits(
    tiny_checkpoint: Path, tiny_labels_model: Path, picture: Path
) -> None:
    output = onnx.load(tiny_labels_model).graph.output[0]
    assert (output.name, output.type.tensor_type.elem_type) == ("labels", onnx.TensorProto.UINT8)
    card = read_card(tiny_labels_model)
    assert (card.head, card.output_name) == ("labels", "labels")
    with PillowImage.open(picture) as image:
        fitting = np.asarray(image.resize((64, 48)))
    with Segmenter(tiny_checkpoint, backend="torch", device="cpu") as torch_segmenter:
        logits = torch_segmenter(fitting).logits
    assert logits is not None
    for backend in ("ort", "opencv"):
        with Segmenter(tiny_labels_model, backend=backend, device="cpu") as segmenter:
            labels = segmenter(fitting).labels
        assert labels.dtype == np.uint8
        assert len(np.unique(labels)) > 1
        assert (labels == logits.argmax(axis=0)).mean() > 0.9999


@pytest.mark.parametrize("opset", [11, 17, 23])
@pytest.mark.parametrize("head", ["logits", "labels"])
def test_a_binary_network_exports_with_either_head(
    make_checkpoint: Callable[..., Path], picture: Path, tmp_path: Path, opset: int, head: Head
) -> None:
    checkpoint = make_checkpoint(tmp_path / "binary.safetensors", threshold=0.45)
    result = export(checkpoint, tmp_path / "binary.onnx", opset=opset, head=head, images=[picture])
    assert [row.engine.backend for row in result.parity.rows] == ["ort", "opencv"]
    assert result.parity.passes
    assert result.simplifier_fault == ""
    header = read_onnx_header(result.path)
    assert header.outputs == {head: (1, 1, 48, 64) if head == "logits" else (1, 48, 64)}
    assert (result.card.task, result.card.threshold, result.card.num_logits) == ("binary", 0.45, 1)


def test_another_threshold_than_the_cards_is_found_out(
    sabotage: Callable[[Change], None], make_checkpoint: Callable[..., Path], picture: Path, tmp_path: Path
) -> None:
    def move_threshold(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "Greater")
        model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "another threshold"))
        node.input[1] = "another threshold"

    sabotage(move_threshold)
    checkpoint = make_checkpoint(tmp_path / "binary.safetensors", threshold=0.45)
    with pytest.raises(ParityError, match=r"ONNX Runtime .* flips are no near tie"):
        export(checkpoint, tmp_path / "binary.onnx", head="labels", images=[picture])


def test_a_network_for_tiles_exports_with_the_size_of_one_and_is_compared_on_blended_pictures(
    make_checkpoint: Callable[..., Path], picture: Path, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "tiled.safetensors", tile_overlap=0.25)
    result = export(checkpoint, tmp_path / "tiled.onnx", images=[picture])
    assert read_onnx_header(result.path).inputs == {"image": (1, 3, 48, 64)}
    assert result.card.tile_overlap == 0.25
    assert result.parity.passes
    assert {row.comparison.pixels for row in result.parity.rows} == {3 * 48 * 64 + 90 * 120}


def test_a_network_for_tiles_cannot_return_labels(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "tiled.safetensors", tile_overlap=0.25)
    with pytest.raises(CardError, match=r"tile_overlap is 0\.25 and its head labels.*export with --head logits"):
        export(checkpoint, tmp_path / "tiled.onnx", head="labels")
    assert [path.name for path in tmp_path.iterdir()] == ["tiled.safetensors"]


def test_more_classes_than_8_bits_hold_cannot_be_labels(tmp_path: Path, tiny_checkpoint: Path) -> None:
    table = ClassTable.of([(f"class {number}", (number % 256, number // 256, 7)) for number in range(257)])
    card = dataclasses.replace(
        read_card(tiny_checkpoint), class_names=table.names, palette=table.palette, ignore_index=65535
    )
    assert card.network is not None
    path = tmp_path / "many.safetensors"
    save_checkpoint(path, build_network(card.network, num_classes=257, in_channels=3), card)
    with pytest.raises(ExportError, match="257 classes do not fit into 8-bit labels; export with --head logits"):
        export(path, tmp_path / "many.onnx", head="labels")


@pytest.mark.parametrize("depth", ["uint8", "uint16"])
def test_grey_networks_export_in_their_depth(make_checkpoint: Callable[..., Path], tmp_path: Path, depth: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "grey.safetensors", channels=1, depth=depth)
    picture = np.random.default_rng(0).integers(0, np.iinfo(depth).max, (60, 80), depth)
    cv2.imwrite(str(tmp_path / "picture.png"), picture)
    result = export(checkpoint, tmp_path / "grey.onnx", images=[tmp_path / "picture.png"])
    assert (result.card.preprocess.channels, result.card.preprocess.depth) == (1, depth)
    assert result.parity.passes


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            _perturb_one_weight,
            ParityError,
            r"ONNX Runtime .* computes something else than PyTorch \(largest difference",
        ),
        (_swap_red_and_blue, ParityError, r"ONNX Runtime .* computes something else than PyTorch \(largest difference"),
        (_divide_by_zero, ExportError, "was not written: .*no numbers"),
        (_lose_an_output, ExportError, "the exported graph is not valid ONNX"),
        (_claim_another_opset, ExportError, "opset 17 was asked for, but the exporter wrote opset 16"),
    ],
    ids=["one weight", "red and blue", "infinite weights", "lost output", "another opset"],
)
def test_a_graph_that_is_not_the_network_is_not_left(
    sabotage: Callable[[Change], None],
    tiny_checkpoint: Path,
    picture: Path,
    tmp_path: Path,
    change: Change,
    error: type[ExportError],
    words: str,
) -> None:
    sabotage(change)
    with pytest.raises(error, match=words) as caught:
        export(tiny_checkpoint, tmp_path / "model.onnx", images=[picture])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_earlier_file_in_its_place_stays_as_it_was(
    sabotage: Callable[[Change], None], tiny_checkpoint: Path, picture: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"an earlier model")
    sabotage(_perturb_one_weight)
    with pytest.raises(ParityError, match=r"model\.onnx was not written"):
        export(tiny_checkpoint, tmp_path / "model.onnx", images=[picture])
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"an earlier model"


def test_an_interruption_leaves_nothing(tiny_checkpoint: Path, picture: Path, tmp_path: Path) -> None:
    def interrupt(step: str) -> None:
        if step == "comparing with PyTorch":
            assert len(list(tmp_path.iterdir())) == 1, "the temporary file should be there by now"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(tiny_checkpoint, tmp_path / "model.onnx", images=[picture], tell=interrupt)
    assert not list(tmp_path.iterdir())


def test_a_tracer_that_writes_another_opset_is_found_out(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, picture: Path, tmp_path: Path
) -> None:
    trace = exporter._trace
    monkeypatch.setattr(exporter, "_trace", lambda network, card, opset: trace(network, card, opset + 1))
    with pytest.raises(ExportError, match="opset 17 was asked for, but the exporter wrote opset 18; no file is left"):
        export(tiny_checkpoint, tmp_path / "model.onnx", images=[picture])
    assert not list(tmp_path.iterdir())


def _raise(_model: Any) -> Any:
    raise RuntimeError("onnxruntime fails\nin its shape inference")


@pytest.mark.parametrize(
    ("simplify", "fault"),
    [
        (_raise, "the simplifier failed (onnxruntime fails in its shape inference)"),
        (lambda model: (model, False), "the simplifier changed what the graph computes"),
    ],
)
def test_a_simplifier_that_fails_is_survived_and_said(
    monkeypatch: pytest.MonkeyPatch,
    tiny_checkpoint: Path,
    picture: Path,
    tmp_path: Path,
    simplify: Callable[[Any], Any],
    fault: str,
) -> None:
    monkeypatch.setattr("onnxsim.simplify", simplify)
    result = export(tiny_checkpoint, tmp_path / "model.onnx", images=[picture])
    assert result.simplifier_fault == fault
    assert result.nodes == result.nodes_traced
    assert result.parity.passes
    assert read_card(result.path) == result.card


def test_pictures_that_cannot_be_read_leave_no_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"?")
    with pytest.raises(ExportError, match=r"model\.onnx was not written: .*broken\.png"):
        export(tiny_checkpoint, tmp_path / "out/model.onnx", images=[broken])
    assert not list((tmp_path / "out").iterdir())


def test_weights_that_are_no_numbers_are_not_exported(tiny_checkpoint: Path, picture: Path, tmp_path: Path) -> None:
    network, card = load_checkpoint(tiny_checkpoint)
    network.get_submodule("head.0").get_parameter("weight").data[0] = float("nan")
    save_checkpoint(tmp_path / "nan.safetensors", network, card)
    with pytest.raises(ExportError, match=r"nan\.onnx was not written: .*no numbers"):
        export(tmp_path / "nan.safetensors", tmp_path / "nan.onnx", images=[picture])
    assert not (tmp_path / "nan.onnx").exists()


def test_what_is_no_checkpoint_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tiny\.onnx is no checkpoint of seg-train"):
        export(tiny_model, tmp_path / "model.onnx")
