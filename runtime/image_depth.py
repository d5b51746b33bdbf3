"""How deep a picture is, as its header says: Pillow cuts the colours of most formats to 8 bits in silence."""

import io
import re
import struct
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.errors import ImageError

_SAMPLE_FORMAT, _SIGNED = 339, 2
_BITS_PER_SAMPLE, _PHOTOMETRIC, _MIN_IS_WHITE = 258, 262, 0
_CODESTREAM: Final = b"\xff\x4f\xff\x51"
"""How JPEG 2000 samples begin, and the segment that describes them (ISO/IEC 15444-1 A)."""
_DEEP_AV1: Final = re.compile(rb"av1C\x81.[\x40-\x7f\xc0-\xff]", re.DOTALL)
"""An AV1 configuration with ``high_bitdepth`` set (AV1 in ISOBMFF 2.3)."""


def largest_sample(image: PillowImage.Image, file: IO[bytes] | None, name: str) -> int:
    """Return the largest value that a sample of a picture may have: 255, or more if it has more than 8 bits.

    Args:
        image: opened and not decoded yet; of one that is, 255.
        file: it was opened from; None: unknown.
        name: for messages.

    Raises:
        ImageError: if its samples are of a kind that no decoder here keeps: signed, of several depths, or deep AVIF.
    """
    if _SIGNED in getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, ()) and image.mode == "L":
        raise _refused(name, "signed samples")
    tile = getattr(image, "tile", [])
    if not tile:
        return 255
    decoder: Any = tile[0][3]
    if image.format == "PPM" and isinstance(decoder, tuple):
        return max(255, int(decoder[1]))
    if image.format == "JPEG2000" and file is not None:
        largest = _largest_of_jpeg2000(_content(file), name)
        if largest > 255 and image.mode == "CMYK":
            raise _refused(name, "CMYK samples of more than 8 bits")
        return max(255, largest)
    if image.format == "AVIF" and file is not None and _DEEP_AV1.search(_content(file)):
        raise _refused(name, "AVIF samples of more than 8 bits")
    return 65535 if any(";16" in str(part[3]) for part in tile) else 255


def deep_grey(image: PillowImage.Image, largest: int) -> NDArray[Any] | None:
    """Return a decoded picture of deep grey, (H, W) uint16 of either byte order, in which white is 65535.

    With a colour that stands for transparency it is (H, W, 2), grey and opacity. None: it is no deep grey.

    Args:
        image: decoded.
        largest: what :func:`largest_sample` said of it before.
    """
    tags = getattr(image, "tag_v2", {})
    match image.mode:
        case "I" if image.format == "PPM" and largest > 255:  # Pillow scales it to 65535
            return np.asarray(image).astype(np.uint16)
        case "I;16" | "I;16B":
            values = np.asarray(image)
        case "I;16L" | "I;16N":
            values = np.asarray(image.convert("I;16"))
        case _:
            return None
    if "transparency" in image.info:
        opacity = np.where(values == image.info["transparency"], np.uint16(0), np.uint16(65535))
        return np.dstack([values.astype(np.uint16), opacity])
    if image.format == "JPEG2000" and 255 < largest < 65535:  # Pillow shifts it up to 16 bits
        return at_full_scale(values >> (16 - largest.bit_length()), largest)
    if tuple(tags.get(_BITS_PER_SAMPLE, ())) == (12,):
        return at_full_scale(values, 4095)
    return np.subtract(65535, values, dtype=np.uint16) if tags.get(_PHOTOMETRIC) == _MIN_IS_WHITE else values


def at_full_scale(values: NDArray[Any], largest: int) -> NDArray[np.uint16]:
    """Return values of 0…``largest`` as values of 0…65535, to the nearest one."""
    if largest == 65535:
        return values
    wide = np.minimum(values, largest).astype(np.uint32)
    return np.asarray((wide * np.uint32(65535) + np.uint32(largest // 2)) // np.uint32(largest), np.uint16)


def _content(file: IO[bytes]) -> bytes:
    place = file.seek(0, io.SEEK_CUR)
    file.seek(0)
    content = file.read()
    file.seek(place)
    return content


def _largest_of_jpeg2000(content: bytes, name: str) -> int:
    at = _start_of_codestream(content)
    (components,) = struct.unpack_from(">H", content, at + 40)
    kinds = set(content[at + 42 : at + 42 + 3 * components : 3])  # of each one its bits less 1, and whether signed
    bits = (max(kinds, default=0) & 0x7F) + 1
    if bits > 8 and (len(kinds) > 1 or bits > 16 or max(kinds) & 0x80):
        raise _refused(name, "JPEG 2000 samples that are signed, of several depths or of more than 16 bits")
    return (1 << bits) - 1


def _start_of_codestream(content: bytes) -> int:
    """Walk the boxes of a JP2 (ISO/IEC 15444-1 I) to where its samples begin."""
    at = 0
    while not content.startswith(_CODESTREAM, at):
        length, kind = struct.unpack_from(">I4s", content, at)
        header = 8
        if length == 1:
            (length,), header = struct.unpack_from(">Q", content, at + 8), 16
        if kind == b"jp2c":
            length = header
        if length < header:
            raise ValueError("its boxes lead nowhere")
        at += length
    return at


def _refused(name: str, samples: str) -> ImageError:
    return ImageError(f"{name}: {samples} are not decoded without loss; save it as 8- or 16-bit PNG or TIFF")
