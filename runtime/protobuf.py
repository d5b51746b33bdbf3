"""Stepping over the fields of a protobuf message, such as an ONNX file, without its definition and without copies.

A message is a row of fields, each with a number; a field that holds another message says how long it is, so that what
is not looked for, such as the weights, costs nothing. See "Encoding" in the documentation of Protocol Buffers.
"""

import contextlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from segship.runtime.errors import ModelError

MAX_FIELDS: Final = 1 << 21  # the graphs of real networks have thousands
_MAX_NUMBER: Final = (1 << 29) - 1
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

Buffer = mmap.mmap | bytes


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """Map an ONNX file into memory, so that only what is looked at is read.

    Raises:
        ModelError: if the file cannot be read, or what is done with it finds it to be damaged: raises a ValueError.
    """
    with contextlib.ExitStack() as stack:
        try:
            try:
                file = stack.enter_context(path.open("rb"))
                data = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            except OSError as error:
                raise ModelError(f"cannot read the model {path}: {error.strerror or error}") from error
            yield data
        except ValueError as error:  # also what mmap says of an empty file
            raise ModelError(f"{path} is no ONNX file, or a damaged one ({error})") from error


def fields(data: Buffer, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (field number, start, end) of each field of the message that lies from ``at`` to ``end``.

    What lies between start and end is the content of a string, of bytes or of a message, and a number's own bytes.

    Raises:
        ValueError: if it is no protobuf message, or one of more than ``MAX_FIELDS`` fields.
    """
    for _ in range(MAX_FIELDS):
        if at >= end:
            return
        tag, start = varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _LENGTH:
            length, start = varint(data, start)
            at = start + length
        elif wire_type == _VARINT:
            _, at = varint(data, start)
        elif wire_type in (_FIXED32, _FIXED64):
            at = start + (4 if wire_type == _FIXED32 else 8)
        else:
            raise ValueError(f"byte {at} starts no protobuf field")
        if not 0 < number <= _MAX_NUMBER:
            raise ValueError(f"a field has the number {number}")
        if at > end:
            raise ValueError("a field is longer than the file")
        yield number, start, at
    if at < end:
        raise ValueError(f"a message has more than {MAX_FIELDS} fields")


def parts(message: bytes, wanted: int) -> list[bytes]:
    """Return the content of every field with the number ``wanted``."""
    return [message[start:end] for number, start, end in fields(message, 0, len(message)) if number == wanted]


def strings(message: bytes) -> dict[int, str]:
    """Return the content of every field as text, by number; of several with one number the last."""
    return {number: message[start:end].decode("utf-8") for number, start, end in fields(message, 0, len(message))}


def varint(data: Buffer, at: int) -> tuple[int, int]:
    """Return the number that starts at ``at``, and where it ends."""
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


def length_field(number: int, content: bytes) -> bytes:
    """Return a field that holds a string, bytes or a message."""
    return _as_varint(number << 3 | _LENGTH) + _as_varint(len(content)) + content


def _as_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
