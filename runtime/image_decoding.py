"""From an encoded picture to its pixels, upright, in whatever channels and depth it has.

Pillow decodes: it refuses truncated files, which OpenCV may complete in silence. Where a file is seen to be whole
before it is decoded, OpenCV does it: its pixels are the same, it takes half the time, and other threads go on.
"""

import io
import re
from pathlib import Path
from typing import Any, BinaryIO, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL.Image import Transpose

from segship.runtime.errors import ImageError, one_line
from segship.runtime.image_depth import at_full_scale, deep_grey, largest_sample
from segship.runtime.image_opening import DECODER_ERRORS, check_frames, open_image, open_regular

_EXIF_ORIENTATION: Final = 0x0112
_UPRIGHT: Final = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_WHOLE: Final = {
    ("JPEG", "RGB"): cv2.IMREAD_COLOR_RGB,
    ("JPEG", "L"): cv2.IMREAD_GRAYSCALE,
    ("WEBP", "RGB"): cv2.IMREAD_COLOR_RGB,
}
"""How OpenCV reads what Pillow calls by these formats and modes."""
_MAX_DEEP: Final = (1 << 31) - 1
"""Bytes that OpenCV decodes from."""
_JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7]")
"""In a scan's data, where 0xFF itself is stuffed with a zero, and restart markers belong."""


def decode_file(path: Path, name: str, *, page: int | None = None, max_pixels: int) -> NDArray[Any]:
    """Decode a file, or a page of a TIFF.

    Args:
        path: of the file.
        name: for messages.
        page: its number, from 0; None: the file's only one.
        max_pixels: pictures of more are refused before they are decoded.

    Returns:
        (H, W, 1…4), uint8 or uint16, turned upright: grey, grey and alpha, RGB, RGBA.

    Raises:
        ImageError: if it cannot be read.
    """
    try:
        with open_regular(path) as file:
            return _decode(file, name, page, max_pixels)
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror or error})") from error


def decode_bytes(encoded: bytes, name: str, *, max_pixels: int) -> NDArray[Any]:
    """Decode one encoded picture; see :func:`decode_file`."""
    return _decode(io.BytesIO(encoded), name, None, max_pixels)


def decode_image(image: PillowImage.Image, name: str) -> NDArray[Any]:
    """Take a Pillow image's pixels, of the frame that it stands at; see :func:`decode_file`."""
    if image.format == "TIFF" and image.tell() == 0:
        check_frames(getattr(image, "n_frames", 1), "pages", name)
    try:
        return _upright(image, name, None, 0)
    except DECODER_ERRORS as error:
        raise ImageError(f"{name}: damaged picture ({one_line(error)})") from error


def _decode(file: BinaryIO, name: str, page: int | None, max_pixels: int) -> NDArray[Any]:
    with open_image(file, name, page=page, max_pixels=max_pixels) as (image, page):
        try:
            return _upright(image, name, file, page)
        except DECODER_ERRORS as error:
            raise ImageError(f"{name}: damaged picture ({one_line(error)})") from error
        except PillowImage.DecompressionBombError as error:
            raise ImageError(f"{name}: too large to be a picture; scale it down or cut it up ({error})") from None
        except MemoryError:
            width, height = image.size
            raise ImageError(f"{name}: the memory does not suffice for {width}×{height} pixels") from None


def _upright(image: PillowImage.Image, name: str, file: BinaryIO | None, page: int) -> NDArray[Any]:
    largest = largest_sample(image, file or getattr(image, "fp", None), name)  # first: getexif loads a PNG
    picture = None if file is None else _decode_whole(image, file)
    if picture is None:
        image.load()
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)  # last: load turns a TIFF
    if picture is None:
        picture = deep_grey(image, largest)
    if picture is None and largest > 255:
        if file is None:
            raise ImageError(f"{name}: Pillow keeps 8 bits of its deeper colours; give the path of the file instead")
        picture = at_full_scale(_decode_deep_color(file, page, name), largest)
    if picture is None:
        picture = np.asarray(_in_plain_mode(image, name))
    return _turned(picture[..., None] if picture.ndim == 2 else picture, _UPRIGHT.get(orientation))


def _decode_whole(image: PillowImage.Image, file: BinaryIO) -> NDArray[Any] | None:
    """Decode a JPEG or WebP of which nothing is missing; None: it is of another kind, or something is."""
    flag = _WHOLE.get((image.format or "", image.mode))
    size = file.seek(0, io.SEEK_END)
    likely = 4 * image.width * image.height + (1 << 20)
    if flag is None or size > likely:
        return None
    file.seek(0)
    encoded = file.read(size)
    if image.format == "JPEG" and not _is_one_whole_scan(encoded):
        return None
    picture = _imdecode(encoded, flag | cv2.IMREAD_IGNORE_ORIENTATION)
    return picture if picture is not None and picture.shape[1::-1] == image.size else None


def _is_one_whole_scan(encoded: bytes) -> bool:
    """Tell whether a JPEG is a header, one scan and its end, with nothing missing, between or behind (ITU-T T.81 B)."""
    at, marker = 2, 0
    while marker != 0xDA:  # start of scan
        if encoded[at : at + 1] != b"\xff" or at + 4 > len(encoded):
            return False
        marker, length = encoded[at + 1], int.from_bytes(encoded[at + 2 : at + 4])
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9 or marker == 0xFF or length < 2:
            return False
        at += 2 + length
    found = _JPEG_MARKER.search(encoded, at)
    return found is not None and found.group() == b"\xff\xd9" and found.end() == len(encoded)


def _imdecode(encoded: bytes, flag: int, page: int = 0) -> NDArray[Any] | None:
    """Decode with OpenCV; None if it does not."""
    buffer = np.frombuffer(encoded, np.uint8)
    try:
        if page == 0:
            return cv2.imdecode(buffer, flag)
        _, pages = cv2.imdecodemulti(buffer, flag, range=(page, page + 1))
    except cv2.error:  # such as its own limit of pixels
        return None
    return pages[0] if pages else None


def _in_plain_mode(image: PillowImage.Image, name: str) -> PillowImage.Image:
    """Convert to L, LA, RGB or RGBA, none of which loses anything of the modes that are converted."""
    transparent = "transparency" in image.info
    match image.mode:
        case "L" | "RGB" if not transparent:
            return image
        case "LA" | "RGBA":
            return image
        case "1" if not transparent:
            return image.convert("L")
        case "1" | "L":
            return image.convert("LA")
        case "PA" | "RGBa" | "La" | "RGB":
            return image.convert("RGBA")
        case "P":
            return image.convert("RGBA" if transparent else "RGB")
        case "CMYK" | "YCbCr" | "HSV" | "RGBX":
            return image.convert("RGB")
    raise ImageError(
        f"{name}: pictures of mode {image.mode} (32-bit or of an unusual colour space) are not read; "
        "convert it to 8- or 16-bit grey or RGB"
    )


def _decode_deep_color(file: BinaryIO, page: int, name: str) -> NDArray[Any]:
    if file.seek(0, io.SEEK_END) > _MAX_DEEP:
        raise ImageError(f"{name}: deep colour in a file of more than 2 GiB is not decoded; cut the file up")
    file.seek(0)
    picture = _imdecode(file.read(), cv2.IMREAD_UNCHANGED, page)
    if picture is None or picture.dtype != np.uint16 or picture.ndim != 3:
        raise ImageError(f"{name}: 16-bit colour of this kind cannot be decoded")
    order = [2, 1, 0, 3][: picture.shape[2]]
    return np.asarray(picture)[..., order]


def _turned(picture: NDArray[Any], turn: Transpose | None) -> NDArray[Any]:
    match turn:
        case None:
            return picture
        case Transpose.FLIP_LEFT_RIGHT:
            turned = picture[:, ::-1]
        case Transpose.ROTATE_180:
            turned = picture[::-1, ::-1]
        case Transpose.FLIP_TOP_BOTTOM:
            turned = picture[::-1]
        case Transpose.TRANSPOSE:
            turned = picture.transpose(1, 0, 2)
        case Transpose.ROTATE_270:
            turned = np.rot90(picture, -1)
        case Transpose.TRANSVERSE:
            turned = picture.transpose(1, 0, 2)[::-1, ::-1]
        case Transpose.ROTATE_90:
            turned = np.rot90(picture)
    return np.ascontiguousarray(turned)
