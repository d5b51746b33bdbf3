"""What a graph does last before its outputs: by that, logits, probabilities and labels can be told apart."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from segship.runtime.protobuf import MAX_FIELDS, Buffer, fields, mapped

_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_OUTPUT, _VALUE_NAME = 7, 1, 12, 1
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR = 1, 2, 4

_KEEPS_MEANING: Final = frozenset(
    {"Cast", "Identity", "Dropout", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose", "Slice", "Crop"}
    | {"Resize", "Upsample", "QuantizeLinear", "DequantizeLinear"}
)
"""Operators after which logits are logits still, probabilities probabilities, and labels labels."""


def endings(path: Path) -> dict[str, str]:
    """Return the operator that decides what an output of an ONNX file means, such as ``Softmax``, by the output's name.

    It is the last one that does more than move, resize or convert values. An output that none leads to, such as an
    input that is handed through, is left out.

    Raises:
        ModelError: if the file is missing, or is no whole ONNX file.
    """
    made_by: dict[str, tuple[str, str]] = {}
    outputs: list[str] = []
    with mapped(path) as data:
        for kind, at, end in _parts_of_graph(data):
            if kind == _GRAPH_OUTPUT:
                outputs += [_text(data, *place) for number, *place in fields(data, at, end) if number == _VALUE_NAME]
            else:
                made_by.update(_made_by(data, at, end))
    found = {name: _ending(name, made_by) for name in outputs}
    return {name: ending for name, ending in found.items() if ending}


def _parts_of_graph(data: Buffer) -> Iterator[tuple[int, int, int]]:
    """Yield nodes and outputs, and refuse a graph of more fields than any real one has."""
    steps = 0
    for number, start, end in fields(data, 0, len(data)):
        if number != _MODEL_GRAPH:
            continue
        for part, part_start, part_end in fields(data, start, end):
            if part in (_GRAPH_NODE, _GRAPH_OUTPUT):
                steps += sum(1 for _ in fields(data, part_start, part_end))
                if steps > MAX_FIELDS:
                    raise ValueError(f"its graph has more than {MAX_FIELDS} fields")
                yield part, part_start, part_end


def _made_by(data: Buffer, at: int, end: int) -> dict[str, tuple[str, str]]:
    """Return a node's operator and its first input, by the names of its outputs."""
    operator, first, outputs = "", "", []
    for number, start, stop in fields(data, at, end):
        if number == _NODE_OPERATOR:
            operator = _text(data, start, stop)
        elif number == _NODE_INPUT:
            first = first or _text(data, start, stop)
        elif number == _NODE_OUTPUT:
            outputs.append(_text(data, start, stop))
    return dict.fromkeys(outputs, (operator, first))


def _ending(name: str, made_by: dict[str, tuple[str, str]]) -> str:
    for _ in range(len(made_by)):  # a damaged graph may run in a circle
        if name not in made_by:
            return ""
        operator, name = made_by[name]
        if operator not in _KEEPS_MEANING:
            return operator
    return ""


def _text(data: Buffer, start: int, end: int) -> str:
    return data[start:end].decode("utf-8")
