import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segship.benchmarks.graph_cost import GraphCost, graph_cost
from segship.benchmarks.graph_shapes import sized_graph
from segship.runtime.card import ModelCard, Network
from segship.runtime.errors import CardError, ModelError
from segship.runtime.preprocess import Preprocess

Node = tuple[str, Sequence[str], str, dict[str, Any]]
Write = Callable[..., Path]

WEIGHTS = np.ones((8, 3, 3, 3), np.float32)
PICTURE = 3 * 8 * 10
MAP = 8 * 8 * 10
"""Elements of a picture of 8×10 pixels, and of what a convolution with WEIGHTS makes of it."""

CONV: Node = ("Conv", ["image", "w"], "a", {"pads": [1, 1, 1, 1]})


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a graph of nodes that takes ``image`` and returns what the last of them does."""

    def made(
        *nodes: Node,
        shape: Sequence[int | str | None] = (1, 3, 8, 10),
        takes: int = TensorProto.FLOAT,
        opset: int = 17,
        **constants: NDArray[Any],
    ) -> Path:
        graph = helper.make_graph(
            [
                helper.make_node(kind, inputs, output.split(), domain="other" if kind == "Own" else "", **attributes)
                for kind, inputs, output, attributes in nodes
            ],
            "graph",
            [helper.make_tensor_value_info("image", takes, shape)],
            [helper.make_empty_tensor_value_info(nodes[-1][2])],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        )
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("other", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "graph.onnx")
        return tmp_path / "graph.onnx"

    return made


def flop(cost: GraphCost) -> int:
    return round(cost.gflop * 1e9)


def moved(cost: GraphCost) -> int:
    return round(cost.gbyte * 1e9)


def one_of(shape: Sequence[int], dtype: Any = np.float32) -> NDArray[Any]:
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("nodes", "constants", "expected"),
    [
        ([CONV], {"w": WEIGHTS}, 2 * MAP * 27),
        ([("Conv", ["image", "w"], "a", {"group": 3, "strides": [2, 2]})], {"w": one_of((3, 1, 2, 2))}, 2 * 3 * 20 * 4),
        ([("ConvTranspose", ["image", "w"], "a", {"strides": [2, 2]})], {"w": one_of((3, 5, 2, 2))}, 2 * PICTURE * 20),
        ([("MatMul", ["image", "w"], "a", {})], {"w": one_of((10, 6))}, 2 * 3 * 8 * 6 * 10),
        (
            [("Flatten", ["image"], "f", {}), ("Gemm", ["f", "w"], "a", {"transB": 1})],
            {"w": one_of((5, PICTURE))},
            2 * 5 * PICTURE,
        ),
        (
            [("Flatten", ["image"], "f", {}), ("Gemm", ["f", "w"], "a", {"transA": 1})],
            {"w": one_of((1, 5))},
            2 * 5 * PICTURE,
        ),
        ([("Einsum", ["image", "w"], "a", {"equation": "nchw,cd->ndhw"})], {"w": one_of((3, 7))}, 2 * 7 * 80 * 3),
        ([("Einsum", ["image", "w"], "a", {"equation": "...w, wd"})], {"w": one_of((10, 7))}, 2 * 3 * 8 * 7 * 10),
        ([("Einsum", ["image", "image"], "a", {"equation": "...w,...w->..."})], {}, 2 * 3 * 8 * 10),
        ([("Relu", ["image"], "a", {})], {}, PICTURE),
        ([("MaxPool", ["image"], "a", {"kernel_shape": [2, 2], "strides": [2, 2]})], {}, 3 * 4 * 5 * 4),
        ([("GlobalAveragePool", ["image"], "a", {})], {}, PICTURE),
        ([("ArgMax", ["image"], "a", {"axis": 1})], {}, PICTURE),
        ([("Softmax", ["image"], "a", {"axis": 1})], {}, 5 * PICTURE),
        ([("InstanceNormalization", ["image", "w", "w"], "a", {})], {"w": one_of((3,))}, 7 * PICTURE),
        ([("BatchNormalization", ["image", "w", "w", "w", "w"], "a", {})], {"w": one_of((3,))}, 2 * PICTURE),
        ([("Transpose", ["image"], "a", {"perm": [0, 2, 3, 1]})], {}, 0),
    ],
)
def test_arithmetic_is_counted_by_the_rules(
    write: Write, nodes: list[Node], constants: dict[str, NDArray[Any]], expected: int
) -> None:
    cost = graph_cost(write(*nodes, **constants), (8, 10))
    assert flop(cost) == expected


@pytest.mark.parametrize(
    ("mode", "scales", "expected"),
    [
        ("nearest", (1, 1, 2, 2), 0),
        ("linear", (1, 1, 2, 2), 8 * 4 * PICTURE),
        ("linear", (1, 1, 1, 2), 4 * 2 * PICTURE),
        ("cubic", (1, 1, 2, 2), 32 * 4 * PICTURE),
    ],
)
def test_resizing_costs_its_neighbours(write: Write, mode: str, scales: tuple[int, ...], expected: int) -> None:
    scale = np.asarray(scales, np.float32)
    assert flop(graph_cost(write(("Resize", ["image", "", "s"], "a", {"mode": mode}), s=scale), (8, 10))) == expected


@pytest.mark.parametrize(
    ("node", "weights"),
    [
        (("ConvInteger", ["pixels", "w", "zero"], "a", {}), (4, 3, 1, 1)),
        (("QLinearConv", ["pixels", "s", "zero", "w", "s", "zero_w", "s", "zero"], "a", {}), (4, 3, 1, 1)),
        (("MatMulInteger", ["pixels", "w", "zero"], "a", {}), (10, 4)),
        (("QLinearMatMul", ["pixels", "s", "zero", "w", "s", "zero_w", "s", "zero"], "a", {}), (10, 4)),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) else "",
)
def test_products_of_integers_count_as_those_of_floats(write: Write, node: Node, weights: tuple[int, ...]) -> None:
    quantise: Node = ("QuantizeLinear", ["image", "s", "zero"], "pixels", {})
    zeros = {"zero": np.uint8(0), "zero_w": np.int8(0), "s": np.float32(1)}
    cost = graph_cost(write(quantise, node, w=one_of(weights, np.int8), **zeros), (8, 10))
    elements = 4 * 80 if len(weights) == 4 else 3 * 8 * 4
    assert flop(cost) == 2 * elements * (3 if len(weights) == 4 else 10)


def test_weights_pictures_and_tensors_are_moved_once_each_way(write: Write) -> None:
    pool: Node = ("MaxPool", ["a"], "b", {"kernel_shape": [2, 2], "strides": [2, 2]})
    cost = graph_cost(write(CONV, pool, w=WEIGHTS), (8, 10))
    picture, weights, between, result = PICTURE, WEIGHTS.size, 2 * MAP, MAP // 4
    assert moved(cost) == 4 * (picture + weights + between + result)


def test_a_tensor_that_two_nodes_take_is_read_once(write: Write) -> None:
    pools: list[Node] = [("MaxPool", ["a"], name, {"kernel_shape": [1, 1]}) for name in "bc"]
    cost = graph_cost(write(CONV, *pools, ("Concat", ["b", "c"], "d", {"axis": 1}), w=WEIGHTS), (8, 10))
    assert moved(cost) == 4 * (PICTURE + WEIGHTS.size + 2 * 3 * MAP + 2 * MAP)


def test_what_only_an_elementwise_node_takes_is_not_moved(write: Write) -> None:
    relu: Node = ("Relu", ["a"], "b", {})
    assert moved(graph_cost(write(CONV, relu, w=WEIGHTS), (8, 10))) == 4 * (PICTURE + WEIGHTS.size + MAP)
    second: Node = ("Conv", ["image", "w"], "c", {"pads": [1, 1, 1, 1]})
    add: Node = ("Add", ["a", "c"], "d", {})  # one term is added while it is made; the other one must be there
    assert moved(graph_cost(write(CONV, second, add, w=WEIGHTS), (8, 10))) == 4 * (PICTURE + WEIGHTS.size + 3 * MAP)


def test_what_others_take_too_is_moved_and_so_is_what_an_elementwise_node_enlarges(write: Write) -> None:
    pool, product = ("GlobalAveragePool", ["a"], "g", {}), ("Mul", ["a", "g"], "m", {})
    cost = graph_cost(write(CONV, pool, product, w=WEIGHTS), (8, 10))
    assert moved(cost) == 4 * (PICTURE + WEIGHTS.size + 2 * MAP + 2 * 8 + MAP)


def test_views_are_not_moved(write: Write) -> None:
    views: list[Node] = [
        ("Reshape", ["a", "form"], "b", {}),
        ("Identity", ["b"], "c", {}),
        ("Unsqueeze", ["c", "axis"], "d", {}),
    ]
    constants = {"w": WEIGHTS, "form": np.array([1, 8, 80]), "axis": np.array([3])}
    assert moved(graph_cost(write(CONV, *views, **constants), (8, 10))) == 4 * (PICTURE + WEIGHTS.size + MAP)


def test_weights_count_in_the_type_in_which_they_are_stored(write: Write) -> None:
    half = graph_cost(write(CONV, takes=TensorProto.FLOAT16, w=WEIGHTS.astype(np.float16)), (8, 10))
    assert moved(half) == 2 * (PICTURE + WEIGHTS.size + MAP)
    folded: list[Node] = [
        ("DequantizeLinear", ["w8", "s"], "t", {}),
        ("Transpose", ["t"], "w", {"perm": [3, 0, 1, 2]}),
        CONV,
    ]
    constants = {"w8": WEIGHTS.transpose(1, 2, 3, 0).astype(np.int8), "s": np.float32(1)}
    assert moved(graph_cost(write(*folded, **constants), (8, 10))) == WEIGHTS.size + 4 * (PICTURE + MAP)


def test_an_int8_graph_computes_once_and_moves_bytes(write: Write) -> None:
    scale = ["s", "z"]
    nodes: list[Node] = [
        ("QuantizeLinear", ["image", *scale], "q", {}),
        ("DequantizeLinear", ["q", *scale], "x", {}),
        ("DequantizeLinear", ["w8", "s", "zw"], "w", {}),
        ("Conv", ["x", "w"], "c", {"pads": [1, 1, 1, 1]}),
        ("QuantizeLinear", ["c", *scale], "qc", {}),
        ("DequantizeLinear", ["qc", *scale], "xc", {}),
        ("MaxPool", ["xc"], "p", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ]
    constants = {"w8": WEIGHTS.astype(np.int8), "s": np.float32(0.1), "z": np.uint8(0), "zw": np.int8(0)}
    cost = graph_cost(write(*nodes, **constants), (8, 10))
    assert flop(cost) == 2 * MAP * 27 + MAP  # and each value under the window
    scale_and_zero = 5
    picture = 4 * PICTURE + 2 * PICTURE  # as floats in, and as bytes between
    assert moved(cost) == picture + scale_and_zero + WEIGHTS.size + 2 * MAP + 4 * MAP // 4


def test_sizes_that_the_graph_computes_are_known(write: Write) -> None:
    nodes: list[Node] = [
        ("Shape", ["image"], "shape", {}),
        ("Slice", ["shape", "two", "four"], "sides", {}),
        CONV,
        ("MaxPool", ["a"], "p", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Shape", ["p"], "small", {}),
        ("Slice", ["small", "zero", "two"], "planes", {}),
        ("Concat", ["planes", "sides"], "sizes", {"axis": 0}),
        ("Resize", ["p", "", "", "sizes"], "r", {"mode": "linear"}),
    ]
    constants = {"w": WEIGHTS, "zero": np.array([0]), "two": np.array([2]), "four": np.array([4])}
    graph = sized_graph(write(*nodes, shape=("batch", 3, "height", None), **constants), (12, 18), 2)
    assert graph.tensors["p"].shape == (2, 8, 6, 9)
    assert graph.tensors["r"].shape == (2, 8, 12, 18)
    assert graph.tensors["sizes"].is_constant


def test_pixels_side_by_side_have_their_size_in_the_middle(write: Write) -> None:
    cast: Node = ("Cast", ["image"], "a", {"to": TensorProto.FLOAT})
    graph = sized_graph(write(cast, shape=(None, None, None, 3), takes=TensorProto.UINT8), (12, 18), 2)
    assert graph.tensors["image"].shape == (2, 12, 18, 3)
    assert (graph.tensors["image"].bytes, graph.tensors["a"].bytes) == (1296, 4 * 1296)


def test_what_is_fixed_in_a_graph_stays_so(write: Write) -> None:
    model = write(CONV, w=WEIGHTS)
    assert graph_cost(model, (80, 100)) == graph_cost(model, (8, 10))
    with pytest.raises(ModelError, match="takes 1 picture at a time, not 4"):
        graph_cost(model, (8, 10), 4)


def test_group_normalisation_returns_what_it_takes(write: Write) -> None:
    node: Node = ("GroupNormalization", ["image", "g", "g"], "a", {"num_groups": 1})
    assert flop(graph_cost(write(node, opset=21, g=one_of((3,))), (8, 10))) == 7 * PICTURE


def test_weights_in_other_files_and_among_the_inputs_are_counted_unseen(write: Write) -> None:
    model = write(CONV, w=WEIGHTS)
    expected = graph_cost(model, (8, 10))
    proto = onnx.load(model)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, ["any", 3, 3, 3]))
    onnx.save(proto, model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (model.parent / "weights.bin").unlink()
    assert graph_cost(model, (8, 10)) == expected


def test_functions_of_a_file_are_looked_into(write: Write) -> None:
    model = write(("Own", ["image"], "a", {}))
    proto = onnx.load(model)
    body = [helper.make_node("Relu", ["x"], ["t"]), helper.make_node("Sigmoid", ["t"], ["y"])]
    proto.functions.append(helper.make_function("other", "Own", ["x"], ["y"], body, [helper.make_opsetid("", 17)]))
    onnx.save(proto, model)
    assert flop(graph_cost(model, (8, 10))) == 2 * PICTURE


def test_four_bits_are_half_a_byte(write: Write) -> None:
    model = write(CONV, w=WEIGHTS)
    proto = onnx.load(model)
    proto.opset_import[0].version = 21
    packed = helper.make_tensor("w4", TensorProto.INT4, WEIGHTS.shape, [1] * WEIGHTS.size)
    proto.graph.initializer.append(packed)
    assert sized_graph_of(proto, model).tensors["w4"].bytes == math.prod(WEIGHTS.shape) // 2


def sized_graph_of(proto: onnx.ModelProto, path: Path) -> Any:
    onnx.save(proto, path)
    return sized_graph(path, (8, 10), 1)


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (("Own", ["image"], "a", {}), "other's Own returns is not known"),
        (("NonZero", ["image"], "a", {}), "depends on more than the pictures' size"),
        (("Det", ["image"], "a", {}), "how much Det computes is not known"),
        (("Concat", ["image", "w"], "a", {"axis": 1}), "does not fit its input"),
    ],
)
def test_what_cannot_be_counted_is_refused(write: Write, node: Node, words: str) -> None:
    shape = (1, 3, 8, 8) if node[0] == "Det" else (1, 3, 8, 10)
    with pytest.raises(ModelError, match=words):
        graph_cost(write(node, shape=shape, w=WEIGHTS), (8, 10))


def test_what_is_no_graph_of_pictures_is_refused(write: Write, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("nothing")
    with pytest.raises(ModelError):
        graph_cost(tmp_path / "text.onnx", (8, 10))
    with pytest.raises(CardError, match="expected pictures"):
        graph_cost(write(("Relu", ["image"], "a", {}), shape=(1, 3)), (8, 10))


@pytest.mark.parametrize(
    ("arch", "options", "is_open", "size"),
    [
        ("unet", {"base_channels": 4}, True, (320, 320)),
        ("u2netp", {}, True, (320, 320)),
        ("fastscnn", {}, False, (64, 96)),
    ],
)
def test_networks_cost_what_the_training_side_counts(
    arch: str, options: dict[str, int], is_open: bool, size: tuple[int, int], tmp_path: Path
) -> None:
    from segship.export.trace import trace
    from segship.export.wrapper import deployable
    from segship.training.networks import build_network
    from segship.training.summary import summarise

    card = ModelCard(
        tuple("abcdef"),
        tuple((number, 0, 0) for number in range(6)),
        Preprocess((64, 96)),
        network=Network(arch, options),
        dynamic=("batch", "size") if is_open else (),
    )
    assert card.network is not None
    network = build_network(card.network, num_classes=6, in_channels=3).eval()
    onnx.save(trace(deployable(network, card), card, 17), tmp_path / "network.onnx")
    cost = graph_cost(tmp_path / "network.onnx", size)
    counted = summarise(network, 3, size).gflop
    assert counted < cost.gflop < 1.03 * counted
    if arch == "u2netp":
        assert cost.gflop == pytest.approx(40.3, rel=0.02)
    if is_open:
        assert graph_cost(tmp_path / "network.onnx", size, 2).gflop == pytest.approx(2 * cost.gflop)
