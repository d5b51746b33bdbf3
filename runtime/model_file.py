"""Reading what a model file says of itself, without loading its weights.

An ONNX file is a protobuf message (``ModelProto`` of onnx.proto3). Its top level is a short list of fields, the graph
being one of them, so the metadata is found by stepping over the fields; neither the onnx package nor a second parse
of the weights is needed. A ``.safetensors`` file starts with the length of a JSON header, which holds the metadata.
"""

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from segship.runtime.card import CARD_KEY, MAX_CARD_BYTES, ModelCard, Shape
from segship.runtime.errors import CardError, ModelError

CHECKPOINT_SUFFIX: Final = ".safetensors"

_MODEL_GRAPH, _MODEL_OPSET_IMPORT, _MODEL_METADATA_PROPS = 7, 8, 14
_GRAPH_INPUT, _GRAPH_OUTPUT = 11, 12
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MAX_HEADER_BYTES: Final = 100 << 20  # what the safetensors library itself allows

Buffer = mmap.mmap | bytes


@dataclass(frozen=True)
class OnnxHeader:
    """What the top level of an ONNX file says.

    Attributes:
        opset: version of the default operator set.
        metadata: the ``metadata_props``.
        inputs: of the graph, by name, with their shapes; None where the graph tells none.
        outputs: likewise.
    """

    opset: int
    metadata: dict[str, str]
    inputs: dict[str, Shape | None]
    outputs: dict[str, Shape | None]


def read_onnx_header(path: Path) -> OnnxHeader:
    """Read opset and metadata of an ONNX file, in time and memory that do not depend on its weights.

    Raises:
        ModelError: if the file is missing, or is no whole ONNX file.
    """
    opset = 0
    has_graph = False
    metadata: dict[str, str] = {}
    values: dict[int, dict[str, Shape | None]] = {_GRAPH_INPUT: {}, _GRAPH_OUTPUT: {}}
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for number, start, end in _fields(data, 0, len(data)):
                if number == _MODEL_GRAPH:
                    has_graph = True
                    for part, part_start, part_end in _fields(data, start, end):
                        if part in values:
                            values[part].update([_value_info(data[part_start:part_end])])
                elif number == _MODEL_OPSET_IMPORT:
                    domain, version = _opset_import(data[start:end])
                    opset = version if domain in ("", "ai.onnx") else opset
                elif number == _MODEL_METADATA_PROPS and end - start <= MAX_CARD_BYTES:
                    entry = _strings(data[start:end])
                    metadata[entry.get(1, "")] = entry.get(2, "")
    except OSError as error:
        raise ModelError(f"cannot read the model {path}: {error.strerror or error}") from error
    except ValueError as error:  # also what mmap says of an empty file
        raise ModelError(f"{path} is no ONNX file, or a damaged one ({error})") from error
    if not has_graph or not opset:
        raise ModelError(f"{path} is no ONNX file: it holds no graph or names no opset")
    return OnnxHeader(opset, metadata, values[_GRAPH_INPUT], values[_GRAPH_OUTPUT])


def read_card(path: Path) -> ModelCard:
    """Read the card that a model file (``.onnx``) or a checkpoint (``.safetensors``) carries.

    Raises:
        ModelError: if the file is missing or damaged.
        CardError: if it carries no card, or an invalid one.
    """
    metadata = _read_metadata(path)
    if CARD_KEY not in metadata:
        raise CardError(
            f"{path} carries no segship card, so its preprocessing and classes are unknown; "
            "export it with seg-export, or give the card as a JSON file (seg-infer --card FILE)"
        )
    return ModelCard.from_json(metadata[CARD_KEY], origin=str(path))


def has_card(path: Path) -> bool:
    """Tell whether a model file or a checkpoint carries a card, valid or not.

    Raises:
        ModelError: if the file is missing or damaged.
    """
    return CARD_KEY in _read_metadata(path)


def _read_metadata(path: Path) -> dict[str, str]:
    return _read_safetensors_metadata(path) if path.suffix == CHECKPOINT_SUFFIX else read_onnx_header(path).metadata


def check_fits(path: Path, card: ModelCard) -> None:
    """Compare the inputs and outputs of an ONNX file with what its card says of them.

    Raises:
        ModelError: if names or sizes differ, or the file is missing or damaged.
    """
    if path.suffix == CHECKPOINT_SUFFIX:
        raise ModelError(f"{path} is a checkpoint, not an ONNX file; export it with seg-export, or use --backend torch")
    header = read_onnx_header(path)
    if card.input_name not in header.inputs or card.output_name not in header.outputs:
        raise ModelError(
            f"{path} has inputs {list(header.inputs)} and outputs {list(header.outputs)}; "
            f"its card says {card.input_name!r} and {card.output_name!r}"
        )
    for what, got, expected in (
        ("takes pictures", header.inputs[card.input_name], card.input_shape),
        (f"returns {card.head}", header.outputs[card.output_name], card.output_shape),
    ):
        if got is not None and not _agree(got, expected):
            raise ModelError(
                f"{path}: its card says that it {what} {_in_words(expected)}, but its graph has {_in_words(got)} "
                "there; this card is not this model's"
            )


def _agree(shape: Shape, expected: Shape) -> bool:
    """Tell whether a graph's shape is the expected one; what a graph leaves open may be anything."""
    return len(shape) == len(expected) and all(a in (b, None) for a, b in zip(shape, expected, strict=True))


def _in_words(shape: Shape) -> str:
    return f"({', '.join('?' if side is None else str(side) for side in shape)})"


def _read_safetensors_metadata(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _MAX_HEADER_BYTES:
                raise ValueError(f"its header claims {length} bytes")
            metadata = json.loads(file.read(length)).get("__metadata__", {}).items()
    except OSError as error:
        raise ModelError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is no safetensors file, or a damaged one ({error})") from error
    return {str(key): str(value) for key, value in metadata}


def _varint(data: Buffer, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends in the middle of a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number has more than ten bytes")


def _fields(data: Buffer, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (field number, start, end) of each field of a message; a varint's bytes are its own span."""
    while at < end:
        tag, start = _varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _LENGTH:
            length, start = _varint(data, start)
            at = start + length
        elif wire_type == _VARINT:
            _, at = _varint(data, start)
        elif wire_type in (_FIXED32, _FIXED64):
            at = start + (4 if wire_type == _FIXED32 else 8)
        else:
            raise ValueError(f"byte {at} starts no protobuf field")
        if number == 0 or at > end:
            raise ValueError("a field is longer than the file" if number else "a field has the number 0")
        yield number, start, at


def _opset_import(message: bytes) -> tuple[str, int]:
    """Domain and version of an ``OperatorSetIdProto``."""
    domain, version = "", 0
    for number, start, end in _fields(message, 0, len(message)):
        if number == 1:
            domain = message[start:end].decode("utf-8")
        elif number == 2:
            version, _ = _varint(message, start)
    return domain, version


def _value_info(message: bytes) -> tuple[str, Shape | None]:
    """Name and shape of a ``ValueInfoProto``; the shape lies in type (2), tensor_type (1), shape (2), dim (1)."""
    name = b"".join(_parts(message, 1)).decode("utf-8")
    shapes = [shape for kind in _parts(message, 2) for tensor in _parts(kind, 1) for shape in _parts(tensor, 2)]
    return name, tuple(_dimension(dim) for dim in _parts(shapes[0], 1)) if shapes else None


def _dimension(message: bytes) -> int | None:
    for number, start, _ in _fields(message, 0, len(message)):
        if number == 1:
            value, _ = _varint(message, start)
            return value if 0 < value < 1 << 63 else None  # some tools write -1 for an open size
    return None


def _parts(message: bytes, wanted: int) -> list[bytes]:
    return [message[start:end] for number, start, end in _fields(message, 0, len(message)) if number == wanted]


def _strings(message: bytes) -> dict[int, str]:
    return {number: message[start:end].decode("utf-8") for number, start, end in _fields(message, 0, len(message))}
