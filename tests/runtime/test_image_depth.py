"""Pictures of more than 8 bits keep them, at full scale, or are refused; what they mean is what they are read as."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import features

from segship.runtime.errors import ImageError, LossyConversionError
from segship.runtime.image_depth import at_full_scale
from segship.runtime.images import read_image

RNG = np.random.default_rng(8)
DEEP = RNG.integers(0, 65536, (40, 50, 3)).astype(np.uint16)


def ppm(pixels: NDArray[np.uint16], largest: int = 65535) -> bytes:
    height, width, channels = pixels.shape
    kind = {1: "P5", 3: "P6"}[channels]
    return f"{kind}\n# deep\n{width} {height}\n{largest}\n".encode() + pixels.astype(">u2").tobytes()


def jpeg2000(pixels: NDArray[np.uint16]) -> bytes:
    _, encoded = cv2.imencode(".jp2", pixels[..., ::-1], [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])
    return encoded.tobytes()


def jpeg2000_of(pixels: NDArray[Any], bits: int, **options: Any) -> bytes:
    codecs = pytest.importorskip("imagecodecs")
    return bytes(codecs.jpeg2k_encode(pixels, level=0, bitspersample=bits, mct=False, **options))


def grey_png(pixels: NDArray[np.uint16], transparent: int) -> bytes:
    """Write a 16-bit grey PNG of which one value stands for transparency."""
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = ((b"IHDR", header), (b"tRNS", struct.pack(">H", transparent)), (b"IDAT", zlib.compress(rows)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*chunks, (b"IEND", b""))
    )


def tiff(pixels: NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def tiff_of_12_bits(pixels: NDArray[Any]) -> bytes:
    bits = "".join(f"{value:012b}" for value in pixels.ravel())
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    height, width = pixels.shape
    values = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(values)) + table + bytes(4)


def deep(content: bytes, channels: int = 3, **options: Any) -> NDArray[Any]:
    return read_image(content, channels=channels, depth="uint16", **options)


@pytest.mark.parametrize("encode", [ppm, jpeg2000])
def test_deep_colour_keeps_every_bit_and_loses_them_only_if_asked_to(
    encode: Callable[[NDArray[np.uint16]], bytes], tmp_path: Path
) -> None:
    content = encode(DEEP)
    np.testing.assert_array_equal(deep(content), DEEP)
    with pytest.raises(LossyConversionError, match="--convert depth"):
        read_image(content, channels=3, depth="uint8")
    shallow = read_image(content, channels=3, depth="uint8", convert=["depth"])
    np.testing.assert_array_equal(shallow, np.round(DEEP / 257))
    (tmp_path / "a").write_bytes(content)
    with PillowImage.open(tmp_path / "a") as image, pytest.raises(ImageError, match="give the path of the file"):
        deep(image)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("largest", [256, 1023, 65535])
def test_the_largest_value_of_a_ppm_is_white(channels: int, largest: int) -> None:
    pixels = np.minimum(DEEP[..., :channels], largest)
    pixels[0, :2] = [[0], [largest]]
    wanted = np.floor(pixels.astype(np.float64) * 65535 / largest + 0.5)
    np.testing.assert_array_equal(deep(ppm(pixels, largest), channels), wanted)


def test_half_a_ppm_is_an_error() -> None:
    with pytest.raises(ImageError, match="damaged"):
        deep(ppm(DEEP)[:-100])


@pytest.mark.parametrize("codec", ["jp2", "j2k"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_white_of_any_depth_is_white_in_jpeg_2000(bits: int, channels: int, codec: str) -> None:
    pixels = DEEP[..., :channels] >> (16 - bits)
    pixels[0, :2] = [[0], [(1 << bits) - 1]]
    content = jpeg2000_of(pixels[..., 0] if channels == 1 else pixels, bits, codecformat=codec)
    np.testing.assert_array_equal(deep(content, channels), at_full_scale(pixels, (1 << bits) - 1))


def test_eight_bits_of_jpeg_2000_are_eight_bits() -> None:
    pixels = (DEEP >> 8).astype(np.uint8)
    np.testing.assert_array_equal(read_image(jpeg2000_of(pixels, 8), channels=3, depth="uint8"), pixels)


def test_signed_samples_are_refused() -> None:
    with pytest.raises(ImageError, match=r"^image: JPEG 2000 samples that are signed.*save it as 8- or 16-bit PNG"):
        deep(jpeg2000_of((DEEP >> 2).astype(np.int16), 16))
    with pytest.raises(ImageError, match=r"^image: signed samples are not decoded without loss"):
        read_image(tiff(np.array([[-1, 0, 1]], np.int8), photometric="minisblack"), channels=1, depth="uint8")


@pytest.mark.parametrize("cut", [2, 10, 30, 60, 110])
def test_a_jpeg_2000_that_ends_in_its_header_is_damaged(cut: int) -> None:
    with pytest.raises(ImageError, match=r"damaged|no picture"):
        deep(jpeg2000(DEEP)[:cut])


@pytest.mark.skipif(not (features.check("avif") and cv2.haveImageWriter("a.avif")), reason="no AVIF here")
@pytest.mark.parametrize("bits", [8, 10, 12])
def test_avif_is_read_up_to_8_bits_and_refused_above(bits: int) -> None:
    pixels: NDArray[Any] = (DEEP >> (16 - bits)).astype(np.uint8 if bits == 8 else np.uint16)
    _, encoded = cv2.imencode(".avif", pixels, [cv2.IMWRITE_AVIF_DEPTH, bits])
    if bits == 8:
        assert read_image(encoded.tobytes(), channels=3, depth="uint8").shape == DEEP.shape
        return
    with pytest.raises(ImageError, match="AVIF samples of more than 8 bits are not decoded without loss"):
        read_image(encoded.tobytes(), channels=3, depth="uint8", convert=["depth"])


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("depth", ["uint8", "uint16"])
def test_where_zero_is_white_it_is_read_as_white(depth: Any, compression: str | None) -> None:
    pixels = DEEP[..., 0].astype(depth)
    content = tiff(pixels, photometric="miniswhite", compression=compression)
    picture = read_image(content, channels=1, depth=depth)[..., 0]
    np.testing.assert_array_equal(picture, np.iinfo(depth).max - pixels)


def test_a_transparent_value_of_16_bit_grey_is_dropped_only_if_asked_for() -> None:
    pixels = DEEP[..., 0]
    content = grey_png(pixels, int(pixels[3, 4]))
    with pytest.raises(LossyConversionError, match=r"partly transparent.*--convert alpha"):
        deep(content, 1)
    np.testing.assert_array_equal(deep(content, 1, convert=["alpha"])[..., 0], pixels)
    absent = next(value for value in range(65536) if not (pixels == value).any())
    np.testing.assert_array_equal(deep(grey_png(pixels, absent), 1)[..., 0], pixels)  # opaque, which is no loss


def test_12_bits_of_a_tiff_reach_full_scale() -> None:
    pixels = DEEP[..., 0] >> 4
    pixels[0, :2] = 0, 4095
    picture = deep(tiff_of_12_bits(pixels), 1)[..., 0]
    np.testing.assert_array_equal(picture, at_full_scale(pixels, 4095))
    assert picture[0, :2].tolist() == [0, 65535]
    with pytest.raises(LossyConversionError, match="--convert depth"):
        read_image(tiff_of_12_bits(pixels), channels=1, depth="uint8")


@pytest.mark.parametrize("largest", [255, 256, 1000, 1023, 4095, 65535])
def test_full_scale_is_the_nearest_value(largest: int) -> None:
    values = np.arange(largest + 1, dtype=np.uint16)
    scaled = at_full_scale(values, largest)
    assert np.abs(scaled - values * (65535 / largest)).max() <= 0.5
    assert scaled[[0, -1]].tolist() == [0, 65535]
    assert scaled.dtype == np.uint16
