"""Encoded pictures that come one behind the other on a pipe, as ``ffmpeg -f image2pipe`` writes them."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from segship.runtime.errors import ImageError
from segship.runtime.source_item import Source, SourceItem

MAX_ENCODED_STDIN: Final = 1 << 30
"""Bytes that one encoded picture may have."""

_PIECE: Final = 1 << 16
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_TIFF: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""In a JPEG scan's data: not a stuffed 0xFF, a restart marker or a filling byte."""


class StdinSource(Source):
    """Encoded pictures on stdin, as they come.

    Args:
        file: what is read; None: the process's stdin.

    Raises:
        ImageError: if stdin is closed or a terminal.
    """

    def __init__(self, file: BinaryIO | None = None) -> None:
        if file is None and sys.stdin is None:  # as after <&-, and in a service without one
            raise ImageError("- reads encoded pictures from standard input, and that is closed; pipe them in")
        self._file = sys.stdin.buffer if file is None else file
        if self._file.isatty():
            raise ImageError("- reads encoded pictures from a pipe, and stdin is a terminal")

    def __iter__(self) -> Iterator[SourceItem]:
        number = 0
        for number, picture in enumerate(split_pictures(self._file), 1):
            yield _item(number, picture)
        if number == 0:
            yield _item(1, ImageError("nothing came on stdin"))


def split_pictures(file: BinaryIO, *, max_bytes: int = MAX_ENCODED_STDIN) -> Iterator[bytes | ImageError]:
    """Cut a stream of pictures into them, each as soon as its last byte is there.

    JPEG, PNG, WebP and BMP follow each other in any order; a TIFF, which does not tell where it ends, is the rest. What
    is none of them, is cut off or is larger than allowed is an error and ends the stream, since nothing tells where
    the next picture would begin.

    Args:
        file: read in pieces as they come.
        max_bytes: that one picture may have.
    """
    stream = _Stream(file, max_bytes)
    try:
        while stream.has(1):
            yield stream.take(_end_of_picture(stream))
    except _SplitError as error:
        yield ImageError(f"{error}; what comes behind it on stdin cannot be told apart and is left out")
    except OSError as error:
        yield ImageError(f"stdin cannot be read ({error.strerror or error})")


class _SplitError(Exception):
    pass


class _Stream:
    """What has come of a pipe and is not taken yet: the picture that is being looked at, and what follows."""

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self._read = getattr(file, "read1", file.read)  # what is there already, rather than to wait for a whole piece
        self._max_bytes = max_bytes
        self.content = bytearray()

    def has(self, size: int) -> bool:
        """Read until there are ``size`` bytes; tell whether there are."""
        if size > self._max_bytes:
            raise _SplitError(f"a picture of more than {self._max_bytes} bytes")
        while len(self.content) < size:
            piece = self._read(_PIECE)
            if not piece:
                return False
            self.content += piece
        return True

    def need(self, size: int) -> None:
        if not self.has(size):
            raise _SplitError(f"a picture is cut off after {len(self.content)} bytes")

    def take(self, size: int) -> bytes:
        taken = bytes(memoryview(self.content)[:size])
        del self.content[:size]
        return taken


def _end_of_picture(stream: _Stream) -> int:
    """Find where the picture at the start of a stream ends."""
    stream.need(4)
    head = bytes(stream.content[:4])
    if head[:3] == b"\xff\xd8\xff":
        return _end_of_jpeg(stream)
    if head == _PNG[:4]:
        return _end_of_png(stream)
    if head in _TIFF:
        return _end_of_stream(stream)
    if head == b"RIFF" or head[:2] == b"BM":
        return _end_by_size(stream, head)
    raise _SplitError(f"no picture: {head!r} begins none (JPEG, PNG, WebP, BMP, TIFF)")


def _end_of_png(stream: _Stream) -> int:
    """Walk the chunks to IEND (PNG, third edition, 5.3)."""
    at, kind = len(_PNG), b""
    while kind != b"IEND":
        stream.need(at + 8)
        length, kind = int.from_bytes(stream.content[at : at + 4]), bytes(stream.content[at + 4 : at + 8])
        at += 12 + length
        stream.need(at)
    return at


def _end_of_jpeg(stream: _Stream) -> int:
    """Walk the segments, over the thumbnails in them, and scans to the end of the image (ITU-T T.81, annex B)."""
    at = 2
    while True:
        stream.need(at + 2)
        mark, marker = stream.content[at : at + 2]
        if mark != 0xFF or marker in (0x00, 0xD8):
            raise _SplitError("a damaged JPEG")
        if marker == 0xD9:  # end of image
            return at + 2
        if marker == 0xFF:  # filling
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # without content
            at += 2
        else:
            stream.need(at + 4)
            at += 2 + int.from_bytes(stream.content[at + 2 : at + 4])
            if marker == 0xDA:  # start of scan
                at = _end_of_scan(stream, at)


def _end_of_scan(stream: _Stream, at: int) -> int:
    stream.need(at)
    while (found := _MARKER.search(stream.content, at)) is None:
        at = max(at, len(stream.content) - 1)  # the last byte may be half a marker
        stream.need(len(stream.content) + 1)
    return found.start()


def _end_by_size(stream: _Stream, head: bytes) -> int:
    """Take the word of a RIFF or BMP header for it."""
    if head == b"RIFF":
        stream.need(12)
        if stream.content[8:12] != b"WEBP":
            raise _SplitError("no picture: a RIFF file that is no WebP")
        size = int.from_bytes(stream.content[4:8], "little")
        end = 8 + size + size % 2
    else:
        stream.need(6)
        end = int.from_bytes(stream.content[2:6], "little")
        if end < 26:  # the smallest header
            raise _SplitError("a BMP that does not tell its size")
    stream.need(end)
    return end


def _end_of_stream(stream: _Stream) -> int:
    while stream.has(len(stream.content) + 1):
        pass
    return len(stream.content)


def _item(number: int, picture: bytes | ImageError) -> SourceItem:
    name = f"stdin #{number}"
    if isinstance(picture, ImageError):
        picture = ImageError(f"{name}: {picture}")
    return SourceItem(picture, name, Path(f"stdin-{number:06d}"))
