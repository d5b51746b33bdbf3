"""Whatever is wrong with an exported graph or its card is caught, and said where."""

import dataclasses
import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from segship.export import exporter
from segship.export.exporter import ExportResult, export
from segship.export.golden import write_golden_of
from segship.export.parity import Reference, check_parity
from segship.export.pictures import Picture
from segship.export.simplify import Simplified, simplify
from segship.runtime.check import check_model
from segship.runtime.check_cli import seg_check
from segship.runtime.errors import ExportError, ModelError, ParityError, UnprovenWarning
from segship.runtime.model_file import content_sha256, read_card, write_card
from segship.runtime.segmenter import Segmenter
from segship.training.checkpoint import load_checkpoint

Change = Callable[[onnx.ModelProto], None]
Command = Callable[..., tuple[int, str, str]]


def weights_of(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    """Return the weights of a layer."""
    node = next(node for node in model.graph.node if node.name == name)
    return next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])


def replace(tensor: onnx.TensorProto, change: Callable[[NDArray[Any]], Any]) -> None:
    """Change the values of a tensor in their place, or return other ones."""
    values = numpy_helper.to_array(tensor).copy()
    changed = change(values)
    values = values if changed is None else np.ascontiguousarray(changed)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def perturb_a_weight(model: onnx.ModelProto) -> None:
    def change(values: NDArray[Any]) -> None:
        values.flat[7] += 0.5

    replace(weights_of(model, "/network/up1/up/ConvTranspose"), change)


def swap_red_and_blue(model: onnx.ModelProto) -> None:
    replace(weights_of(model, "/network/down1/down1.0/Conv"), lambda values: values[:, ::-1])


def put_nan_into_a_weight(model: onnx.ModelProto) -> None:
    def change(values: NDArray[Any]) -> None:
        values.flat[0] = np.nan

    replace(weights_of(model, "/network/up2/up/ConvTranspose"), change)


def drop_an_activation(model: onnx.ModelProto) -> None:
    relu = next(node for node in model.graph.node if node.name == "/network/down2/down2.2/Relu")
    for node in model.graph.node:
        node.input[:] = [relu.input[0] if name == relu.output[0] else name for name in node.input]
    model.graph.node.remove(relu)


def cut_an_activation_out(model: onnx.ModelProto) -> None:
    relu = next(node for node in model.graph.node if node.name == "/network/down2/down2.2/Relu")
    model.graph.node.remove(relu)


def shift_the_mean(model: onnx.ModelProto) -> None:
    constants = [node for node in model.graph.node if node.op_type == "Constant" and "/normalise/" in node.name]
    replace(constants[-1].attribute[0].t, lambda values: values + 0.1)


def exchange_the_channels(model: onnx.ModelProto) -> None:
    """Let the graph of a frame hand blue, green, red to the normalisation."""
    graph = model.graph
    take = next(index for index, node in enumerate(graph.node) if node.name == "/planes/Transpose")
    turned = graph.node[take].output[0]
    graph.node[take].output[0] = "as they come"
    graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))
    swap = onnx.helper.make_node("Gather", ["as they come", "order"], [turned], "/planes/Gather", axis=1)
    graph.node.insert(take + 1, swap)


def move_half_a_pixel(stage: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        resize = next(node for node in model.graph.node if node.name == f"/{stage}/Resize")
        mode = next(one for one in resize.attribute if one.name == "coordinate_transformation_mode")
        mode.s = b"asymmetric"

    return change


def move_the_threshold(model: onnx.ModelProto) -> None:
    greater = next(node for node in model.graph.node if node.op_type == "Greater")
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "another threshold"))
    greater.input[1] = "another threshold"


def lose_the_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "nowhere"


def kept(model: onnx.ModelProto) -> Simplified:
    return Simplified(model, "", len(model.graph.node), len(model.graph.node))


@pytest.fixture
def traced_with(monkeypatch: pytest.MonkeyPatch, unsimplified: None) -> Callable[[Change], None]:
    """Change each graph after it was traced."""

    def install(change: Change) -> None:
        trace = exporter.trace

        def changed(*arguments: Any) -> onnx.ModelProto:
            model = trace(*arguments)
            change(model)
            return model

        monkeypatch.setattr(exporter, "trace", changed)

    return install


@pytest.fixture
def simplified_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], None]:
    """Let the simplifier change the graph as it is told, and say that all is well."""

    def install(change: Change) -> None:
        def simplify(model: onnx.ModelProto) -> Simplified:
            changed = onnx.ModelProto()
            changed.CopyFrom(model)
            change(changed)
            return kept(changed)

        monkeypatch.setattr(exporter, "simplify", simplify)

    return install


@pytest.fixture(scope="module")
def camera(tiny_checkpoint: Path) -> Reference:
    """The tiny network as if it was trained on pictures that are resized as a graph does it."""
    network, card = load_checkpoint(tiny_checkpoint)
    form = dataclasses.replace(card.preprocess, interpolation="linear_float")
    return Reference(network, dataclasses.replace(card, preprocess=form))


@pytest.fixture(scope="module")
def binary(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("binary") / "binary.safetensors", threshold=0.45)


# Graphs that are not the network


@pytest.mark.parametrize(
    ("change", "form", "words"),
    [
        (perturb_a_weight, {}, r"network: ConvTranspose /network/up1/up/ConvTranspose returns"),
        (swap_red_and_blue, {}, r"network: Conv /network/down1/down1\.0/Conv returns"),
        (drop_an_activation, {}, r"network: Conv /network/down2/down2\.3/Conv returns"),
        (
            put_nan_into_a_weight,
            {},
            r"network: ConvTranspose /network/up2/up/ConvTranspose returns NaN.*in its weight network\.up2\.up\.weight",
        ),
        (shift_the_mean, {"frame": (60, 80)}, r"normalise: \w+ /normalise/\w+ returns"),
        (exchange_the_channels, {"frame": (60, 80)}, r"resize: Gather /planes/Gather returns"),
        (move_half_a_pixel("resize"), {"frame": (60, 80)}, r"resize: Resize /resize/Resize returns"),
        (move_half_a_pixel("upscale"), {"frame": (60, 80)}, r"upscale: Resize /upscale/Resize returns"),
    ],
    ids=["weight", "BGR", "activation", "NaN", "mean", "channels", "half a pixel", "half a pixel of the upscale"],
)
def test_a_graph_that_is_not_the_network_is_not_left_and_its_fault_is_named(
    traced_with: Callable[[Change], None],
    camera: Reference,
    tmp_path: Path,
    change: Change,
    form: dict[str, Any],
    words: str,
) -> None:
    traced_with(change)
    with pytest.raises(ParityError, match=r"ONNX Runtime .*the stage " + words) as caught:
        export(camera, tmp_path / "model.onnx", backends=["ort"], **form)
    assert "\n" not in str(caught.value)
    assert "DIFFERS" in caught.value.table or "FAILS" in caught.value.table
    assert not list(tmp_path.iterdir())


def test_another_threshold_than_the_cards_is_found_out(
    traced_with: Callable[[Change], None], binary: Path, tmp_path: Path
) -> None:
    traced_with(move_the_threshold)
    with pytest.raises(ParityError, match=r"stage argmax: Greater /head/Greater returns"):
        export(binary, tmp_path / "model.onnx", head="labels", backends=["ort"])
    assert not list(tmp_path.iterdir())


def test_an_earlier_file_in_its_place_stays_as_it_was(
    traced_with: Callable[[Change], None], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"an earlier model")
    traced_with(perturb_a_weight)
    with pytest.raises(ParityError, match=r"model\.onnx was not written"):
        export(tiny_checkpoint, tmp_path / "model.onnx", backends=["ort"])
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"an earlier model"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_wrong_graph_does_not_hide_behind_a_lower_precision(
    traced_with: Callable[[Change], None],
    tiny_checkpoint: Path,
    picture: Path,
    tmp_path: Path,
    precision: Any,
) -> None:
    quantisation = exporter.Quantisation(str(picture.parent), images=1, budget=100) if precision == "int8" else None
    traced_with(perturb_a_weight)
    path = tmp_path / "model.onnx"
    with pytest.raises(ParityError, match=r"ONNX Runtime .* first differs at the stage network"):
        export(tiny_checkpoint, path, precision=precision, quantisation=quantisation, backends=["ort"])
    assert not list(tmp_path.iterdir())


def test_a_frame_that_is_resized_by_another_rule_is_said_to_be_so(
    unsimplified: None, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ParityError, match=r"resize: .*train the network with --set interpolation=linear_float"):
        export(tiny_checkpoint, tmp_path / "model.onnx", frame=(60, 80), backends=["ort"])


def test_a_graph_that_is_no_graph_is_not_left(
    traced_with: Callable[[Change], None], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    traced_with(lose_the_output)
    with pytest.raises(ExportError, match="the exported graph is not valid ONNX"):
        export(tiny_checkpoint, tmp_path / "model.onnx", backends=["ort"])
    assert not list(tmp_path.iterdir())


# Simplifiers that do harm


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            drop_an_activation,
            r"the simplifier changed what the graph computes \(ONNX Runtime .* first differs at the stage "
            r"network: Conv /network/down2/down2\.3/Conv returns .*; the graph as traced is kept$",
        ),
        (put_nan_into_a_weight, r"the simplifier changed what the graph computes .*NaN or infinity is in its weight"),
        (
            cut_an_activation_out,
            r"the simplifier broke the graph: the exported graph is not valid ONNX .*down2\.3/Conv",
        ),
    ],
    ids=["dropped", "NaN", "cut out"],
)
def test_where_the_simplifier_does_harm_the_graph_as_traced_is_kept_and_that_is_said(
    simplified_with: Callable[[Change], None], tiny_checkpoint: Path, tmp_path: Path, change: Change, fault: str
) -> None:
    simplified_with(change)
    told: list[str] = []
    result = export(tiny_checkpoint, tmp_path / "model.onnx", backends=["ort"], tell=told.append)
    (warning,) = result.warnings
    assert re.search(fault, warning), warning
    assert "\n" not in warning
    assert told[-1] == "comparing the graph as it was traced with PyTorch"
    model = onnx.load(result.path)
    assert result.nodes == result.nodes_traced == len(model.graph.node)
    assert "/network/down2/down2.2/Relu" in {node.name for node in model.graph.node}
    assert result.parity.passes
    assert read_card(result.path) == result.card
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


DROPS_AN_ACTIVATION = """
import sys, onnx
model = onnx.load(sys.argv[1])
relu = next(node for node in model.graph.node if node.op_type == "Relu")
for node in model.graph.node:
    node.input[:] = [relu.input[0] if name == relu.output[0] else name for name in node.input]
model.graph.node.remove(relu)
onnx.save(model, sys.argv[2])
"""


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        (
            DROPS_AN_ACTIVATION,
            r"the simplifier changed what the graph computes .*stage network: Conv /network/down1/\S+ ret",
        ),
        ("import os; os.kill(os.getpid(), 11)", r"the simplifier ended by signal 11 \(it said nothing\)"),
        ("print('no idea'); raise SystemExit(1)", r"the simplifier ended with status 1 \(no idea\)"),
    ],
    ids=["drops", "crashes", "gives up"],
)
def test_whatever_becomes_of_the_simplifiers_process_the_file_is_right_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, tmp_path: Path, program: str, fault: str
) -> None:
    (tmp_path / "simplifier.py").write_text(program)
    command = (sys.executable, str(tmp_path / "simplifier.py"))
    monkeypatch.setattr(exporter, "simplify", functools.partial(simplify, command=command))
    result = export(tiny_checkpoint, tmp_path / "model.onnx", backends=["ort"])
    (warning,) = result.warnings
    assert re.match(rf"{fault}.*; the graph as traced is kept$", warning), warning
    assert result.parity.passes
    assert result.nodes == result.nodes_traced == len(onnx.load(result.path).graph.node)


# Cards that are not the network's


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, picture: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    return export(tiny_checkpoint, path, images=[picture], backends=["ort"])


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        ({"mean": (0.4, 0.45, 0.6)}, "normalise"),
        ({"color_order": "BGR"}, "normalise"),
        ({"scale": "image_max"}, "normalise"),
        ({"interpolation": "linear_float"}, "resize"),
    ],
    ids=str,
)
def test_a_card_with_another_preprocessing_than_the_trainers_is_caught_at_its_stage(
    exported: ExportResult, tiny_checkpoint: Path, photo: NDArray[np.uint8], change: dict[str, Any], stage: str
) -> None:
    reference = Reference(*load_checkpoint(tiny_checkpoint))
    card = dataclasses.replace(
        exported.card, preprocess=dataclasses.replace(exported.card.preprocess, **change), certificate=None
    )
    dark = Picture("dark", photo // 2)
    report = check_parity(exported.path, card, reference, [dark], backends=["ort"])
    (row,) = report.failed
    assert row.fault == f"first differs at the stage {stage}, most of all on dark"


def check(command: Command, model: Path) -> tuple[int, str]:
    status, out, _ = command(seg_check, "model", model, "--backend", "ort")
    return status, out


def test_a_file_as_it_was_exported_is_proven(
    command: Command, exported: ExportResult, photo: NDArray[np.uint8]
) -> None:
    with Segmenter(exported.path, backend="ort", device="cpu") as segmenter:  # would warn, which here is an error
        segmenter(photo)
    status, out = check(command, exported.path)
    assert status == 0
    assert "Certificate: matches this file" in out


def test_a_certificate_on_another_graph_proves_nothing(
    command: Command, exported: ExportResult, tmp_path: Path
) -> None:
    model = onnx.load(exported.path)
    perturb_a_weight(model)
    onnx.save(model, tmp_path / "other.onnx")  # with the card of the first, and its certificate
    assert read_card(tmp_path / "other.onnx") == exported.card
    assert_unproven(command, tmp_path / "other.onnx")


def test_a_certificate_on_an_edited_card_proves_nothing(
    command: Command, exported: ExportResult, tmp_path: Path
) -> None:
    form = dataclasses.replace(exported.card.preprocess, mean=(0.4, 0.45, 0.6))
    write_card(exported.path, dataclasses.replace(exported.card, preprocess=form), output=tmp_path / "edited.onnx")
    assert_unproven(command, tmp_path / "edited.onnx")


def assert_unproven(command: Command, model: Path) -> None:
    changed = "graph, weights or card were changed"
    with pytest.warns(UnprovenWarning, match=changed), Segmenter(model, backend="ort", device="cpu"):
        pass
    status, out = check(command, model)
    assert status == 1
    assert "Certificate: DOES NOT match this file" in out
    assert f"NOT THE SAME: the certificate is not this file's: its {changed} after the proof" in out


def test_golden_outputs_tell_a_graph_that_was_changed_and_certified_anew(
    exported: ExportResult, tmp_path: Path
) -> None:
    model = onnx.load(exported.path)
    perturb_a_weight(model)
    changed = tmp_path / "changed.onnx"
    onnx.save(model, changed)
    certificate = exported.card.certificate
    assert certificate is not None
    forged = dataclasses.replace(certificate, content_sha256=content_sha256(changed))
    write_card(changed, dataclasses.replace(exported.card, certificate=forged))
    assert check_model(changed, backends=["ort"]).is_certified
    write_golden_of(exported, tmp_path / "golden.npz")
    with pytest.raises(ModelError, match="was made for another model"):
        check_model(changed, golden=tmp_path / "golden.npz", backends=["ort"])
    own = dataclasses.replace(exported, card=dataclasses.replace(exported.card, certificate=forged))
    write_golden_of(own, tmp_path / "own.npz")
    result = check_model(changed, golden=tmp_path / "own.npz", backends=["ort"])
    assert "first differs at the stage network" in result.faults[0]
