"""From a file, a Pillow image or an array to a picture in the form that a card asks for.

What loses nothing happens by itself: grey to RGB, palette, CMYK, opaque alpha, 8 to 16 bit (value · 257, so that full
scale stays full scale), the turn that EXIF asks for. What loses something is refused, naming the :data:`Conversion`
that asks for it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.errors import ImageError, LossyConversionError
from segship.runtime.image_decoding import decode_bytes, decode_file, decode_image
from segship.runtime.preprocess import FULL_SCALE, Depth, Image
from segship.runtime.printable import printable

Conversion = Literal["depth", "grey", "alpha"]
"""A lossy conversion: 16 to 8 bit, colour to grey, dropping transparency."""
CONVERSIONS: Final[tuple[Conversion, ...]] = get_args(Conversion)


@dataclass(frozen=True)
class Page:
    """A page of a TIFF.

    Attributes:
        path: of the file.
        number: of the page, from 0; messages and outputs count from 1.
    """

    path: Path
    number: int


ImageSource = str | Path | Page | bytes | PillowImage.Image | NDArray[Any]
"""A path, a page, the bytes of one encoded picture, a Pillow image, or an array (H, W), (H, W, 1) or (H, W, 3) in red,
green, blue order, uint8 or uint16."""

IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})

MAX_PIXELS: Final = 178_956_970
"""Pixels that an encoded picture may have unless more are allowed: as many as Pillow decodes."""


def read_image(
    source: ImageSource | ImageError,
    *,
    channels: int,
    depth: Depth,
    convert: Collection[Conversion] = (),
    max_pixels: int = MAX_PIXELS,
    name: str | None = None,
) -> Image:
    """Read a picture and bring it into the form that a network takes.

    Args:
        source: where the picture comes from. Pillow images and files are turned upright as their EXIF data say. An
            error that was met on the way to a picture is raised here, where it is reported with those of reading.
        channels: to arrive at, 1 or 3.
        depth: to arrive at.
        convert: lossy conversions that are allowed.
        max_pixels: encoded pictures of more are refused before they are decoded.
        name: what messages call the picture; None: :func:`source_name`.

    Returns:
        (H, W, channels) of type ``depth``, in red, green, blue order where there are three channels, upright.

    Raises:
        ImageError: if it cannot be read.
        LossyConversionError: if it fits only with a conversion that ``convert`` does not allow.
    """
    if isinstance(source, ImageError):
        raise source
    name = source_name(source) if name is None else name
    match source:
        case np.ndarray():
            picture = _check_array(source)
        case PillowImage.Image():
            picture = decode_image(source, name)
        case bytes():
            picture = decode_bytes(source, name, max_pixels=max_pixels)
        case Page(path, number):
            picture = decode_file(path, name, page=number, max_pixels=max_pixels)
        case _:
            picture = decode_file(Path(source), name, max_pixels=max_pixels)
    return in_form(picture, channels=channels, depth=depth, convert=convert, name=name)


def in_form(
    picture: NDArray[Any], *, channels: int, depth: Depth, convert: Collection[Conversion] = (), name: str
) -> Image:
    """Bring a decoded picture into the form that a network takes.

    Args:
        picture: (H, W, 1…4), uint8 or uint16 of any byte order: grey, grey and alpha, RGB, RGBA.
        channels: to arrive at, 1 or 3.
        depth: to arrive at.
        convert: lossy conversions that are allowed.
        name: of the picture, for messages.

    Returns:
        (H, W, channels) of type ``depth``, in red, green, blue order where there are three channels.

    Raises:
        LossyConversionError: if it fits only with a conversion that ``convert`` does not allow.
    """
    picture = picture.astype(picture.dtype.newbyteorder("="), copy=False)  # OpenCV takes any bytes for native ones
    picture = _without_alpha(picture, convert, name)
    picture = _with_channels(picture, channels, convert, name)
    return _with_depth(picture, depth, convert, name)


def source_name(source: object) -> str:
    """Return what to call a source in messages and results."""
    match source:
        case np.ndarray():
            return "array"
        case PillowImage.Image():
            filename = getattr(source, "filename", "")
            return printable(filename) if filename else "image"
        case Page(path, number):
            return f"{printable(path)}[page {number + 1}]"
        case str() | Path():
            return printable(source)
    return "image"


def _check_array(array: NDArray[Any]) -> NDArray[Any]:
    picture = array[..., None] if array.ndim == 2 else array
    if picture.ndim != 3 or picture.shape[2] not in (1, 3, 4) or 0 in picture.shape:
        raise ImageError(f"an array of shape {array.shape} is no picture; expected (H, W), (H, W, 1) or (H, W, 3)")
    if picture.dtype.name not in FULL_SCALE:
        raise ImageError(f"an array of {array.dtype} is no picture; expected uint8 or uint16")
    return picture


def _without_alpha(picture: NDArray[Any], convert: Collection[Conversion], name: str) -> NDArray[Any]:
    if picture.shape[2] in (1, 3):
        return picture
    alpha = picture[..., -1]
    if "alpha" not in convert and (alpha != FULL_SCALE[alpha.dtype.name]).any():
        raise LossyConversionError(f"{name}: the picture is partly transparent", "alpha", "drop its transparency")
    return np.ascontiguousarray(picture[..., :-1])


def _with_channels(picture: NDArray[Any], channels: int, convert: Collection[Conversion], name: str) -> NDArray[Any]:
    if picture.shape[2] == channels:
        return picture
    if channels == 3:
        return np.repeat(picture, 3, axis=2)
    if (picture[..., :1] == picture).all():
        return np.ascontiguousarray(picture[..., :1])
    if "grey" not in convert:
        raise LossyConversionError(f"{name}: a colour picture for a grey network", "grey", "drop its colours")
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY))[..., None]


def _with_depth(picture: NDArray[Any], depth: Depth, convert: Collection[Conversion], name: str) -> Image:
    if picture.dtype.name == depth:
        return picture
    if depth == "uint16":
        return picture.astype(np.uint16) * np.uint16(257)
    if "depth" not in convert and (picture % 257 != 0).any():
        raise LossyConversionError(f"{name}: a 16-bit picture for an 8-bit network", "depth", "drop 8 bits")
    return ((picture.astype(np.uint32) + 128) // 257).astype(np.uint8)
