import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from segship.runtime.errors import ImageError
from segship.runtime.images import read_image
from segship.runtime.stdin_images import StdinSource, split_pictures

PIXELS = np.random.default_rng(3).integers(0, 256, (23, 31, 3), np.uint8)


def encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    PillowImage.fromarray(PIXELS).save(file, kind, **options)
    return file.getvalue()


def with_thumbnail() -> bytes:
    """A JPEG with another in its header, whose end is not its own."""
    exif = PillowImage.Exif()
    exif[0x927C] = encoded("JPEG", quality=20)
    return encoded("JPEG", exif=exif)


PICTURES = {
    "jpeg": encoded("JPEG"),
    "restarts": encoded("JPEG", restart_marker_blocks=1),
    "progressive": encoded("JPEG", progressive=True),
    "thumbnail": with_thumbnail(),
    "png": encoded("PNG"),
    "webp": encoded("WEBP", lossless=True),
    "webp, lossy": encoded("WEBP", quality=50),
    "bmp": encoded("BMP"),
}


class Pipe(io.BytesIO):
    """Gives what it holds in pieces of given sizes, as a pipe does."""

    def __init__(self, content: bytes, sizes: list[int]) -> None:
        super().__init__(content)
        self._sizes = sizes

    def read1(self, size: int = -1) -> bytes:
        piece = self._sizes.pop(0) if self._sizes else size
        return super().read1(min(piece, size))


@settings(max_examples=150, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(PICTURES)), min_size=1, max_size=6),
    sizes=st.lists(st.integers(1, 3000), max_size=60),
)
def test_pictures_behind_each_other_are_cut_apart_whatever_the_pieces(names: list[str], sizes: list[int]) -> None:
    pictures = [PICTURES[name] for name in names]
    assert list(split_pictures(Pipe(b"".join(pictures), sizes))) == pictures


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_every_byte_may_come_alone(name: str) -> None:
    content = PICTURES[name] + PICTURES["png"]
    assert list(split_pictures(Pipe(content, [1] * len(content)))) == [PICTURES[name], PICTURES["png"]]


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_a_picture_is_there_as_soon_as_its_last_byte_is(name: str) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as read_end, os.fdopen(writing, "wb", buffering=0) as write_end:
        write_end.write(PICTURES[name])
        assert next(split_pictures(read_end)) == PICTURES[name]  # the pipe is still open, with nothing in it


def test_a_tiff_is_the_rest() -> None:
    tiff = encoded("TIFF")
    assert list(split_pictures(io.BytesIO(PICTURES["png"] + tiff))) == [PICTURES["png"], tiff]


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(sorted(PICTURES)), data=st.data())
def test_a_picture_that_is_cut_off_is_an_error_behind_the_whole_ones(name: str, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, len(PICTURES[name]) - 1))
    whole, error = split_pictures(io.BytesIO(PICTURES["jpeg"] + PICTURES[name][:kept]))
    assert whole == PICTURES["jpeg"]
    assert isinstance(error, ImageError)
    assert f"cut off after {kept} bytes" in str(error)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"these are no pictures", "no picture: b'thes' begins none"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "a RIFF file that is no WebP"),
        (b"BM\0\0\0\0" + bytes(60), "does not tell its size"),
        (b"\xff\xd8\xff\xe0\0\x04ab" + bytes(60), "a damaged JPEG"),
    ],
)
def test_what_is_no_picture_ends_the_stream_with_an_error(content: bytes, words: str) -> None:
    _, error = split_pictures(io.BytesIO(PICTURES["png"] + content + PICTURES["png"]))
    assert isinstance(error, ImageError)
    assert words in str(error)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(sorted(PICTURES)), data=st.data())
def test_damaged_streams_end(name: str, data: st.DataObject) -> None:
    content = bytearray(PICTURES[name] + PICTURES["bmp"])
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=5)):
        content[at] = value
    pictures = list(split_pictures(io.BytesIO(content)))
    assert all(isinstance(picture, bytes) for picture in pictures[:-1])
    assert sum(len(picture) for picture in pictures if isinstance(picture, bytes)) <= len(content)


class Endless(io.RawIOBase):
    """A start, and then the same bytes for ever."""

    def __init__(self, start: bytes, then: bytes) -> None:
        self._start, self._then = start, then
        self.given = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        piece, self._start = (self._start or self._then)[:size], b""
        self.given += len(piece)
        return piece


@pytest.mark.parametrize("name", [*sorted(PICTURES), "tiff", "png of one endless chunk"])
def test_an_endless_picture_is_an_error_and_not_endless_memory(name: str) -> None:
    match name:
        case "tiff":
            start = encoded("TIFF")
        case "png of one endless chunk":
            start = PICTURES["png"][:8] + b"\x7f\xff\xff\xffIDAT"
        case "bmp":
            start = b"BM" + (1 << 30).to_bytes(4, "little")
        case "webp" | "webp, lossy":
            start = b"RIFF" + (1 << 30).to_bytes(4, "little") + b"WEBP"
        case "png":
            start = PICTURES[name][:-12]  # without its last chunk
        case _:
            start = PICTURES[name][:-2]  # without its last marker
    endless = Endless(start, bytes(4096))
    (error,) = split_pictures(endless, max_bytes=100_000)
    assert isinstance(error, ImageError)
    assert "a picture of more than 100000 bytes" in str(error)
    assert endless.given < 200_000


def test_pictures_on_stdin_are_numbered_and_read() -> None:
    items = list(StdinSource(io.BytesIO(PICTURES["png"] + PICTURES["webp"] + b"rest")))
    assert [item.name for item in items] == ["stdin #1", "stdin #2", "stdin #3"]
    assert [item.place for item in items] == [Path(f"stdin-{number:06d}") for number in (1, 2, 3)]
    for item in items[:2]:
        np.testing.assert_array_equal(read_image(item.picture, channels=3, depth="uint8"), PIXELS)
    with pytest.raises(ImageError, match=r"stdin #3: no picture: b'rest'"):
        read_image(items[2].picture, channels=3, depth="uint8")


def test_an_empty_stdin_is_an_error() -> None:
    (item,) = StdinSource(io.BytesIO())
    assert str(item.picture) == "stdin #1: nothing came on stdin"


def test_a_terminal_is_no_place_for_pictures() -> None:
    leader, terminal = os.openpty()
    with (
        os.fdopen(leader, "rb", buffering=0),
        os.fdopen(terminal, "rb", buffering=0) as file,
        pytest.raises(ImageError, match="stdin is a terminal"),
    ):
        StdinSource(file)


def test_a_stdin_that_is_closed_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)  # what Python makes of <&-
    with pytest.raises(ImageError, match="standard input, and that is closed; pipe them in"):
        StdinSource()


def test_16_bit_colour_from_memory_keeps_every_bit(write_deep_png: Callable[..., Path], tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    content = write_deep_png(tmp_path / "a.png", pixels).read_bytes()
    first, second = split_pictures(io.BytesIO(content + content))
    assert first == second
    np.testing.assert_array_equal(read_image(first, channels=3, depth="uint16"), pixels)
