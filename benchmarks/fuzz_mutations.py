"""How fuzzing damages what it starts from: bytes of any kind, ONNX graphs, cards; the same damage for the same seed."""

import json
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from segship.runtime.card import CARD_KEY

_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_NUMBERS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_WEIRD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 255, 65536, 1e-320, 1e308, 10**30, 10**400, float("nan"), float("inf"), "", "x", "NCHW",
    "labels", "\x00", "é" * 3, "x" * 100_000, [], {}, [[]], [0, 0], [1, -1], [1e9, 1e9], [[0, 0, 0]] * 70_000,
    {"x": 1}, [None], ["batch"], ["batch", "batch"], ["size"],
)  # fmt: skip
_OPERATORS = (
    "Conv",
    "Relu",
    "Reshape",
    "Gather",
    "Resize",
    "Slice",
    "Concat",
    "MaxPool",
    "ConvTranspose",
    "Loop",
    "Xyz",
)


def mutated_bytes(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Return ``data`` after one to four kinds of damage; ``others`` are what it may be spliced with."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice(_BYTE_MUTATIONS)(data, others, rng) or data[:1]
    return _with_right_sums(data) if data.startswith(_PNG_HEAD) and rng.random() < 0.6 else data


def mutated_card(text: str, rng: random.Random) -> str:
    """Return the JSON text of a card with another value somewhere, or another structure."""
    card = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 3))):
        _change_value(card, rng)
    kind = rng.random()
    if kind < 0.05:
        return "[" * rng.choice((1000, 200_000))
    if kind < 0.1:
        return text.replace('"preprocess"', '"preprocess":{},"preprocess"', 1)  # the same key twice
    changed = json.dumps(card)
    return mutated_bytes(changed.encode(), [text.encode()], rng).decode(errors="replace") if kind < 0.2 else changed


def mutated_model(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Return an ONNX file with damaged bytes, with a card that was changed, or with a graph that was."""
    kind = rng.random()
    if kind < 0.3:
        return mutated_bytes(data, others, rng)
    model = onnx.load_model_from_string(data)
    if kind < 0.6:
        for entry in model.metadata_props:
            if entry.key == CARD_KEY:
                entry.value = mutated_card(entry.value, rng)
        return bytes(model.SerializeToString())
    for _ in range(rng.choice((1, 1, 2, 5))):
        try:
            rng.choice(_GRAPH_MUTATIONS)(model, rng)
        except (ValueError, IndexError, DecodeError):
            continue  # there is nothing left of what it changes, or the message refuses the value
    return bytes(model.SerializeToString())


def _flip_bits(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _flip in range(rng.choice((1, 2, 8, 32))):
        changed[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set_bytes(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    at, count = _place(data, rng), rng.choice((1, 1, 4, 16))
    return data[:at] + bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))]) * count + data[at + count :]


def _truncate(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    return data[: _place(data, rng)]


def _append(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.choice((1, 100, 10_000)))


def _repeat_chunk(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    at, size = _place(data, rng), rng.choice((1, 4, 12, 100, 1000))
    return data[: at + size] + data[at : at + size] * rng.choice((1, 1, 3, 100)) + data[at + size :]


def _remove_chunk(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + rng.choice((1, 2, 4, 12, 100)) :]


def _set_number(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    kind = rng.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
    size, at = struct.calcsize(kind), _place(data, rng)
    number = rng.choice((*_NUMBERS, len(data), len(data) - at, rng.randrange(1 << 16))) % (1 << (8 * size))
    return data[:at] + struct.pack(kind, number) + data[at + size :]


def _splice(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    other = rng.choice(others)
    return data[: _place(data, rng)] + other[_place(other, rng) :]


def _other_head(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    size = rng.choice((2, 4, 8, 16, 64))
    return rng.choice(others)[:size] + data[size:]


_BYTE_MUTATIONS: tuple[Callable[[bytes, Sequence[bytes], random.Random], bytes], ...] = (
    _flip_bits, _set_bytes, _truncate, _append, _repeat_chunk, _remove_chunk, _set_number, _set_number, _splice,
    _other_head,
)  # fmt: skip


def _place(data: bytes, rng: random.Random) -> int:
    """Choose a place, every second time near the beginning, where formats keep their headers."""
    return rng.randrange(max(1, min(len(data), 200) if rng.random() < 0.5 else len(data)))


def _with_right_sums(png: bytes) -> bytes:
    """Give each chunk of a PNG its checksum, without which decoders look no further."""
    at, mended = len(_PNG_HEAD), [_PNG_HEAD]
    while at + 12 <= len(png):
        (size,) = struct.unpack_from(">I", png, at)
        body = png[at + 4 : at + 8 + size]
        if len(body) < 4 + size:
            break
        mended.append(struct.pack(">I", size) + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + size
    return b"".join(mended) + png[at:]


def _change_value(card: Any, rng: random.Random) -> None:
    """Walk down into a JSON value and change what is found: another value, none, or one more key."""
    while True:
        if not card or not isinstance(card, dict | list):
            return
        key: Any = rng.choice(list(card)) if isinstance(card, dict) else rng.randrange(len(card))
        if isinstance(card[key], dict | list) and card[key] and rng.random() < 0.6:
            card = card[key]
            continue
        action = rng.random()
        if action < 0.8:
            card[key] = rng.choice(_WEIRD)
        elif action < 0.9:
            del card[key]
        elif isinstance(card, dict):
            card[rng.choice(("", "extra", "x" * 10_000, key + " "))] = rng.choice(_WEIRD)
        return


def _change_weights(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    match rng.randrange(5):
        case 0:
            tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
        case 1:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((-1, 0, 1, 5, 1 << 20, 1 << 62))
        case 2:
            tensor.data_type = rng.randrange(0, 30)
        case 3:
            tensor.raw_data = rng.randbytes(len(tensor.raw_data))  # NaN and infinity among them
        case _:
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (
                ("location", rng.choice(("../../../etc/passwd", "/dev/zero", "weights.bin", "", "x\0y"))),
                ("offset", rng.choice(("0", "-1", "99999999999999999999", "a"))),
            ):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value


def _change_node(model: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice(model.graph.node)
    names = [name for one in model.graph.node for name in (*one.input, *one.output)]
    match rng.randrange(5):
        case 0:
            node.op_type = rng.choice(_OPERATORS)
        case 1:
            node.input[rng.randrange(len(node.input))] = rng.choice((*names, "", "nowhere"))
        case 2:
            node.output[0] = rng.choice(names)
        case 3:
            del node.input[rng.randrange(len(node.input))]
        case _:
            model.graph.node.remove(node)


def _change_attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    attribute = rng.choice([one for node in model.graph.node for one in node.attribute])
    number = rng.choice((-(1 << 63), -2, -1, 0, 1, 3, 100, 1 << 31, (1 << 63) - 1))
    if attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = number
    elif attribute.s:
        attribute.s = rng.choice((b"cubic", b"", b"\xff", b"nearest"))
    else:
        attribute.i = number


def _change_shape(model: onnx.ModelProto, rng: random.Random) -> None:
    value = rng.choice([*model.graph.input, *model.graph.output])
    dims = value.type.tensor_type.shape.dim
    match rng.randrange(4):
        case 0:
            dims[rng.randrange(len(dims))].dim_value = rng.choice((-1, 0, 1, 5, 33, 1 << 31, (1 << 63) - 1))
        case 1:
            dims[rng.randrange(len(dims))].dim_param = rng.choice(("n", "", "h" * 1000))
        case 2:
            value.type.tensor_type.elem_type = rng.randrange(0, 30)
        case _:
            value.name = rng.choice(("", "image", "logits", "\n"))


def _change_scales(model: onnx.ModelProto, rng: random.Random) -> None:
    scales = next(tensor for tensor in model.graph.initializer if tensor.name == "scales")
    values = [1, 1, *rng.choice(((0, 0), (-1, 2), (1e9, 1e9), (float("nan"), 2), (float("inf"), 1), (1e-9, 1e-9)))]
    scales.raw_data = struct.pack("<4f", *values)


_GRAPH_MUTATIONS = (_change_weights, _change_node, _change_attribute, _change_attribute, _change_shape, _change_scales)
