"""Opening encoded pictures, within limits: what they are and how large is known before a pixel is decoded.

Pictures of the formats that are met every day are opened by their own classes and not by ``PIL.Image.open``. So the
limit of pixels is each call's own, and the one that Pillow keeps for a whole process stays as the process has set it.
"""

import contextlib
import io
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, Literal

from PIL import Image as PillowImage
from PIL import UnidentifiedImageError
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from segship.runtime.errors import ImageError, one_line
from segship.runtime.printable import printable
from segship.runtime.tiff_pages import full_pages

MAX_ENCODED: Final = 4 << 30
"""Bytes of a file that is read as one picture; only TIFFs, which are read by their parts, may have more."""

DECODER_ERRORS: Final = (
    OSError,
    ValueError,
    SyntaxError,
    struct.error,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
)
"""What Pillow's decoders raise on damaged files; decompression bombs come apart."""

_OTHER_FORMATS: Final = ("PPM", "GIF", "JPEG2000", "AVIF", "TGA")
"""What ``PIL.Image.open`` may take a file for. Not all that it knows: for some it starts other programs."""


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read, without waiting for a writer as opening a pipe does.

    Raises:
        ImageError: if it is a folder, a pipe or a device, or no file can have such a name.
        OSError: if it cannot be opened.
    """
    try:
        opened = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115  # below; Path.open takes no opener
    except ValueError as error:  # a zero byte, or half of a character
        raise ImageError(f"{printable(path)}: no file can have this name ({one_line(error)})") from error
    with opened as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ImageError(f"{printable(path)}: a pipe or a device and no file; pipe pictures to - instead")
        yield file


@contextlib.contextmanager
def open_image(
    file: BinaryIO, name: str, *, page: int | None = None, max_pixels: int
) -> Iterator[tuple[PillowImage.Image, int]]:
    """Read a picture's header, check its size, and go to its page.

    Args:
        file: the encoded picture, from its start.
        name: for messages.
        page: number of a TIFF's page, from 0; None: its only one.
        max_pixels: pictures of more are refused.

    Yields:
        The image, not decoded yet, and the number of its page.

    Raises:
        ImageError: if it is no picture, damaged, too large, several pictures, or the page is not there.
    """
    with _open(file, name) as image:
        page = _find_page(image, file, page, name)
        check_pixels(image.size, max_pixels, name)
        yield image, page


def _open(file: BinaryIO, name: str) -> PillowImage.Image:
    """Read the header."""
    head = file.read(16)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    is_tiff = head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    if size > MAX_ENCODED and not is_tiff:
        raise ImageError(f"{name}: {size / 2**30:.0f} GiB, more than an encoded picture has ({MAX_ENCODED >> 30} GiB)")
    try:
        if is_tiff:
            return _Tiff(file)
        if head.startswith(b"\xff\xd8\xff"):  # not Pillow's factory, which follows phones' and stereo cameras' extras
            return JpegImageFile(file)
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            return PngImageFile(file)
        if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
            return WebPImageFile(file)
        if head.startswith(b"BM"):
            return BmpImageFile(file)
        PillowImage.init()
        return PillowImage.open(file, formats=[known for known in _OTHER_FORMATS if known in PillowImage.OPEN])
    except UnidentifiedImageError:
        raise ImageError(f"{name}: no picture that can be read (its content is of no known image format)") from None
    except PillowImage.DecompressionBombError as error:
        raise ImageError(f"{name}: too large to be a picture; scale it down or cut it up ({error})") from None
    except DECODER_ERRORS as error:
        raise ImageError(f"{name}: damaged picture ({one_line(error)})") from error


class _Tiff(TiffImageFile):
    """A TIFF without the check that Pillow makes before it decodes one, against the limit of the process."""

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = PillowImage.new(self.mode, self._tile_size, None).im
        ImageFile.load_prepare(self)


def _find_page(image: PillowImage.Image, file: BinaryIO, page: int | None, name: str) -> int:
    """Go to the page that is meant; return its number."""
    if image.format != "TIFF":
        if page is not None:
            raise ImageError(f"{name}: a {image.format} file has no pages; only TIFFs do")
        check_frames(getattr(image, "n_frames", 1), "frames", name)
        return 0
    pages = _full_pages(file, name) if page is None else [page]
    check_frames(len(pages), "pages", name)
    try:
        image.seek(pages[0])
    except EOFError:
        raise ImageError(f"{name}: the file has no such page") from None
    except DECODER_ERRORS as error:
        raise ImageError(f"{name}: damaged page ({one_line(error)})") from error
    return pages[0]


def check_frames(count: int, what: Literal["pages", "frames"], name: str) -> None:
    """Refuse what is several pictures."""
    if count == 1:
        return
    if what == "pages":
        raise ImageError(f"{name}: the file holds {count} pages; say which is meant: Page(path, number)")
    raise ImageError(f"{name}: an animation of {count} frames and no picture; save the frame that is meant on its own")


def _full_pages(file: BinaryIO, name: str) -> list[int]:
    place = file.tell()
    pages = full_pages(file)
    file.seek(place)
    if pages.damage:
        raise ImageError(f"{name}: damaged picture ({pages.damage})")
    return pages.numbers


def check_pixels(size: tuple[int, int], max_pixels: int, name: str) -> None:
    """Refuse a picture of ``size`` (width, height) that has more than ``max_pixels``.

    Raises:
        ImageError: saying how many it has.
    """
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width}×{height} = {width * height} pixels, above --max-pixels {max_pixels}; "
            "raise it if the picture is wanted"
        )


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
