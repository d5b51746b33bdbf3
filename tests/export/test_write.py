import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from segship.export.write import described, drafting, write_model
from segship.runtime.card import CARD_KEY, ModelCard, Network
from segship.runtime.errors import ExportError, OutputError
from segship.runtime.external_data import external_files
from segship.runtime.model_file import check_fits, read_card, write_card
from segship.runtime.preprocess import Preprocess

CARD = ModelCard(("a", "b"), ((0, 0, 0), (1, 1, 1)), Preprocess((4, 6)), network=Network("unet"))
IMAGE = np.arange(72, dtype=np.float32).reshape(1, 3, 4, 6)
SECRET = "/home/somebody/train.py"


def convolution(scale: float = 1, opset: int = 17) -> onnx.ModelProto:
    """A network of one 3×3 convolution and a mask, whose weights are stored in two ways."""
    weights = np.random.default_rng(0).standard_normal((2, 3, 3, 3)).astype(np.float32) * np.float32(scale)
    mask = helper.make_tensor("mask", TensorProto.FLOAT, (1, 1, 4, 6), [1.0] * 23 + [2.0])
    nodes = [
        helper.make_node("Conv", ["image", "weights"], ["features"], name="/network/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["features", "mask"], ["logits"], name="/network/Mul"),
    ]
    graph = helper.make_graph(
        nodes,
        "main_graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, 4, 6))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 2, 4, 6))],
        [numpy_helper.from_array(weights, "weights"), mask],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.fixture(autouse=True)
def _small_tensors_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segship.export.write._SMALL_BYTES", 64)


def put(path: Path, model: onnx.ModelProto, external_above: int = 100) -> None:
    with drafting(path, external_above=external_above) as draft:
        draft.write(model, CARD, 17)


def write_then(error: type[BaseException], path: Path, model: onnx.ModelProto) -> None:
    """Write a draft that runs, then fail."""
    with drafting(path, external_above=100) as draft:
        draft.write(model, CARD, 17)
        assert run(draft.path).shape == (1, 2, 4, 6)
        raise error


def run(path: Path) -> np.ndarray:
    return onnxruntime.InferenceSession(path).run(None, {"image": IMAGE})[0]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def in_subgraph(model: onnx.ModelProto, spoil: Callable[[onnx.GraphProto], None]) -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["features"], ["kept"], name="inner")],
        "inner",
        [],
        [helper.make_tensor_value_info("kept", TensorProto.FLOAT, (1, 2, 4, 6))],
    )
    spoil(inner)
    condition = numpy_helper.from_array(np.array(True), "condition")
    model.graph.initializer.append(condition)
    branch = helper.make_node("If", ["condition"], ["chosen"], then_branch=inner, else_branch=inner)
    model.graph.node.insert(1, branch)
    model.graph.node[2].input[0] = "chosen"


def test_described_puts_the_card_in_and_leaves_the_graph_it_was_given(tmp_path: Path) -> None:
    model = convolution()
    before = model.SerializeToString(deterministic=True)
    result = described(model, CARD)
    assert model.SerializeToString(deterministic=True) == before
    assert [entry.key for entry in result.metadata_props] == [CARD_KEY]
    assert ModelCard.from_json(result.metadata_props[0].value, origin="test") == CARD
    assert (result.producer_name, result.graph.name) == ("segship", "unet")
    assert result.graph.node == model.graph.node
    nameless = described(model, dataclasses.replace(CARD, network=None))
    assert nameless.graph.name == "network"


def test_nothing_that_tools_and_machines_leave_is_kept() -> None:
    model = convolution()

    def spoil(graph: onnx.GraphProto) -> None:
        constant = numpy_helper.from_array(np.float32([1]), "value")
        constant.doc_string = SECRET
        graph.node.append(helper.make_node("Constant", [], [f"unused {graph.name}"], value=constant, name="spoilt"))
        graph.value_info.append(helper.make_tensor_value_info(SECRET, TensorProto.FLOAT, (1,)))
        for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
            part.doc_string = SECRET
            part.metadata_props.add(key="namespace", value=SECRET)
        for node in graph.node:
            for attribute in node.attribute:
                attribute.doc_string = SECRET

    in_subgraph(model, spoil)
    spoil(model.graph)
    model.doc_string = model.producer_name = model.domain = SECRET
    model.metadata_props.add(key="onnxsim.skip_optimizers", value=SECRET)
    function = helper.make_function("pkg.tools", "Rank", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])], [])
    function.doc_string = SECRET
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("pkg.tools", 1))

    result = described(model, CARD)
    content = result.SerializeToString()
    for trace in (SECRET, "onnxsim", "pkg.tools", "namespace"):
        assert trace.encode() not in content, trace
    assert [(entry.domain, entry.version) for entry in result.opset_import] == [("", 17)]
    onnx.checker.check_model(result, full_check=True)


def test_a_function_that_the_graph_calls_stays() -> None:
    model = convolution()
    imports = [helper.make_opsetid("", 17)]
    body = [helper.make_node("Relu", ["x"], ["y"])]
    model.functions.append(helper.make_function("custom", "Act", ["x"], ["y"], body, imports))
    model.opset_import.append(helper.make_opsetid("custom", 1))
    model.graph.node.insert(1, helper.make_node("Act", ["features"], ["active"], domain="custom"))
    model.graph.node[2].input[0] = "active"
    result = described(model, CARD)
    assert [function.name for function in result.functions] == ["Act"]
    onnx.checker.check_model(result, full_check=True)


def test_a_small_model_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    put(path, convolution(), external_above=1 << 20)
    assert files(tmp_path) == ["model.onnx"]
    assert read_card(path) == CARD
    check_fits(path, CARD)


def test_a_large_model_has_its_weights_in_a_file_named_by_their_hash_and_runs_from_anywhere(tmp_path: Path) -> None:
    put(tmp_path / "whole" / "model.onnx", convolution(), external_above=1 << 20)
    put(tmp_path / "split" / "model.onnx", convolution())
    (weights,) = external_files(tmp_path / "split" / "model.onnx")
    assert files(tmp_path / "split") == sorted(["model.onnx", weights.name])
    assert len(weights.name.removeprefix("model.").removesuffix(".data")) == 12
    moved = tmp_path / "moved"
    (tmp_path / "split").rename(moved)
    np.testing.assert_array_equal(run(moved / "model.onnx"), run(tmp_path / "whole" / "model.onnx"))
    tensors = onnx.load(moved / "model.onnx", load_external_data=False).graph.initializer
    assert [tensor.data_location for tensor in tensors] == [TensorProto.EXTERNAL] * 2
    assert not [tensor for tensor in tensors if tensor.raw_data or tensor.float_data]


def test_the_same_weights_have_the_same_name_and_others_another(tmp_path: Path) -> None:
    for name, scale in (("a", 1), ("b", 1), ("c", 2)):
        put(tmp_path / name / "model.onnx", convolution(scale))
    assert files(tmp_path / "a") == files(tmp_path / "b") != files(tmp_path / "c")


def test_the_weights_of_the_model_that_is_replaced_go_and_files_of_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    put(path, convolution(1))
    (old,) = external_files(path)
    put(tmp_path / "model.b.onnx", convolution(1))
    left_by_a_kill = tmp_path / "model.0123456789ab.data"
    left_by_a_kill.touch()
    others = ["model.data", "model.0123456789ab.data.txt", "other.0123456789ab.data", "model.0123456789az.data"]
    for name in others:
        (tmp_path / name).touch()
    put(path, convolution(2))
    (new,) = external_files(path)
    (neighbour,) = external_files(tmp_path / "model.b.onnx")
    assert old != new
    assert files(tmp_path) == sorted(["model.onnx", new.name, "model.b.onnx", neighbour.name, *others])
    put(path, convolution(3), external_above=1 << 20)
    assert files(tmp_path) == sorted(["model.onnx", "model.b.onnx", neighbour.name, *others])


@pytest.mark.parametrize("scale", [1, 2], ids=["the same weights", "others"])
def test_a_draft_that_fails_leaves_the_old_model_whole(tmp_path: Path, scale: float) -> None:
    path = tmp_path / "model.onnx"
    put(path, convolution(1))
    before, expected = files(tmp_path), run(path)
    with pytest.raises(KeyboardInterrupt):
        write_then(KeyboardInterrupt, path, convolution(scale))
    assert files(tmp_path) == before
    np.testing.assert_array_equal(run(path), expected)


def test_a_draft_that_fails_where_nothing_was_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_then(RuntimeError, tmp_path / "model.onnx", convolution())
    assert files(tmp_path) == []


KILLED = """
import os, sys, onnx
from pathlib import Path
from segship.export import write
from segship.runtime.model_file import read_card
write._SMALL_BYTES = 64
with write.drafting(Path(sys.argv[1]), external_above=100) as draft:
    draft.write(onnx.load(sys.argv[2]), read_card(Path(sys.argv[1])), 17)
    os.kill(os.getpid(), 9)
"""


def test_a_process_that_is_killed_leaves_the_old_model_whole_and_the_next_one_tidies_up(tmp_path: Path) -> None:
    path = tmp_path / "models" / "model.onnx"
    put(path, convolution(1))
    before, expected = files(path.parent), run(path)
    onnx.save(convolution(2), tmp_path / "other.onnx")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(tmp_path / "other.onnx")], check=False)
    assert done.returncode == -9
    assert set(before) < set(files(path.parent))
    np.testing.assert_array_equal(run(path), expected)
    put(path, convolution(1))
    assert [name for name in files(path.parent) if name.endswith(".data")] == before[:1]


def test_a_draft_may_be_written_again_and_keeps_the_last_weights_only(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = convolution(1)
    with drafting(path, external_above=100) as draft:
        draft.write(convolution(2), CARD, 17)
        draft.write(model, CARD, 17)
        write_card(draft.path, dataclasses.replace(CARD, class_names=("c", "d")))
    assert model.graph.initializer[0].raw_data  # what was written stays as it is
    assert files(tmp_path) == sorted(["model.onnx", external_files(path)[0].name])
    assert read_card(path).class_names == ("c", "d")
    put(tmp_path / "whole.onnx", model, external_above=1 << 20)
    np.testing.assert_array_equal(run(path), run(tmp_path / "whole.onnx"))


def test_another_opset_than_was_asked_for_is_an_error(tmp_path: Path) -> None:
    words = "opset 17 was asked for, but the exporter wrote opset 18"
    with pytest.raises(ExportError, match=words), drafting(tmp_path / "model.onnx") as draft:
        draft.write(convolution(opset=18), CARD, 17)
    assert files(tmp_path) == []


def test_a_graph_that_is_not_valid_is_an_error(tmp_path: Path) -> None:
    broken = convolution()
    broken.graph.node[1].input[1] = "nowhere"
    lying = convolution()
    lying.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    shapeless = convolution()
    shapeless.graph.output[0].type.tensor_type.ClearField("shape")
    for model, words in (
        (broken, r"the exported graph is not valid ONNX \(.*nowhere"),
        (lying, r"the exported graph is not valid ONNX \("),
        (shapeless, r"(not valid ONNX|does not tell the shape)"),
    ):
        with pytest.raises(ExportError, match=words) as caught:
            write_model(model, tmp_path / "model.onnx", 17)
        assert "\n" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        put(tmp_path / "file" / "model.onnx", convolution())
