"""Which TIFFs are read row by row (TIFF 6.0, BigTIFF), told by their tags before a pixel is decoded."""

import logging
import zlib
from typing import TYPE_CHECKING, BinaryIO, Final

from segship.runtime.errors import ImageError, MissingExtraError, one_line, require
from segship.runtime.image_opening import DECODER_ERRORS, check_frames, check_pixels
from segship.runtime.tiff_pages import full_pages

if TYPE_CHECKING:
    from tifffile import TiffPage

MAX_BAND: Final = 256 << 20
"""Bytes that a row of compressed strips or tiles may have when it is decoded: one is held at a time."""

UNCOMPRESSED: Final = 1
DEFLATE: Final = (8, 32946)
HORIZONTAL: Final = 2
"""The predictor that keeps of each pixel its difference to the one on the left."""
UNSPECIFIED: Final = 0
"""An extra sample of which nothing is said."""
ASSOCIATED: Final = 1
"""An extra sample that is an opacity by which colours are multiplied already."""

_PACKBITS, _JPEG = 32773, 7
_GREY, _RGB, _YCBCR = 1, 2, 6

TIFF_ERRORS: Final = (*DECODER_ERRORS, RuntimeError, zlib.error, MemoryError)
"""What tifffile and its codecs raise on damaged files."""

_NUMBERS: Final = (
    *("imagewidth", "imagelength", "imagedepth", "samplesperpixel", "photometric", "planarconfig", "fillorder"),
    *("compression", "predictor", "rowsperstrip", "tilewidth", "tilelength"),
)
"""Tags that have one value; tifffile takes them from a damaged file as they come."""

_UNHEARD: Final = logging.NullHandler()
"""Keeps what tifffile logs of damaged files off stderr, unless the program has set up logging."""


def open_page(file: BinaryIO, number: int | None, name: str) -> "TiffPage":
    """Read the tags of a page; ``number`` None: of the file's only one.

    Raises:
        ImageError: if there is no such page, it is damaged, or there are several.
        OSError: if the file cannot be read.
    """
    from tifffile import TiffFile, TiffPage

    logging.getLogger("tifffile").addHandler(_UNHEARD)
    if number is None:
        pages = full_pages(file)
        if pages.damage:
            raise ImageError(f"{name}: damaged picture ({pages.damage})")
        check_frames(len(pages.numbers), "pages", name)
        number = pages.numbers[0]
    try:
        page = TiffFile(file).pages[number]
    except IndexError:
        raise ImageError(f"{name}: the file has no such page") from None
    except TIFF_ERRORS as error:
        raise ImageError(f"{name}: damaged picture ({one_line(error)})") from error
    if not isinstance(page, TiffPage) or not all(isinstance(getattr(page, tag), int) for tag in _NUMBERS):
        raise ImageError(f"{name}: damaged picture (one of its tags is no number)")
    if page.imagelength < 1 or page.imagewidth < 1:
        raise ImageError(f"{name}: damaged picture (a page without pixels)")
    return page


def check_readable_by_rows(page: "TiffPage", name: str, max_pixels: int) -> None:
    """Refuse pages that are not read row by row.

    Raises:
        ImageError: if it is of more than ``max_pixels``, damaged, or of a form or coding that is not.
    """
    check_pixels((page.imagewidth, page.imagelength), max_pixels, name)
    _check_form(page, name)
    _check_coding(page, name)


def segment_shape(page: "TiffPage") -> tuple[int, int, int]:
    """Return height, width and samples of a tile or strip."""
    samples = page.samplesperpixel if page.planarconfig == 1 else 1
    if page.is_tiled:
        return page.tilelength, page.tilewidth, samples
    return min(page.rowsperstrip or page.imagelength, page.imagelength), page.imagewidth, samples


def has_plain_rows(page: "TiffPage") -> bool:
    """Tell whether rows lie in the file one after the other, as they are."""
    is_plain = page.compression == UNCOMPRESSED and page.predictor == 1 and page.planarconfig == 1
    return is_plain and not page.is_tiled


def _check_form(page: "TiffPage", name: str) -> None:
    is_deep_enough = page.bitspersample in (8, 16) and page.dtype is not None and page.dtype.kind == "u"
    colors = {_GREY: 1, _RGB: 3, _YCBCR: 3}.get(page.photometric, 0)
    has_form = colors and page.samplesperpixel - colors == len(page.extrasamples) <= 1 and page.imagedepth == 1
    if not is_deep_enough or not has_form or (page.photometric == _YCBCR and page.compression != _JPEG):
        raise ImageError(
            f"{name}: {page.bitspersample} bits, {page.samplesperpixel} channels, {_word(page.photometric)}: such a "
            "TIFF is not read row by row; save it as 8- or 16-bit grey or RGB"
        )
    turn = page.tags.valueof(274, 1)
    if turn != 1 or page.fillorder != 1:
        raise ImageError(
            f"{name}: a TIFF that is stored turned (orientation {turn}) or with its bits in reverse (fill order "
            f"{page.fillorder}) is not read row by row; save it upright"
        )


def _check_coding(page: "TiffPage", name: str) -> None:
    high, wide, samples = segment_shape(page)
    if not high or not wide:
        raise ImageError(f"{name}: damaged picture (parts of {high}×{wide} pixels)")
    down, across = -(-page.imagelength // high), -(-page.imagewidth // wide)
    band = high * wide * across * page.samplesperpixel * page.bitspersample // 8
    if band > MAX_BAND and not has_plain_rows(page):
        raise ImageError(
            f"{name}: its rows can only be decoded {high} at once, {band >> 20} MiB, and more than {MAX_BAND >> 20} "
            "are not held; save it in smaller strips or tiles, such as with tiffcp -t -w 512 -l 512"
        )
    expected = down * across * (page.samplesperpixel // samples)
    if min(len(page.dataoffsets), len(page.databytecounts)) < expected:
        raise ImageError(f"{name}: damaged picture ({len(page.dataoffsets)} parts; its size needs {expected})")
    if page.predictor not in (1, HORIZONTAL):
        raise ImageError(f"{name}: predictor {_word(page.predictor)} is for other pictures than 8- and 16-bit ones")
    if page.compression not in (UNCOMPRESSED, *DEFLATE, _PACKBITS):
        try:
            require("imagecodecs", extra="tiff", purpose=f"reading {_word(page.compression)} TIFFs row by row")
        except MissingExtraError as error:
            raise ImageError(f"{name}: {error}") from error


def _word(value: int) -> str:
    return str(getattr(value, "name", value))
