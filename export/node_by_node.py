"""A graph's values, node by node: each node runs alone, so that nothing is fused, folded or reordered."""

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from segship.export.fingerprint import Fingerprint, fingerprint
from segship.runtime.backends.common import import_onnxruntime
from segship.runtime.backends.cpu_quota import available_cpus
from segship.runtime.errors import ModelError, one_line

Value = NDArray[Any] | list[NDArray[Any]]

_FATAL_ONLY: Final = 4
_WIDTH: Final = 12**0.5  # of a uniform distribution, in standard deviations
_INTERPOLATING: Final = ("Resize", "Upsample", "GridSample")


@dataclass(frozen=True)
class Step:
    """One node that has run.

    Attributes:
        node: that ran.
        depends: whether it depends on the graph's input, and not on its shape alone.
        values: what it returned, by name.
        marks: their fingerprints, of the tensors that depend on the input.
        noise: how far the rounding of all nodes up to this one may move each of these, in the sums of its fingerprint.
    """

    node: onnx.NodeProto
    depends: bool
    values: dict[str, Value]
    marks: dict[str, Fingerprint]
    noise: dict[str, float]


def node_by_node(model: onnx.ModelProto, inputs: dict[str, NDArray[Any]], tolerance: float) -> Iterator[Step]:
    """Run the nodes of a graph in their order.

    ONNX Runtime runs them with its optimisations off; where it is not installed, onnx's own reference implementation
    does, which is slow. A value is kept for as long as a later node takes it, so that memory stays near what an engine
    needs. Each node runs a second time, on values that are a little off; what becomes of this shows how much of the
    rounding errors of all nodes before arrives, which differs by orders of magnitude between one network and another.

    Args:
        model: with its weights.
        inputs: of the graph, by name.
        tolerance: how far one node may be off by itself, as a share of the largest value it returns; each of its values
            is shaken by a 32nd of this, as a share of the value.

    Raises:
        ModelError: if a node does not run.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    takers = Counter(name for node in model.graph.node for name in names_taken(node))
    takers.update(output.name for output in model.graph.output)
    random = np.random.default_rng(0)
    values: dict[str, Value] = dict(inputs)
    shaken: dict[str, Value] = {}  # the values that depend on the input, a little off
    depending = set(inputs)
    for node in model.graph.node:
        taken = names_taken(node)
        single = _single(model, node, values, [weights[name] for name in taken if name in weights])
        run = _runner(single, node)
        returned = run({name: values[name] for name in taken if name in values})
        depends = not depending.isdisjoint(values_taken(node))
        marks, noise = {}, {}
        if depends:
            depending.update(returned)
            off = run({name: shaken.get(name, values[name]) for name in taken if name in values})
            for name in filter(takers.__getitem__, returned):
                value, shaken[name] = returned[name], off[name]
                if isinstance(value, np.ndarray) and value.size:
                    shaken[name] = moved = _shaken(np.asarray(off[name]), node, tolerance, random)
                    marks[name] = fingerprint(value)
                    noise[name] = marks[name].distance(fingerprint(moved))
        yield Step(node, depends, returned, marks, noise)
        values.update((name, value) for name, value in returned.items() if takers[name])
        takers.subtract(taken)
        for name in taken:
            if not takers[name]:
                values.pop(name, None)
                shaken.pop(name, None)


def _shaken(value: NDArray[Any], node: onnx.NodeProto, tolerance: float, random: np.random.Generator) -> NDArray[Any]:
    """Return the value with a random error of ``tolerance`` / 32, and more where a node interpolates.

    Such a node calculates positions, and their rounding errors grow with the sides.
    """
    if value.dtype.kind != "f":
        return value
    factors = random.random(value.shape, np.float32)
    factors -= 0.5
    factors *= _WIDTH * tolerance / 32 * (max(1, max(value.shape) / 8) if node.op_type in _INTERPOLATING else 1)
    factors += 1
    return np.asarray((value * factors).astype(value.dtype, copy=False))


def names_taken(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return the names of the values that a node and the graphs inside it take, each once.

    Names that belong to the inner graphs are among them.
    """
    inner = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    names = [name for name in node.input if name]
    names += [name for graph in inner for part in graph.node for name in names_taken(part)]
    names += [output.name for graph in inner for output in graph.output]
    return tuple(dict.fromkeys(names))


def values_taken(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return the names whose values, and not their shapes alone, a node looks at."""
    return () if node.op_type in ("Shape", "Size") else names_taken(node)


def name_of(node: onnx.NodeProto) -> str:
    """Return a node's name, or that of its output where it has none."""
    return node.name or next(name for name in node.output if name)


def _single(
    model: onnx.ModelProto, node: onnx.NodeProto, values: dict[str, Value], weights: list[onnx.TensorProto]
) -> onnx.ModelProto:
    inputs = [_described(name, values[name]) for name in names_taken(node) if name in values]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "node", inputs, outputs, weights)
    single = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    single.graph.CopyFrom(graph)
    return single


def _described(name: str, value: Value) -> onnx.ValueInfoProto:
    if isinstance(value, list):
        return helper.make_tensor_sequence_value_info(name, helper.np_dtype_to_tensor_dtype(value[0].dtype), None)
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def _runner(single: onnx.ModelProto, node: onnx.NodeProto) -> Callable[[dict[str, Value]], dict[str, Value]]:
    names = [name for name in node.output if name]

    def run(inputs: dict[str, Value]) -> dict[str, Value]:
        try:
            return dict(zip(names, session.run(None, inputs), strict=True))
        except Exception as error:  # neither library's exceptions have a base class but this
            raise _failure(node, error) from error

    try:
        session = _open(single)
    except Exception as error:
        raise _failure(node, error) from error
    return run


def _open(single: onnx.ModelProto) -> Any:
    if not importlib.util.find_spec("onnxruntime"):
        return ReferenceEvaluator(single)
    onnxruntime = import_onnxruntime(extra="cpu")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = available_cpus()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # with one session a node it takes longest
    options.log_severity_level = _FATAL_ONLY
    return onnxruntime.InferenceSession(single.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _failure(node: onnx.NodeProto, error: Exception) -> ModelError:
    return ModelError(f"the node {name_of(node)} ({node.op_type}) does not run ({one_line(error)})")
