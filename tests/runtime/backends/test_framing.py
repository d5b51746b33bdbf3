"""Messages between two processes: what is sent arrives, and what is no message is refused."""

import json
import os
import struct
import sys
import threading
from collections.abc import Iterator
from io import FileIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segship.runtime.backends.framing import FramingError, receive, send
from segship.runtime.backends.shared_area import SharedArea

ARRAYS: list[NDArray[Any]] = [
    np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    np.arange(24, dtype=np.uint16).reshape(4, 6).T,
    np.zeros((3, 0), np.int64),
    np.array(True),
    np.arange(700_000, dtype=np.float16)[::-1],
]


@pytest.fixture
def ends() -> Iterator[tuple[FileIO, FileIO]]:
    reader, writer = os.pipe()
    with FileIO(reader) as read_end, FileIO(writer, "wb") as write_end:
        yield read_end, write_end


@pytest.fixture(params=["through the pipe", "through shared memory"])
def shared(request: pytest.FixtureRequest) -> Iterator[SharedArea | None]:
    if request.param == "through the pipe":
        yield None
        return
    area = SharedArea.create()
    if area is None:
        assert sys.platform != "linux"
        pytest.skip("this system has no memory to share")
    yield area
    area.close()


@pytest.mark.parametrize("array", ARRAYS, ids=[f"{array.dtype} {array.shape}" for array in ARRAYS])
def test_what_is_sent_arrives(ends: tuple[FileIO, FileIO], shared: SharedArea | None, array: NDArray[Any]) -> None:
    reader, writer = ends
    sender = threading.Thread(target=send, args=(writer, {"name": "Straße"}, array, shared))
    sender.start()
    message = receive(reader, shared)
    sender.join()
    assert message is not None
    header, got = message
    assert header["name"] == "Straße"
    assert got is not None
    assert (got.dtype, got.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(got, array)


def test_a_larger_array_is_seen_by_a_reader_that_has_mapped_a_smaller_one() -> None:
    area = SharedArea.create()
    if area is None:
        pytest.skip("this system has no memory to share")
    other = SharedArea(os.dup(area.descriptor))
    for size in (10, 3_000_000, 5):
        area.put(np.full(size, size, np.float64))
        assert (other.view(np.dtype(np.float64), (size,)) == size).all()
    area.close()
    other.close()


def test_a_closed_pipe_is_the_end_and_no_error(ends: tuple[FileIO, FileIO]) -> None:
    reader, writer = ends
    send(writer, {})
    writer.close()
    assert receive(reader) == ({}, None)
    assert receive(reader) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"abc", "ended too early"),
        (struct.pack("<IQ", 10, 0) + b"{}", "ended too early"),
        (struct.pack("<IQ", 0xFFFFFFFF, 0), "claims 4294967295"),
        (struct.pack("<IQ", 2, 1 << 60), "claims 2"),
        (struct.pack("<IQ", 2, 0) + b"[]", "no JSON object"),
        (struct.pack("<IQ", 2, 0) + b"\xff{", "no JSON"),
    ],
)
def test_what_is_no_message_is_refused(ends: tuple[FileIO, FileIO], content: bytes, words: str) -> None:
    reader, writer = ends
    writer.write(content)
    writer.close()
    with pytest.raises(FramingError, match=words):
        receive(reader)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("|O", [1]),
        ("<f4", [-1]),
        ("<f4", "two"),
        ("<f4", [True]),
        ("<f4", [1 << 70]),
        ("|u1", [5]),
        ("<f3", [1]),
        ("<M8[s]", [1]),
        (["<f4"], [1]),
    ],
)
def test_an_array_of_another_kind_or_size_is_refused(
    ends: tuple[FileIO, FileIO], shared: SharedArea | None, dtype: object, shape: object
) -> None:
    reader, writer = ends
    text = json.dumps({"dtype": dtype, "shape": shape}).encode()
    writer.write(struct.pack("<IQ", len(text), 0) + text)
    with pytest.raises(FramingError, match="an array "):
        receive(reader, shared)
