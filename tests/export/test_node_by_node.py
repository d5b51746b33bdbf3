import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from segship.export.node_by_node import Step, node_by_node
from segship.runtime.errors import ModelError

BATCH = np.arange(6, dtype=np.float32).reshape(2, 3)


def _steps(text: str) -> list[Step]:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    return list(node_by_node(model, {"x": BATCH}, 1e-5))


def test_each_node_comes_with_its_values_and_the_noise_before_it() -> None:
    steps = _steps("g (float[2,3] x) => (float[2,3] y) { a = Neg(x)  y = Exp(a) }")
    assert [step.node.op_type for step in steps] == ["Neg", "Exp"]
    np.testing.assert_allclose(np.asarray(steps[1].values["y"]), np.exp(-BATCH), rtol=1e-6)
    assert all(0 < step.noise[name] < 1e-5 for step in steps for name in step.marks)


def test_what_is_made_of_shapes_and_constants_does_not_depend_on_the_input() -> None:
    steps = _steps(
        "g (float[2,3] x) => (float[2,3] y) { s = Shape(x)  z = ConstantOfShape(s)  y = Add(x, z) }",
    )
    assert [step.depends for step in steps] == [False, False, True]
    assert [list(step.marks) for step in steps] == [[], [], ["y"]]


def test_a_branch_takes_values_from_around_it() -> None:
    steps = _steps(
        "g (float[2,3] x) => (float[2,3] y) { a = Neg(x)  c = Constant<value = bool {1}>()  "
        "y = If(c) <then_branch = t () => (float[2,3] p) { p = Neg(a) }, "
        "else_branch = e () => (float[2,3] q) { q = Abs(a) }> }",
    )
    np.testing.assert_array_equal(np.asarray(steps[-1].values["y"]), BATCH)
    assert steps[-1].depends


def test_sequences_are_handed_on() -> None:
    steps = _steps(
        "g (float[2,3] x) => (float[4,3] y) { s = SequenceConstruct(x, x)  y = ConcatFromSequence<axis=0>(s) }"
    )
    assert np.asarray(steps[-1].values["y"]).shape == (4, 3)


def test_a_node_that_does_not_run_is_named() -> None:
    weight = numpy_helper.from_array(np.zeros((5, 5), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    shapes = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", shapes[:1], shapes[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelError, match=r"the node product \(MatMul\) does not run \("):
        list(node_by_node(model, {"x": BATCH}, 1e-5))
