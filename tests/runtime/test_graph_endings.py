import contextlib
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from segship.runtime.errors import ModelError
from segship.runtime.graph_endings import endings

MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _graph(*operators: str, outputs: tuple[str, ...] = ("out",)) -> onnx.ModelProto:
    """A chain of operators, of which only the names matter."""
    names = ["image", *(f"value{number}" for number in range(len(operators) - 1)), "out"]
    nodes = [helper.make_node(kind, [names[i], "weights"], [names[i + 1]]) for i, kind in enumerate(operators)]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 4, 4]) for name in ("image", *outputs)]
    return helper.make_model(helper.make_graph(nodes, "graph", values[:1], values[1:]))


def _endings(folder: Path, model: onnx.ModelProto) -> dict[str, str]:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return endings(path)


@pytest.mark.parametrize(
    ("operators", "ending"),
    [
        (("Conv", "Sigmoid"), "Sigmoid"),
        (("Conv", "Softmax", "Resize", "Transpose"), "Softmax"),
        (("Conv", "ArgMax", "Cast", "Squeeze", "Cast"), "ArgMax"),
        (("Conv", "Relu", "Conv", "Resize"), "Conv"),
        (("Sigmoid", "Mul", "Cast"), "Mul"),
    ],
)
def test_what_only_moves_and_converts_values_is_passed_over(
    operators: tuple[str, ...], ending: str, tmp_path: Path
) -> None:
    assert _endings(tmp_path, _graph(*operators)) == {"out": ending}


def test_an_output_that_nothing_makes_is_left_out(tmp_path: Path) -> None:
    assert _endings(tmp_path, _graph("Cast", "Identity")) == {}
    assert _endings(tmp_path, _graph("Conv", outputs=("out", "image"))) == {"out": "Conv"}


def test_each_output_has_its_own_ending(tmp_path: Path) -> None:
    assert _endings(tmp_path, _graph("Conv", "Sigmoid", outputs=("value0", "out"))) == {
        "value0": "Conv",
        "out": "Sigmoid",
    }


def test_a_graph_that_runs_in_a_circle_ends_all_the_same(tmp_path: Path) -> None:
    model = _graph("Cast", "Cast")
    model.graph.node[0].input[0] = "out"
    assert _endings(tmp_path, model) == {}


def test_a_real_network_ends_in_what_its_head_says(tiny_model: Path, tiny_labels_model: Path) -> None:
    assert endings(tiny_model)["logits"] in ("Conv", "Add")
    assert endings(tiny_labels_model) == {"labels": "ArgMax"}


CHAIN = _graph("Conv", "Softmax", "Cast").SerializeToString()


@MANY
@given(st.lists(st.tuples(st.integers(0, len(CHAIN) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_file_is_a_model_error_or_read(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(CHAIN)
    for place, value in changes:
        data[place] = value
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with contextlib.suppress(ModelError):
        assert all(isinstance(ending, str) for ending in endings(path).values())
