"""TIFFs that are read row by row (TIFF 6.0, BigTIFF), so that a picture need not fit into memory to be segmented."""

import contextlib
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from segship.runtime.errors import ImageError, one_line
from segship.runtime.image_opening import open_regular
from segship.runtime.images import MAX_PIXELS, Page, source_name
from segship.runtime.preprocess import FULL_SCALE
from segship.runtime.tiff_form import (
    ASSOCIATED,
    DEFLATE,
    HORIZONTAL,
    TIFF_ERRORS,
    UNCOMPRESSED,
    UNSPECIFIED,
    check_readable_by_rows,
    has_plain_rows,
    open_page,
    segment_shape,
)
from segship.runtime.tiff_pages import TIFF_SUFFIXES


def is_big(source: object, *, above_px: float) -> bool:
    """Tell whether a source is a TIFF of more pixels than ``above_px``, in whatever form it is stored.

    Of a file that tells no size it is not told here.
    """
    if not isinstance(source, str | Path | Page):
        return False
    path, number = _path_and_number(source)
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return False
    try:
        with open_regular(path) as file:
            page = open_page(file, number, source_name(source))
            return page.imagelength * page.imagewidth > above_px
    except (OSError, ImageError):
        return False


class BigPicture:
    """A page of a TIFF in strips or tiles, of which only what is asked for is read; a context manager.

    Rows are best asked for from top to bottom: one row of strips or tiles is kept decoded, so each is decoded once.
    Grey or RGB, with opacity or without, 8 or 16 bits; uncompressed, deflate and PackBits by themselves, others such as
    LZW and JPEG with the package imagecodecs. Not to be used by several threads at once.

    Args:
        source: of the file; of a page of it, where it has several.
        max_pixels: pictures of more are refused.

    Attributes:
        name: for messages.
        size: (height, width) in pixels.
        channels: of what :meth:`rows` returns: 1, 2 (grey and opacity), 3 or 4.
        dtype: of it, uint8 or uint16.

    Raises:
        ImageError: if it cannot be read, or not row by row.
    """

    def __init__(self, source: str | Path | Page, *, max_pixels: int = MAX_PIXELS) -> None:
        self.name = source_name(source)
        path, number = _path_and_number(source)
        with contextlib.ExitStack() as opened:
            try:
                self._file = opened.enter_context(open_regular(path))
                self._page = open_page(self._file, number, self.name)
            except OSError as error:
                raise ImageError(f"{self.name}: cannot be read ({error.strerror or error})") from error
            self.size = (self._page.imagelength, self._page.imagewidth)
            check_readable_by_rows(self._page, self.name, max_pixels)
            self._samples = self._page.samplesperpixel
            self.channels = self._samples - (self._page.extrasamples[:1] == (UNSPECIFIED,))
            self.dtype = np.dtype(np.uint8 if self._page.bitspersample == 8 else np.uint16)
            self._stored_dtype = self.dtype.newbyteorder(self._page.parent.byteorder)
            self._band: tuple[int, NDArray[Any]] | None = None
            self._opened = opened.pop_all()

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows from ``start`` up to, but not including, ``stop``: (stop − start, W, channels).

        Raises:
            ImageError: if the file is damaged there.
        """
        try:
            rows = self._plain_rows(start, stop) if has_plain_rows(self._page) else self._rows_of_bands(start, stop)
        except TIFF_ERRORS as error:
            finding = getattr(error, "strerror", None) or one_line(error)
            raise ImageError(f"{self.name}: damaged picture in the rows {start}…{stop - 1} ({finding})") from error
        if self._page.extrasamples[:1] == (ASSOCIATED,) and np.any(rows[..., -1] != FULL_SCALE[self.dtype.name]):
            raise ImageError(
                f"{self.name}: a partly transparent picture whose colours are multiplied by their opacity; "
                "save it with separate (unassociated) opacity, or without any"
            )
        return rows[..., : self.channels]

    def close(self) -> None:
        """Close the file."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _plain_rows(self, start: int, stop: int) -> NDArray[Any]:
        """Read rows of strips that are not compressed, however high these are."""
        width, samples, in_strip = self.size[1], self._samples, self._page.rowsperstrip
        row_bytes = width * samples * self.dtype.itemsize
        encoded = bytearray()
        at = start
        while at < stop:
            strip, row = divmod(at, in_strip)
            count = min(stop - at, in_strip - row)
            encoded += _read(self._file, self._page.dataoffsets[strip] + row * row_bytes, count * row_bytes)
            at += count
        values = np.frombuffer(encoded, self._stored_dtype).astype(self.dtype, copy=False)
        return values.reshape(stop - start, width, samples)

    def _rows_of_bands(self, start: int, stop: int) -> NDArray[Any]:
        high = segment_shape(self._page)[0]
        rows = np.empty((stop - start, self.size[1], self._samples), self.dtype)
        for number in range(start // high, -(-stop // high)):
            top, bottom = max(start, number * high), min(stop, (number + 1) * high)
            band = self._decoded_band(number)
            rows[top - start : bottom - start] = band[top - number * high : bottom - number * high]
        return rows

    def _decoded_band(self, number: int) -> NDArray[Any]:
        """Return a row of strips or tiles, (h, W, samples)."""
        if self._band is None or self._band[0] != number:
            self._band = None  # not two at a time
            self._band = (number, self._decode_band(number))
        return self._band[1]

    def _decode_band(self, number: int) -> NDArray[Any]:
        page, (height, width) = self._page, self.size
        high, wide, samples = segment_shape(page)
        across, down = -(-width // wide), -(-height // high)
        band = np.zeros((min(high, height - number * high), width, self._samples), self.dtype)
        for plane in range(self._samples // samples):
            for column in range(across):
                index = (plane * down + number) * across + column
                rows = high if page.is_tiled else len(band)
                segment = self._decode_segment(index, (rows, wide, samples))
                here = slice(column * wide, min((column + 1) * wide, width))
                if segment is not None:
                    band[:, here, plane : plane + samples] = segment[: len(band), : here.stop - here.start]
        return band

    def _decode_segment(self, index: int, shape: tuple[int, int, int]) -> NDArray[Any] | None:
        """Return a strip or tile of this shape (h, w, samples); None: it was left out, and is black."""
        page = self._page
        offset, length = page.dataoffsets[index], page.databytecounts[index]
        if not offset or not length:
            return None
        size = int(np.prod(shape)) * self.dtype.itemsize
        if length > 2 * size + (1 << 20):
            raise ValueError(f"a part of {length} bytes, which has {size} when it is decoded")
        encoded = _read(self._file, offset, length)
        if page.compression not in (UNCOMPRESSED, *DEFLATE):
            decoded = page.decode(encoded, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)[0]
            return None if decoded is None else np.asarray(decoded)[0]
        if page.compression != UNCOMPRESSED:
            encoded = zlib.decompressobj().decompress(encoded, size)  # no more, whatever the data would become
        values = np.frombuffer(encoded, self._stored_dtype, count=size // self.dtype.itemsize)
        pixels = values.astype(self.dtype, copy=False).reshape(shape)
        return np.add.accumulate(pixels, axis=1, dtype=self.dtype) if page.predictor == HORIZONTAL else pixels


def _path_and_number(source: str | Path | Page) -> tuple[Path, int | None]:
    return (source.path, source.number) if isinstance(source, Page) else (Path(source), None)


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    data = file.read(length)
    if len(data) < length:
        raise EOFError(f"the file ends after {offset + len(data)} bytes; {offset + length} were expected")
    return data
