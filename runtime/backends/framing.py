"""Messages between two processes, over pipes: a JSON object each, and an array where one belongs to it.

Nothing that comes in is executed or trusted: headers are JSON of bounded length, and an array is made of numbers only.
Where the processes share memory, arrays go through that, which takes half the time.
"""

import json
import os
import re
import struct
from io import FileIO
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from segship.runtime.backends.shared_area import SharedArea

_LENGTHS: Final = struct.Struct("<IQ")  # bytes of the header, bytes of the array
_MAX_HEADER_BYTES: Final = 64 << 20  # a card of the largest size, escaped twice, and more
_MAX_ARRAY_BYTES: Final = 1 << 36
_NUMBERS: Final = re.compile(r"[<>|][biuf][1248]")

Message = tuple[dict[str, Any], NDArray[Any] | None]


class RawStream(Protocol):
    """One end of a pipe, unbuffered."""

    def readinto(self, buffer: Any, /) -> int | None:
        """Fill ``buffer`` as far as there is something."""

    def write(self, data: Any, /) -> int | None:
        """Write as much of ``data`` as there is room for."""


class FramingError(Exception):
    """What came in is no message, or only part of one."""


def private_streams() -> tuple[FileIO, FileIO]:
    """Keep standard input and output of this process for messages alone, and return them.

    What is printed from now on, by native code too, goes to standard error.
    """
    requests, replies = FileIO(os.dup(0)), FileIO(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def send(
    stream: RawStream, header: dict[str, Any], array: NDArray[Any] | None = None, shared: SharedArea | None = None
) -> None:
    """Write one message.

    Args:
        stream: that is written to.
        header: what JSON can say; ``dtype`` and ``shape`` are added for the array.
        array: of booleans, integers or floats.
        shared: takes the array, where the other side reads it from there; None: it follows the header.

    Raises:
        OSError: if nobody reads any longer, or the array does not fit into memory.
    """
    content: Any = b""
    if array is not None:
        header = header | {"dtype": array.dtype.str, "shape": list(array.shape)}
        if shared is None:
            content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        else:
            shared.put(array)
    text = json.dumps(header).encode()
    _write(stream, _LENGTHS.pack(len(text), len(content)) + text)
    _write(stream, content)


def receive(stream: RawStream, shared: SharedArea | None = None) -> Message | None:
    """Read one message; None where the other side has closed the pipe between two of them.

    Args:
        stream: that is read from.
        shared: where its array lies, if it has one; it is not copied from there. None: it follows the header.

    Raises:
        FramingError: if it is no message, or ends within one.
        MemoryError: if its array does not fit into memory.
    """
    lengths = bytearray(_LENGTHS.size)
    if not (got := _fill(stream, lengths)):
        return None
    if got < len(lengths):
        raise FramingError("a message ended too early")
    header_bytes, array_bytes = _LENGTHS.unpack(lengths)
    if header_bytes > _MAX_HEADER_BYTES or array_bytes > _MAX_ARRAY_BYTES:
        raise FramingError(f"a message claims {header_bytes} and {array_bytes} bytes")
    header = _read_header(stream, header_bytes)
    if "dtype" not in header:
        return header, None
    kind, shape = header["dtype"], header.get("shape", [])
    if not (isinstance(kind, str) and _NUMBERS.fullmatch(kind) and _is_shape(shape)):
        raise FramingError(f"an array cannot be {str(kind)[:80]!r} {str(shape)[:80]}")
    try:
        if shared is not None:
            return header, shared.view(np.dtype(kind), tuple(shape))
        array = np.empty(shape, kind)
    except (ValueError, TypeError, OverflowError) as error:
        raise FramingError(f"an array cannot be {kind!r} {str(shape)[:80]} ({error})") from error
    if array.nbytes != array_bytes or _fill(stream, array.reshape(-1).view(np.uint8).data) < array_bytes:
        raise FramingError("an array ended too early")
    return header, array


def _is_shape(shape: object) -> bool:
    return isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape)


def _read_header(stream: RawStream, size: int) -> dict[str, Any]:
    text = bytearray(size)
    if _fill(stream, text) < size:
        raise FramingError("a message ended too early")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FramingError(f"a message is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise FramingError("a message is no JSON object")
    return header


def _write(stream: RawStream, content: Any) -> None:
    view = memoryview(content)
    while len(view):
        view = view[stream.write(view) or 0 :]


def _fill(stream: RawStream, buffer: Any) -> int:
    """Read until ``buffer`` is full or the other side has closed; return how much there was."""
    view, done = memoryview(buffer), 0
    while done < len(view) and (got := stream.readinto(view[done:])):
        done += got
    return done
