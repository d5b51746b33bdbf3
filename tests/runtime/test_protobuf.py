import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segship.runtime.protobuf import fields, length_field, parts, strings, varint


@given(st.lists(st.tuples(st.integers(1, (1 << 29) - 1), st.binary(max_size=200))))
def test_fields_that_were_written_are_found_again(written: list[tuple[int, bytes]]) -> None:
    message = b"".join(length_field(number, content) for number, content in written)
    found = [(number, message[start:end]) for number, start, end in fields(message, 0, len(message))]
    assert found == written
    for number, _ in written:
        assert parts(message, number) == [content for other, content in written if other == number]


def test_numbers_of_all_wire_types_are_stepped_over() -> None:
    message = b"\x08\xac\x02" + b"\x11" + bytes(8) + b"\x1d" + bytes(4) + length_field(4, b"end")
    assert [number for number, _, _ in fields(message, 0, len(message))] == [1, 2, 3, 4]
    assert varint(message, 1) == (300, 3)
    assert strings(message[-5:]) == {4: "end"}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"\x0a\x05four", "longer than the file"),
        (b"\x02\x00", "number 0"),
        (b"\x0b", "byte 0 starts no protobuf field"),
        (b"\x82\x80\x80\x80\x80\x01\x00", "a field has the number 4294967296"),
        (b"\x0a\x80", "in the middle of a number"),
        (b"\xff" * 12, "more than ten bytes"),
    ],
)
def test_what_is_no_message_is_an_error(message: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        list(fields(message, 0, len(message)))


def test_a_message_of_millions_of_fields_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segship.runtime.protobuf.MAX_FIELDS", 100)
    assert len(list(fields(b"\x08\x00" * 100, 0, 200))) == 100
    found = fields(b"\x08\x00" * 101, 0, 202)
    assert len(list(itertools.islice(found, 100))) == 100
    with pytest.raises(ValueError, match="more than 100 fields"):
        next(found)
