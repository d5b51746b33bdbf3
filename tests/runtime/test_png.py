import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.png import PngWriter, encode_png

SIDE = st.integers(1, 70)
COLORS = np.random.default_rng(5).integers(0, 256, (256, 3), np.uint8)


def pixels_of(seed: int, shape: tuple[int, ...], dtype: Any = np.uint8, *, flat: bool = False) -> NDArray[Any]:
    """Noise, or areas of few values as labels have them."""
    rng = np.random.default_rng(seed)
    if not flat:
        return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    return np.repeat(np.repeat(rng.integers(0, 5, shape, dtype), 3, axis=0)[: shape[0]], 4, axis=1)[:, : shape[1]]


def by_pillow(encoded: bytes) -> NDArray[Any]:
    with PillowImage.open(io.BytesIO(encoded)) as image:
        image.load()
        return np.asarray(image)


def by_opencv(encoded: bytes) -> NDArray[Any]:
    decoded = np.asarray(cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED))
    return decoded if decoded.ndim == 2 else decoded[..., [2, 1, 0, 3][: decoded.shape[2]]]


def chunks_of(encoded: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at < len(encoded):
        (length,) = struct.unpack_from(">I", encoded, at)
        kind, data = encoded[at + 4 : at + 8], encoded[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", encoded, at + 8 + length) == (zlib.crc32(kind + data),)
        chunks.append((kind, data))
        at += 12 + length
    return chunks


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 99), SIDE, SIDE, st.sampled_from([0, 3, 4]), st.booleans(), st.sampled_from([0, 1, 2, 6, 9]))
def test_both_decoders_read_the_same_8_bit_pixels_back(
    seed: int, height: int, width: int, channels: int, flat: bool, level: int
) -> None:
    shape = (height, width, channels) if channels else (height, width)
    pixels = pixels_of(seed, shape, flat=flat)
    encoded = encode_png(pixels, level=level)
    np.testing.assert_array_equal(by_pillow(encoded), pixels)
    np.testing.assert_array_equal(by_opencv(encoded), pixels)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), SIDE, SIDE, st.booleans())
def test_both_decoders_read_the_same_16_bit_grey_back(seed: int, height: int, width: int, flat: bool) -> None:
    pixels = pixels_of(seed, (height, width), np.uint16, flat=flat)
    encoded = encode_png(pixels)
    np.testing.assert_array_equal(by_pillow(encoded), pixels)
    np.testing.assert_array_equal(by_opencv(encoded), pixels)


@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_colours_keep_their_bits(channels: int) -> None:
    pixels = pixels_of(1, (20, 31, channels), np.uint16)
    np.testing.assert_array_equal(by_opencv(encode_png(pixels)), pixels)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), SIDE, SIDE, st.sampled_from([1, 2, 200, 256]))
def test_ids_and_their_colours_are_kept(seed: int, height: int, width: int, num_colors: int) -> None:
    ids = pixels_of(seed, (height, width)) % num_colors if num_colors < 256 else pixels_of(seed, (height, width))
    encoded = encode_png(ids.astype(np.uint8), palette=COLORS[:num_colors])
    with PillowImage.open(io.BytesIO(encoded)) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), ids)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), COLORS[ids])
    np.testing.assert_array_equal(by_opencv(encoded), COLORS[ids])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), SIDE, SIDE, st.sampled_from([1, 3]), st.data())
def test_rows_written_in_parts_make_the_same_file(
    seed: int, height: int, width: int, channels: int, data: st.DataObject
) -> None:
    pixels = pixels_of(seed, (height, width, channels))
    cuts = sorted(data.draw(st.lists(st.integers(0, height), max_size=5)))
    file = io.BytesIO()
    with PngWriter(file, width, height, channels=channels, depth=8) as png:
        for start, stop in zip([0, *cuts], [*cuts, height], strict=True):
            png.write_rows(pixels[start:stop])
    np.testing.assert_array_equal(by_pillow(file.getvalue()).reshape(pixels.shape), pixels)


def test_a_picture_that_is_a_view_is_written_by_its_values() -> None:
    deep = pixels_of(2, (40, 30), np.uint16)
    np.testing.assert_array_equal(by_pillow(encode_png(deep.T)), deep.T)
    rgb = pixels_of(3, (30, 40, 3))
    np.testing.assert_array_equal(by_pillow(encode_png(rgb[::2, ::-1])), rgb[::2, ::-1])


@pytest.mark.parametrize("level", [0, 1, 9])
def test_data_that_does_not_compress_come_in_chunks_of_bounded_size(level: int) -> None:
    encoded = encode_png(pixels_of(4, (900, 1000, 3)), level=level)
    chunks = chunks_of(encoded)
    data = [data for kind, data in chunks if kind == b"IDAT"]
    assert [kind for kind, _ in chunks] == [b"IHDR", *[b"IDAT"] * len(data), b"IEND"]
    assert len(data) > 5
    assert max(map(len, data)) < 400_000


def test_labels_and_photographs_come_out_smaller_than_pillow_makes_them(photo: NDArray[np.uint8]) -> None:
    labels = np.repeat(np.repeat(photo[::6, ::6, 0] // 90, 30, axis=0), 30, axis=1)
    palette_image = PillowImage.fromarray(labels)
    palette_image.putpalette(COLORS.tobytes())
    for ours, theirs in (
        (encode_png(labels, palette=COLORS), palette_image),
        (encode_png(photo), PillowImage.fromarray(photo)),
    ):
        file = io.BytesIO()
        theirs.save(file, "PNG", compress_level=1)
        assert len(ours) < 1.1 * len(file.getvalue())


def test_too_few_rows_are_an_error_and_leave_no_end_in_the_file() -> None:
    file = io.BytesIO()
    png = PngWriter(file, 7, 5)
    png.write_rows(np.zeros((4, 7), np.uint8))
    with pytest.raises(ValueError, match="closed after 4 rows; the picture has 5"):
        png.close()
    assert b"IEND" not in file.getvalue()


def test_too_many_rows_are_an_error() -> None:
    png = PngWriter(io.BytesIO(), 7, 5)
    png.write_rows(np.zeros((4, 7), np.uint8))
    with pytest.raises(ValueError, match="6 rows; the picture has 5"):
        png.write_rows(np.zeros((2, 7), np.uint8))


def test_an_error_between_rows_is_not_hidden_by_the_missing_ones() -> None:
    file = io.BytesIO()
    with pytest.raises(RuntimeError, match="from within"), PngWriter(file, 7, 5):
        raise RuntimeError("from within")
    assert b"IEND" not in file.getvalue()


@pytest.mark.parametrize(
    ("rows", "finding"),
    [
        (np.zeros((1, 6), np.uint8), "rows of shape (1, 6), uint8; expected (n, 7, 1), uint8"),
        (np.zeros((1, 7, 3), np.uint8), "rows of shape (1, 7, 3)"),
        (np.zeros((1, 7), np.uint16), "uint16; expected"),
        (np.zeros(7, np.uint8), "rows of shape (7,)"),
    ],
)
def test_rows_of_another_form_are_refused(rows: NDArray[Any], finding: str) -> None:
    with pytest.raises(ValueError, match=r"rows of shape") as caught:
        PngWriter(io.BytesIO(), 7, 5).write_rows(rows)
    assert finding in str(caught.value)


@pytest.mark.parametrize(
    ("pixels", "palette", "finding"),
    [
        (np.zeros((4, 5), np.float32), None, "float32; expected"),
        (np.zeros(4, np.uint8), None, "shape (4,)"),
        (np.zeros((4, 5, 2), np.uint8), None, "2 channels of 8 bits"),
        (np.zeros((0, 5), np.uint8), None, "0×5 pixels"),
        (np.zeros((4, 5), np.uint16), COLORS, "a palette for 1 channels of 16 bits"),
        (np.zeros((4, 5, 3), np.uint8), COLORS, "a palette for 3 channels"),
        (np.zeros((4, 5), np.uint8), COLORS[:, :2], "a palette of shape (256, 2)"),
        (np.zeros((4, 5), np.uint8), np.zeros((257, 3), np.uint8), "a palette of shape (257, 3)"),
    ],
)
def test_what_png_has_no_form_for_is_refused(
    pixels: NDArray[Any], palette: NDArray[np.uint8] | None, finding: str
) -> None:
    with pytest.raises(ValueError, match=r"expected|lie in") as caught:
        encode_png(pixels, palette=palette)
    assert finding in str(caught.value)
