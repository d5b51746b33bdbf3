"""PNG files written row by row (ISO/IEC 15948), so that a picture need not be held to be written.

Every row is filtered by "up", the difference to the row above, in labels as in photographs: one subtraction of whole
blocks of rows. What remains is run lengths and short codes, which zlib writes faster than it searches repetitions.
"""

import io
import struct
import zlib
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import numpy as np
from numpy.typing import NDArray

RUN_LENGTHS: Final = 1
"""The compression level at which only run lengths are looked for: a third of Pillow's time for masks and photographs
at its size. Above it zlib searches repetitions: smaller for drawings, several times slower for photographs."""

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE, _RGBA = 0, 2, 3, 6
_COLOR_TYPES: Final = {1: _GREY, 3: _RGB, 4: _RGBA}
_UP: Final = 2
_BLOCK_BYTES: Final = 1 << 18  # filtered at once: it stays in the cache
_CHUNK_BYTES: Final = 1 << 16  # gathered at least before a chunk of data is written; it holds a block more at most
_MAX_SIDE: Final = (1 << 31) - 1


def encode_png(pixels: NDArray[Any], *, palette: NDArray[np.uint8] | None = None, level: int = RUN_LENGTHS) -> bytes:
    """Return a picture as the bytes of a PNG file.

    Args:
        pixels: (H, W) or (H, W, 1), grey or, with a palette, ids; or (H, W, 3 or 4), red, green, blue and opacity;
            uint8 or uint16.
        palette: colours (1…256, 3) of the ids, red, green, blue.
        level: 0…9, see :data:`RUN_LENGTHS`.

    Raises:
        ValueError: if it is no such picture.
    """
    if pixels.ndim not in (2, 3) or pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"pixels of shape {pixels.shape}, {pixels.dtype}; expected (H, W[, C]), uint8 or uint16")
    file = io.BytesIO()
    height, width, *channels = pixels.shape
    depth = 8 * pixels.dtype.itemsize
    with PngWriter(
        file, width, height, channels=(channels or [1])[0], depth=depth, palette=palette, level=level
    ) as png:
        png.write_rows(pixels)
    return file.getvalue()


class PngWriter:
    """Writes a PNG file from top to bottom, holding a few hundred kilobytes of it.

    A context manager: closed at the end, unless an error ends it.

    Args:
        file: open for writing bytes; it stays open.
        width: in pixels.
        height: in pixels; so many rows must be written.
        channels: 1 (grey, or ids of a palette), 3 (red, green, blue) or 4 (and opacity).
        depth: bits of a value, 8 or 16.
        palette: colours (1…256, 3) of ids, red, green, blue; for one channel of 8 bits.
        level: 0…9, see :data:`RUN_LENGTHS`.

    Raises:
        ValueError: if PNG has no such form.
    """

    def __init__(
        self,
        file: BinaryIO,
        width: int,
        height: int,
        *,
        channels: int = 1,
        depth: int = 8,
        palette: NDArray[np.uint8] | None = None,
        level: int = RUN_LENGTHS,
    ) -> None:
        if channels not in _COLOR_TYPES or depth not in (8, 16):
            raise ValueError(f"{channels} channels of {depth} bits; expected 1, 3 or 4 channels of 8 or 16 bits")
        if not (1 <= width <= _MAX_SIDE and 1 <= height <= _MAX_SIDE):
            raise ValueError(f"a picture of {height}×{width} pixels; each side must lie in 1…{_MAX_SIDE}")
        if palette is not None:
            _check_palette(palette, channels, depth)
        self._file = file
        self._shape = (height, width, channels)
        self._dtype = np.dtype(np.uint8 if depth == 8 else np.uint16)
        self._rows_written = 0
        self._above = np.zeros(width * channels * self._dtype.itemsize, np.uint8)
        strategy = zlib.Z_RLE if level <= RUN_LENGTHS else zlib.Z_DEFAULT_STRATEGY
        self._deflate = zlib.compressobj(level, wbits=15, memLevel=9, strategy=strategy)
        self._compressed = bytearray()
        file.write(_SIGNATURE)
        color_type = _COLOR_TYPES[channels] if palette is None else _PALETTE
        self._write_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0))
        if palette is not None:
            self._write_chunk(b"PLTE", palette.tobytes())

    def write_rows(self, rows: NDArray[Any]) -> None:
        """Write the next rows, (n, width) or (n, width, channels), of the depth's unsigned type.

        Raises:
            ValueError: if they have another form, or are more than are missing.
        """
        height, width, channels = self._shape
        forms = {(width, channels), (width,)} if channels == 1 else {(width, channels)}
        if rows.shape[1:] not in forms or rows.dtype != self._dtype:
            raise ValueError(
                f"rows of shape {rows.shape}, {rows.dtype}; expected (n, {width}, {channels}), {self._dtype}"
            )
        if self._rows_written + len(rows) > height:
            raise ValueError(f"{self._rows_written + len(rows)} rows; the picture has {height}")
        at_once = max(1, _BLOCK_BYTES // len(self._above))
        for start in range(0, len(rows), at_once):
            self._compress(self._filtered(rows[start : start + at_once]))
        self._rows_written += len(rows)

    def close(self) -> None:
        """Write the end of the file.

        Raises:
            ValueError: if rows are missing.
        """
        if self._rows_written < self._shape[0]:
            raise ValueError(f"closed after {self._rows_written} rows; the picture has {self._shape[0]}")
        self._compressed += self._deflate.flush()
        self._write_chunk(b"IDAT", self._compressed)
        self._write_chunk(b"IEND", b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()

    def _filtered(self, rows: NDArray[Any]) -> NDArray[np.uint8]:
        """Return rows (n, 1 + bytes of a row): the kind of filter, and the difference to the row above modulo 256."""
        values = np.ascontiguousarray(rows, self._dtype.newbyteorder(">"))
        plain = values.reshape(len(rows), -1).view(np.uint8)
        filtered = np.empty((len(rows), 1 + plain.shape[1]), np.uint8)
        filtered[:, 0] = _UP
        np.subtract(plain[0], self._above, out=filtered[0, 1:])
        np.subtract(plain[1:], plain[:-1], out=filtered[1:, 1:])
        self._above = plain[-1].copy()
        return filtered

    def _compress(self, filtered: NDArray[np.uint8]) -> None:
        self._compressed += self._deflate.compress(filtered.data)
        if len(self._compressed) >= _CHUNK_BYTES:
            self._write_chunk(b"IDAT", self._compressed)
            self._compressed.clear()

    def _write_chunk(self, kind: bytes, data: bytes | bytearray) -> None:
        self._file.write(struct.pack(">I", len(data)) + kind)
        self._file.write(data)
        self._file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))


def _check_palette(palette: NDArray[np.uint8], channels: int, depth: int) -> None:
    if (channels, depth) != (1, 8):
        raise ValueError(f"a palette for {channels} channels of {depth} bits; expected 1 channel of 8 bits")
    if palette.ndim != 2 or palette.shape[1] != 3 or not 1 <= len(palette) <= 256 or palette.dtype != np.uint8:
        raise ValueError(f"a palette of shape {palette.shape}, {palette.dtype}; expected (1…256, 3) uint8")
