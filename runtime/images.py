"""From a file, a Pillow image or an array to a picture in the form that a card asks for.

What loses nothing happens by itself: grey to RGB, palette, CMYK, opaque alpha, 8 to 16 bit (value · 257, so that full
scale stays full scale), the turn that EXIF asks for. What loses something is refused, naming the :data:`Conversion`
that asks for it.
"""

import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError
from PIL.Image import Transpose

from segship.runtime.errors import ImageError, LossyConversionError
from segship.runtime.preprocess import FULL_SCALE, Depth, Image

Conversion = Literal["depth", "grey", "alpha"]
"""A lossy conversion: 16 to 8 bit, colour to grey, dropping transparency."""
CONVERSIONS: Final[tuple[Conversion, ...]] = get_args(Conversion)

ImageSource = str | Path | PillowImage.Image | NDArray[Any]
"""A path, a Pillow image, or an array (H, W), (H, W, 1) or (H, W, 3) in red, green, blue order, uint8 or uint16."""

IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})

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
_DECODER_ERRORS: Final = (OSError, ValueError, SyntaxError, struct.error, EOFError, IndexError, TypeError, KeyError)
"""What Pillow's decoders raise on damaged files; decompression bombs come apart."""


def read_image(source: ImageSource, *, channels: int, depth: Depth, convert: Collection[Conversion] = ()) -> Image:
    """Read a picture and bring it into the form that a network takes.

    Args:
        source: where the picture comes from. Pillow images and files are turned upright as their EXIF data say.
        channels: to arrive at, 1 or 3.
        depth: to arrive at.
        convert: lossy conversions that are allowed.

    Returns:
        (H, W, channels) of type ``depth``, in red, green, blue order where there are three channels, upright.

    Raises:
        ImageError: if it cannot be read.
        LossyConversionError: if it fits only with a conversion that ``convert`` does not allow.
    """
    name = source_name(source)
    if isinstance(source, np.ndarray):
        picture = _check_array(source)
    elif isinstance(source, PillowImage.Image):
        picture = _decode(source, name)
    else:
        picture = _read_file(Path(source))
    picture = picture.astype(picture.dtype.newbyteorder("="), copy=False)  # OpenCV takes any bytes for native ones
    picture = _without_alpha(picture, convert, name)
    picture = _with_channels(picture, channels, convert, name)
    return _with_depth(picture, depth, convert, name)


def source_name(source: object) -> str:
    """Return what to call a source in messages and results."""
    if isinstance(source, np.ndarray):
        return "array"
    return str(getattr(source, "filename", "") or "image") if isinstance(source, PillowImage.Image) else str(source)


def _read_file(path: Path) -> NDArray[Any]:
    try:
        # Not by its path: Pillow then maps uncompressed TIFFs into memory, and scrambles those to be turned by 90°.
        with path.open("rb") as file, PillowImage.open(file) as image:
            return _decode(image, str(path), path)
    except UnidentifiedImageError:
        raise ImageError(f"{path}: no picture that can be read (its content is of no known image format)") from None
    except PillowImage.DecompressionBombError as error:
        raise ImageError(f"{path}: too large to be a picture; scale it down or cut it up ({error})") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except _DECODER_ERRORS as error:
        raise ImageError(f"{path}: damaged picture ({error})") from error


def _decode(image: PillowImage.Image, name: str, path: Path | None = None) -> NDArray[Any]:
    """Decode to (H, W, 1…4), uint8 or uint16, upright; Pillow does it, since OpenCV completes truncated files."""
    try:
        deep = any(";16" in str(tile[3]) for tile in _tiles(image))  # first: getexif loads a PNG
        deep_color = deep and not image.mode.startswith("I;16")
        if deep_color and path is None:
            raise ImageError(f"{name}: Pillow keeps 8 of the 16 bits of its colours; give the path of the file instead")
        pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
        if pages > 1:
            raise ImageError(f"{name}: the file holds {pages} pages; save the one that is meant on its own")
        image.load()
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)  # last: load turns a TIFF
        if deep_color and path is not None:  # Pillow keeps only 8 of a colour channel's 16 bits
            picture = _decode_deep_color(path)
        else:
            picture = np.asarray(_in_plain_mode(image, name))
    except _DECODER_ERRORS as error:
        raise ImageError(f"{name}: damaged picture ({error})") from error
    if picture.ndim == 2:
        picture = picture[..., None]
    return _turned(picture, _UPRIGHT.get(orientation))


def _tiles(image: PillowImage.Image) -> list[Any]:
    return list(getattr(image, "tile", []))


def _in_plain_mode(image: PillowImage.Image, name: str) -> PillowImage.Image:
    """Convert to L, LA, RGB, RGBA or 16-bit grey, none of which loses anything of the modes that are converted."""
    transparent = "transparency" in image.info
    match image.mode:
        case "L" | "RGB" if not transparent:
            return image
        case "LA" | "RGBA" | "I;16" | "I;16B":
            return image
        case "1" if not transparent:
            return image.convert("L")
        case "1" | "L":
            return image.convert("LA")
        case "PA" | "RGBa" | "La" | "RGB":
            return image.convert("RGBA")
        case "P":
            return image.convert("RGBA" if transparent else "RGB")
        case "I;16L" | "I;16N":
            return image.convert("I;16")
        case "CMYK" | "YCbCr" | "HSV" | "RGBX":
            return image.convert("RGB")
    raise ImageError(
        f"{name}: pictures of mode {image.mode} (32-bit or of an unusual colour space) are not read; "
        "convert it to 8- or 16-bit grey or RGB"
    )


def _decode_deep_color(path: Path) -> NDArray[Any]:
    encoded = np.fromfile(path, np.uint8)
    picture = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    if picture is None or picture.dtype != np.uint16 or picture.ndim != 3:
        raise ImageError(f"{path}: 16-bit colour of this kind cannot be decoded")
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
