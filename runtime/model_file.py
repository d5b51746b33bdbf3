"""What a model file says of itself, read and written without loading its weights.

An ONNX file is a protobuf message (``ModelProto`` of onnx.proto3). Its top level is a short list of fields, the graph
being one of them, so the metadata is found by stepping over the fields; neither the onnx package nor a second parse
of the weights is needed. A ``.safetensors`` file starts with the length of a JSON header, which holds the metadata.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from segship.runtime.card import CARD_KEY, MAX_CARD_BYTES, ModelCard, Shape
from segship.runtime.errors import CardError, ModelError
from segship.runtime.external_data import external_files
from segship.runtime.files import replacing
from segship.runtime.protobuf import Buffer, fields, length_field, mapped, parts, strings, varint

CHECKPOINT_SUFFIX: Final = ".safetensors"

_MODEL_GRAPH, _MODEL_OPSET_IMPORT, _MODEL_METADATA_PROPS = 7, 8, 14
_GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 5, 11, 12
_TENSOR_NAME = 8
_FLOATS: Final = ("float32", "float16")
_ELEMENT_TYPES: Final = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
}
_MAX_HEADER_BYTES: Final = 100 << 20  # what the safetensors library itself allows


@dataclass(frozen=True)
class OnnxHeader:
    """What the top level of an ONNX file says.

    Attributes:
        opset: version of the default operator set.
        metadata: the ``metadata_props``.
        inputs: of the graph, by name, with their shapes; None where the graph tells none. Weights that old files count
            among the inputs are left out.
        outputs: likewise.
        types: of the elements of inputs and outputs, by name, as numpy calls them, and ``bfloat16``; what the graph
            does not tell is left out.
    """

    opset: int
    metadata: dict[str, str]
    inputs: dict[str, Shape | None]
    outputs: dict[str, Shape | None]
    types: dict[str, str] = field(default_factory=dict)


def read_onnx_header(path: Path) -> OnnxHeader:
    """Read opset and metadata of an ONNX file, in time and memory that do not depend on its weights.

    Raises:
        ModelError: if the file is missing, or is no whole ONNX file.
    """
    opset = 0
    has_graph = False
    metadata: dict[str, str] = {}
    values: dict[int, dict[str, Shape | None]] = {_GRAPH_INPUT: {}, _GRAPH_OUTPUT: {}}
    types: dict[str, str] = {}
    weights: set[str] = set()
    with mapped(path) as data:
        for number, start, end in fields(data, 0, len(data)):
            if number == _MODEL_GRAPH:
                has_graph = True
                for part, part_start, part_end in fields(data, start, end):
                    if part in values:
                        name, shape, element = _value_info(data[part_start:part_end])
                        values[part][name] = shape
                        types.update({name: _ELEMENT_TYPES[element]} if element in _ELEMENT_TYPES else {})
                    elif part == _GRAPH_INITIALIZER:
                        weights.add(_tensor_name(data, part_start, part_end))
            elif number == _MODEL_OPSET_IMPORT:
                domain, version = _opset_import(data[start:end])
                opset = version if domain in ("", "ai.onnx") else opset
            elif number == _MODEL_METADATA_PROPS and end - start <= MAX_CARD_BYTES:
                entry = strings(data[start:end])
                metadata[entry.get(1, "")] = entry.get(2, "")
    if not has_graph or not opset:
        raise ModelError(f"{path} is no ONNX file: it holds no graph or names no opset")
    inputs = {name: shape for name, shape in values[_GRAPH_INPUT].items() if name not in weights}
    outputs = values[_GRAPH_OUTPUT]
    return OnnxHeader(
        opset, metadata, inputs, outputs, {name: types[name] for name in types if name in inputs or name in outputs}
    )


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
            "export it with seg-export, give it one with seg-check card, or give a JSON file (seg-infer --card FILE)"
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


def write_card(path: Path, card: ModelCard, *, output: Path | None = None) -> None:
    """Give an ONNX file another card; all else in it stays as it is, byte for byte.

    Args:
        path: of the file. Weights that lie in files beside it are left alone.
        card: that it will carry.
        output: where to write the file that carries the card; None: to ``path`` itself.

    Raises:
        ModelError: if the file is missing or damaged, or ``output`` would lie apart from its weights.
        CardError: if the card is too long.
        OutputError: if the file cannot be written.
    """
    text = card.to_json()
    if len(text) > MAX_CARD_BYTES:
        raise CardError(f"the card has {len(text)} characters; at most {MAX_CARD_BYTES} can be written")
    entry = length_field(1, CARD_KEY.encode()) + length_field(2, text.encode())
    output = path if output is None else output
    if output.parent.resolve() != path.parent.resolve() and (files := external_files(path)):
        raise ModelError(
            f"{path} has weights in {files[0]}, so {output} would lack them; write it into the same folder"
        )
    with replacing(output, durable=True) as temporary:
        with mapped(path) as data, memoryview(data) as view, temporary.open("wb") as file:
            begin = 0
            for number, start, end in fields(data, 0, len(data)):
                if number != _MODEL_METADATA_PROPS or strings(data[start:end]).get(1) != CARD_KEY:
                    file.write(view[begin:end])
                begin = end
            file.write(length_field(_MODEL_METADATA_PROPS, entry))
        shutil.copymode(path, temporary)


def content_sha256(path: Path, card: ModelCard | None = None) -> str:
    """Return the sha-256 of what an ONNX file computes and how it is to be used: what its certificate stands for.

    It covers every field of the file but its metadata, the files that hold weights of it, and its card without the
    certificate, in a form that neither the order of the card's keys nor the way that a number is written changes.

    Args:
        path: of the file.
        card: that it is used with, where it carries none itself.

    Raises:
        ModelError: if the file is missing or damaged, or weights of it are.
        CardError: if its card is no JSON object.
    """
    content = hashlib.sha256()
    with mapped(path) as data, memoryview(data) as view:
        for number, start, end in fields(data, 0, len(data)):
            if number != _MODEL_METADATA_PROPS:
                content.update(b"%d:%d:" % (number, end - start))
                content.update(view[start:end])
    for weights in external_files(path):
        try:
            with weights.open("rb") as file:
                content.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ModelError(f"cannot read the weights {weights}: {error.strerror or error}") from error
    content.update(_canonical_card(path, card))
    return content.hexdigest()


def _canonical_card(path: Path, given: ModelCard | None) -> bytes:
    """Return a file's card without its certificate as the only JSON text there is of it; without card: of null."""
    text = read_onnx_header(path).metadata.get(CARD_KEY, "null" if given is None else given.to_json())
    try:
        card = json.loads(text, parse_int=float)  # 0 and 0.0 are the same mean
    except (ValueError, RecursionError) as error:
        raise CardError(f"{path}: the card is no valid JSON ({error})") from error
    if isinstance(card, dict):
        card["certificate"] = None
    return json.dumps(card, sort_keys=True, separators=(",", ":")).encode()


def check_fits(path: Path, card: ModelCard) -> None:
    """Compare the inputs and outputs of an ONNX file with what its card says of them, and look for all its weights.

    Engines are given no file that this has not seen.

    Raises:
        ModelError: if names or sizes differ, the file is missing or damaged, or weights of it are missing or lie where
            none may.
    """
    if path.suffix == CHECKPOINT_SUFFIX:
        raise ModelError(f"{path} is a checkpoint, not an ONNX file; export it with seg-export, or use --backend torch")
    header = read_onnx_header(path)
    external_files(path)
    if card.input_name not in header.inputs or card.output_name not in header.outputs:
        raise ModelError(
            f"{path} has inputs {list(header.inputs)} and outputs {list(header.outputs)}; "
            f"its card says {card.input_name!r} and {card.output_name!r}"
        )
    _check_types(path, header, card)
    for what, got, expected in (
        ("takes pictures", header.inputs[card.input_name], card.input_shape),
        (f"returns {card.head}", header.outputs[card.output_name], card.output_shape),
    ):
        if got is not None and not _agree(got, expected):
            raise ModelError(
                f"{path}: its card says that it {what} {_in_words(expected)}, but its graph has {_in_words(got)} "
                "there; this card is not this model's"
            )


def _check_types(path: Path, header: OnnxHeader, card: ModelCard) -> None:
    takes, expected = header.types.get(card.input_name), card.input_dtype
    if takes not in (None, expected):
        raise ModelError(
            f"{path}: its card says that it takes {expected}, but its graph takes {takes}; "
            "this card is not this model's"
        )
    returns = header.types.get(card.output_name)
    if returns is not None and card.head != "labels" and returns not in _FLOATS:
        raise ModelError(
            f"{path}: its card says that it returns {card.head}, but its graph returns {returns}; "
            f"expected {' or '.join(_FLOATS)}: this card is not this model's"
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


def _opset_import(message: bytes) -> tuple[str, int]:
    """Domain and version of an ``OperatorSetIdProto``."""
    domain, version = "", 0
    for number, start, end in fields(message, 0, len(message)):
        if number == 1:
            domain = message[start:end].decode("utf-8")
        elif number == 2:
            version, _ = varint(message, start)
    return domain, version


def _value_info(message: bytes) -> tuple[str, Shape | None, int]:
    """Name, shape and element type of a ``ValueInfoProto``, the last one 0 where it is not told.

    They lie in type (2), tensor_type (1), and there the element type in elem_type (1) and the shape in shape (2),
    dim (1).
    """
    name = b"".join(parts(message, 1)).decode("utf-8")
    tensors = [tensor for kind in parts(message, 2) for tensor in parts(kind, 1)]
    shapes = [shape for tensor in tensors for shape in parts(tensor, 2)]
    elements = [varint(element, 0)[0] for tensor in tensors for element in parts(tensor, 1)]
    shape = tuple(_dimension(dim) for dim in parts(shapes[0], 1)) if shapes else None
    return name, shape, elements[0] if elements else 0


def _tensor_name(data: Buffer, at: int, end: int) -> str:
    """Name of a ``TensorProto``, whose values are stepped over."""
    for number, start, stop in fields(data, at, end):
        if number == _TENSOR_NAME:
            return data[start:stop].decode("utf-8")
    return ""


def _dimension(message: bytes) -> int | None:
    for number, start, _ in fields(message, 0, len(message)):
        if number == 1:
            value, _ = varint(message, start)
            return value if 0 < value < 1 << 63 else None  # some tools write -1 for an open size
    return None
