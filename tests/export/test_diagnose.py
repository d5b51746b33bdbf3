import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxsim
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from segship.export.diagnose import Divergence, first_divergence
from segship.export.wrapper import deployable
from segship.runtime.card import ModelCard
from segship.runtime.errors import ModelError
from segship.training.checkpoint import load_checkpoint
from segship.training.networks import ARCHITECTURES
from segship.training.networks.sizes import symbolic_sizes

FRAME = (90, 120)


@dataclass(frozen=True)
class Exported:
    """A module, its graph, and something to run them on."""

    module: nn.Module
    card: ModelCard
    graph: onnx.ModelProto
    batch: NDArray[Any]

    def diagnosed(
        self, folder: Path, change: Callable[[onnx.ModelProto], object] = lambda _: None
    ) -> Divergence | None:
        """Change a copy of the graph and ask what is wrong with it."""
        changed = onnx.ModelProto()
        changed.CopyFrom(self.graph)
        change(changed)
        onnx.save(changed, folder / "model.onnx")
        return first_divergence(self.module, folder / "model.onnx", self.card, self.batch)


Make = Callable[..., Exported]
Change = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def make(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Export a small network, with what the card and the exporter are told."""
    folder = tmp_path_factory.mktemp("exported")
    checkpoints: dict[tuple[Any, ...], Path] = {}

    def export(
        arch: str = "unet",
        *,
        opset: int = 17,
        simplified: bool = True,
        dynamic: bool = False,
        threshold: float | None = None,
        preprocess: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Exported:
        key = (arch, threshold)
        if key not in checkpoints:
            path = folder / f"{arch}_{threshold}.safetensors"
            checkpoints[key] = make_checkpoint(path, arch=arch, threshold=threshold)
        network, card = load_checkpoint(checkpoints[key])
        form = dataclasses.replace(card.preprocess, **(preprocess or {}))
        card = dataclasses.replace(card, preprocess=form, output_name=changes.get("head", card.head), **changes)
        module = deployable(network, card)
        batch = _batch(card)
        axes = {"image": {0: "n", 2: "h", 3: "w"}} if dynamic else None
        path = folder / "model.onnx"
        with warnings.catch_warnings(), symbolic_sizes() if dynamic else warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (torch.from_numpy(batch),),
                path,
                dynamo=False,
                opset_version=opset,
                input_names=[card.input_name],
                output_names=[card.output_name],
                dynamic_axes=axes,
                verbose=False,
            )
        graph = onnx.load(path)
        return Exported(module, card, onnxsim.simplify(graph)[0] if simplified else graph, batch)

    return export


def _batch(card: ModelCard) -> NDArray[Any]:
    shape = [side or 1 for side in card.input_shape]
    rng = np.random.default_rng(0)
    if card.input_form == "pixels":
        return rng.integers(0, 256, shape, np.uint8)
    return rng.standard_normal(shape, np.float32)


@pytest.fixture(scope="module")
def unet(make: Make) -> Exported:
    return make()


@pytest.fixture(scope="module")
def camera(make: Make) -> Exported:
    """A graph with every stage inside."""
    return make(input_form="pixels", frame=FRAME, head="labels")


RIGHT = [
    ("unet", {"opset": 11, "simplified": False, "head": "labels"}),
    ("unet", {"dynamic": True, "head": "probabilities"}),
    ("u2netp", {"opset": 21, "simplified": False}),
    ("u2net5p", {"dynamic": True, "simplified": False}),
    ("fcn32s", {"opset": 11}),
    ("fcn16s", {"simplified": False}),
    ("fcn8s", {"opset": 21, "head": "probabilities"}),
    ("fcns", {"opset": 13}),
    ("fastscnn", {"opset": 11, "simplified": False}),
    ("bisenetv2", {"opset": 21, "threshold": 0.4, "head": "labels"}),
    ("bisenetv2", {"opset": 17, "input_form": "pixels", "frame": FRAME, "simplified": False}),
]


@pytest.mark.parametrize(("arch", "how"), RIGHT)
def test_nothing_is_found_in_a_graph_that_is_right(make: Make, tmp_path: Path, arch: str, how: dict[str, Any]) -> None:
    assert make(arch, **how).diagnosed(tmp_path) is None


def test_a_right_graph_of_every_architecture_is_among_them() -> None:
    assert {arch for arch, _ in RIGHT} == set(ARCHITECTURES) - {"u2net"}  # U²-NetP with more channels


def test_a_graph_with_every_stage_that_is_right(camera: Exported, tmp_path: Path) -> None:
    assert camera.diagnosed(tmp_path) is None


def test_a_perturbed_weight_leads_to_its_convolution(unet: Exported, tmp_path: Path) -> None:
    node = _nodes(unet.graph, "Conv")[4]

    def change(graph: onnx.ModelProto) -> None:
        _edit(graph, node.input[1], lambda weight: weight.flat.__setitem__(7, weight.flat[7] + 0.1))

    found = unet.diagnosed(tmp_path, change)
    assert found is not None
    assert (found.stage, found.node, found.op_type) == ("network", node.name, "Conv")
    assert "PyTorch's aten.native_batch_norm in network.down" in found.finding
    assert str(found).startswith(f"network: Conv {node.name} returns values about ")


def test_nan_in_a_weight_is_named_with_the_weight(unet: Exported, tmp_path: Path) -> None:
    node = _nodes(unet.graph, "Conv")[2]
    found = unet.diagnosed(tmp_path, lambda graph: _edit(graph, node.input[1], lambda w: w.flat.__setitem__(0, np.nan)))
    assert found is not None
    assert found.node == node.name
    assert found.finding.startswith("returns NaN or infinity in ")
    assert found.finding.endswith(f"NaN or infinity is in its weight {node.input[1]}")


@pytest.mark.parametrize("arch", ["fastscnn", "bisenetv2"])
def test_half_a_pixel_changed_leads_to_the_resize(make: Make, tmp_path: Path, arch: str) -> None:
    exported = make(arch)
    name = _nodes(exported.graph, "Resize")[1].name
    found = exported.diagnosed(tmp_path, lambda graph: _shift_half_a_pixel(graph, name))
    assert found is not None
    assert (found.stage, found.node, found.op_type) == ("network", name, "Resize")
    assert "PyTorch's aten.upsample_bilinear2d in network" in found.finding


@pytest.mark.parametrize("arch", ["unet", "bisenetv2"])
def test_a_relu_that_was_dropped_leads_to_what_took_its_values(make: Make, tmp_path: Path, arch: str) -> None:
    exported = make(arch)
    relu = _nodes(exported.graph, "Relu")[3]
    takers = [node.name for node in exported.graph.graph.node if relu.output[0] in node.input]
    found = exported.diagnosed(tmp_path, lambda graph: _drop(graph, relu.name))
    assert found is not None
    assert found.node == takers[0]


def test_a_graph_that_does_not_run_is_an_error_with_the_node(unet: Exported, tmp_path: Path) -> None:
    node = _nodes(unet.graph, "MaxPool")[-1]

    def change(graph: onnx.ModelProto) -> None:
        pool = next(one for one in graph.graph.node if one.name == node.name)
        next(one for one in pool.attribute if one.name == "strides").ints[:] = [1, 2]

    with pytest.raises(ModelError, match=r"the node \S+ \(\w+\) does not run"):  # the skip is too small for it
        unet.diagnosed(tmp_path, change)


def _wrong_mean(graph: onnx.ModelProto) -> None:
    constant = next(one for one in graph.graph.node if one.output[0] == _find(graph, "/normalise/Add").input[1])
    bias = numpy_helper.to_array(constant.attribute[0].t) + np.float32(0.05)
    constant.attribute[0].t.CopyFrom(numpy_helper.from_array(bias))


def _blue_for_red(graph: onnx.ModelProto) -> None:
    constant = next(one for one in graph.graph.node if one.output[0] == _find(graph, "/normalise/Mul").input[1])
    gain = numpy_helper.to_array(constant.attribute[0].t)[:, ::-1]
    constant.attribute[0].t.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(gain)))


def _smallest_wins(graph: onnx.ModelProto) -> None:
    _find(graph, "/head/ArgMax").op_type = "ArgMin"


STAGES = [
    ("resize", "/resize/Resize", lambda graph: _shift_half_a_pixel(graph, "/resize/Resize")),
    ("normalise", "/normalise/Add", _wrong_mean),
    ("normalise", "/normalise/Mul", _blue_for_red),
    ("upscale", "/upscale/Resize", lambda graph: _shift_half_a_pixel(graph, "/upscale/Resize")),
    ("argmax", "/head/ArgMax", _smallest_wins),
]


@pytest.mark.parametrize(("stage", "name", "change"), STAGES)
@pytest.mark.parametrize("nameless", [False, True], ids=["with names", "without names"])
def test_every_stage_is_told_from_the_others(
    camera: Exported, tmp_path: Path, stage: str, name: str, change: Change, *, nameless: bool
) -> None:
    output = _find(camera.graph, name).output[0]

    def change_and_forget(graph: onnx.ModelProto) -> None:
        change(graph)
        for node in graph.graph.node if nameless else ():
            node.name = ""

    found = camera.diagnosed(tmp_path, change_and_forget)
    assert found is not None
    assert (found.stage, found.node) == (stage, output if nameless else name)


def test_a_picture_in_the_wrong_colour_order_is_wrong_from_the_normalisation_on(make: Make, tmp_path: Path) -> None:
    exported = make(input_form="pixels", preprocess={"color_order": "BGR"})
    flip = next(node for op_type in ("Slice", "Gather") for node in _nodes(exported.graph, op_type))
    found = exported.diagnosed(tmp_path, lambda graph: _drop(graph, flip.name))
    assert found is not None
    assert (found.stage, found.node) == ("normalise", "/normalise/Mul")


def test_another_threshold_is_a_fault_of_the_head(make: Make, tmp_path: Path) -> None:
    exported = make(threshold=0.4, head="labels")
    above = _nodes(exported.graph, "Greater")[0]
    module = deployable(exported.module.get_submodule("network"), dataclasses.replace(exported.card, threshold=0.45))
    found = dataclasses.replace(exported, module=module).diagnosed(tmp_path)
    assert found is not None
    assert (found.stage, found.node) == ("argmax", above.name)


def test_a_softmax_over_the_wrong_axis_is_a_fault_of_the_probabilities(make: Make, tmp_path: Path) -> None:
    exported = make(head="probabilities")

    def change(graph: onnx.ModelProto) -> None:
        _nodes(graph, "Softmax")[0].attribute[0].i = 3

    found = exported.diagnosed(tmp_path, change)
    assert found is not None
    assert (found.stage, found.op_type) == ("probabilities", "Softmax")


def test_without_onnx_runtime_the_reference_implementation_finds_the_same(
    unet: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    node = _nodes(unet.graph, "Conv")[1]
    found = unet.diagnosed(tmp_path, lambda graph: _edit(graph, node.input[1], lambda weight: weight.fill(0.1)))
    assert found is not None
    assert found.node == node.name


def test_the_module_is_left_as_it_was(unet: Exported, tmp_path: Path) -> None:
    unet.diagnosed(tmp_path)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in unet.module.modules())


def _nodes(graph: onnx.ModelProto, op_type: str) -> list[onnx.NodeProto]:
    return [node for node in graph.graph.node if node.op_type == op_type]


def _find(graph: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in graph.graph.node if node.name == name)


def _edit(graph: onnx.ModelProto, name: str, change: Callable[[NDArray[Any]], object]) -> None:
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor).copy()
    change(values)
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def _shift_half_a_pixel(graph: onnx.ModelProto, name: str) -> None:
    attributes = _find(graph, name).attribute
    next(one for one in attributes if one.name == "coordinate_transformation_mode").s = b"asymmetric"


def _drop(graph: onnx.ModelProto, name: str) -> None:
    dropped = _find(graph, name)
    for node in graph.graph.node:
        node.input[:] = [dropped.input[0] if taken == dropped.output[0] else taken for taken in node.input]
    graph.graph.node.remove(dropped)
