import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageOps

from segship.runtime.errors import ImageError
from segship.runtime.images import read_image

WriteDeep = Callable[..., Path]
RNG = np.random.default_rng(5)
COLOR = RNG.integers(0, 256, (6, 9, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (6, 9, 4)).astype(np.uint16)
ORIENTATION = 0x0112


def save(path: Path, pixels: NDArray[np.uint8] | PillowImage.Image, **options: Any) -> Path:
    image = pixels if isinstance(pixels, PillowImage.Image) else PillowImage.fromarray(pixels)
    image.save(path, **options)
    return path


def read_color(source: Path | PillowImage.Image) -> NDArray[np.uint8]:
    return read_image(source, channels=3, depth="uint8")


def test_a_colour_picture_is_read_as_it_was_written(tmp_path: Path) -> None:
    for suffix in (".png", ".bmp", ".tif", ".webp"):
        options = {"lossless": True} if suffix == ".webp" else {}
        np.testing.assert_array_equal(read_color(save(tmp_path / f"a{suffix}", COLOR, **options)), COLOR)


def test_a_jpeg_is_read_as_pillow_decodes_it(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", COLOR, quality=90)
    np.testing.assert_array_equal(read_color(path), np.asarray(PillowImage.open(path)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_a_picture_is_turned_upright_as_pillow_turns_it(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = PillowImage.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path / f"a{suffix}", COLOR, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(PillowImage.open(path)))
    assert upright.shape == ((9, 6, 3) if orientation > 4 else (6, 9, 3))
    np.testing.assert_array_equal(read_color(path), upright)
    np.testing.assert_array_equal(read_color(PillowImage.open(path)), upright)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["16-bit.png", "16-bit.tif", "16-bit grey.png", "16-bit grey.tif", "grey.tif"])
def test_what_pillow_cannot_turn_is_turned_too(
    tmp_path: Path, write_deep_png: WriteDeep, write_deep_tiff: WriteDeep, kind: str, orientation: int
) -> None:
    pixels = DEEP[..., :1] if "grey" in kind else DEEP[..., :3]
    exif = PillowImage.Exif()
    exif[ORIENTATION] = orientation
    if kind == "grey.tif":  # uncompressed, which Pillow would map into memory
        pixels = COLOR[..., :1].astype(np.uint16) * 257
        path = save(tmp_path / kind, COLOR[..., 0], exif=exif)
    else:
        path = (write_deep_png if kind.endswith("png") else write_deep_tiff)(
            tmp_path / kind, pixels, orientation=orientation
        )
    numbered = PillowImage.fromarray(np.arange(54, dtype=np.uint8).reshape(6, 9))
    numbered.getexif()[ORIENTATION] = orientation
    order = np.asarray(ImageOps.exif_transpose(numbered))

    picture = read_image(path, channels=pixels.shape[2], depth="uint16")

    np.testing.assert_array_equal(picture, pixels.reshape(54, -1)[order])


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_grey_and_colour_keep_every_bit(
    tmp_path: Path, write_deep_png: WriteDeep, write_deep_tiff: WriteDeep, channels: int
) -> None:
    pixels = DEEP[..., :channels]
    paths = [write_deep_png(tmp_path / "a.png", pixels)]
    paths += [
        write_deep_tiff(tmp_path / f"{name}.tif", pixels, order=order) for name, order in (("a", "<"), ("b", ">"))
    ]
    for path in paths:
        picture = read_image(path, channels=channels, depth="uint16")
        assert picture.dtype == np.uint16
        assert picture.dtype.isnative
        np.testing.assert_array_equal(picture, pixels)


def test_16_bit_pictures_that_opencv_wrote_keep_every_bit(tmp_path: Path) -> None:
    for suffix in (".png", ".tif"):  # this TIFF is compressed
        path = tmp_path / f"a{suffix}"
        cv2.imwrite(str(path), np.ascontiguousarray(DEEP[..., 2::-1]))
        np.testing.assert_array_equal(read_image(path, channels=3, depth="uint16"), DEEP[..., :3])


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_become_8_only_if_asked_for(tmp_path: Path, write_deep_png: WriteDeep, channels: int) -> None:
    path = write_deep_png(tmp_path / "a.png", DEEP[..., :channels])
    with pytest.raises(ImageError, match=r"a\.png: a 16-bit picture for an 8-bit network.*--convert depth"):
        read_image(path, channels=channels, depth="uint8")
    picture = read_image(path, channels=channels, depth="uint8", convert=["depth"])
    np.testing.assert_array_equal(picture, np.round(DEEP[..., :channels] / 257).astype(np.uint8))


def test_8_bits_kept_in_16_are_no_loss(tmp_path: Path, write_deep_png: WriteDeep) -> None:
    path = write_deep_png(tmp_path / "a.png", COLOR.astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_color(path), COLOR)


def test_8_bits_become_16_with_full_scale_staying_full_scale(tmp_path: Path) -> None:
    picture = read_image(save(tmp_path / "a.png", COLOR), channels=3, depth="uint16")
    np.testing.assert_array_equal(picture, COLOR.astype(np.uint16) * 257)


def test_grey_fills_three_channels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", COLOR[..., 0])
    np.testing.assert_array_equal(read_color(path), COLOR[..., :1].repeat(3, axis=2))
    np.testing.assert_array_equal(read_image(path, channels=1, depth="uint8"), COLOR[..., :1])


def test_colours_become_grey_only_if_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", COLOR)
    with pytest.raises(ImageError, match=r"a\.png: a colour picture for a grey network.*--convert grey"):
        read_image(path, channels=1, depth="uint8")
    picture = read_image(path, channels=1, depth="uint8", convert=["grey"])
    np.testing.assert_allclose(picture[..., 0], COLOR @ [0.299, 0.587, 0.114], atol=0.51)


def test_a_colour_file_that_holds_only_grey_is_no_loss(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", COLOR[..., :1].repeat(3, axis=2))
    np.testing.assert_array_equal(read_image(path, channels=1, depth="uint8"), COLOR[..., :1])


def test_a_palette_becomes_its_colours(tmp_path: Path) -> None:
    image = PillowImage.fromarray(np.arange(54, dtype=np.uint8).reshape(6, 9))
    image.putpalette(RNG.integers(0, 256, 768, np.uint8).tobytes())
    assert image.mode == "P"
    np.testing.assert_array_equal(read_color(save(tmp_path / "a.png", image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["palette", "grey", "1 bit", "RGB", "RGBA", "grey and alpha", "16 bit"])
def test_transparency_is_dropped_only_if_asked_for(tmp_path: Path, write_deep_png: WriteDeep, kind: str) -> None:
    path = tmp_path / "a.png"
    match kind:
        case "palette":
            image = PillowImage.fromarray(np.arange(54, dtype=np.uint8).reshape(6, 9))
            image.putpalette(bytes(range(256)) * 3)
            save(path, image, transparency=7)
        case "grey":
            save(path, COLOR[..., 0], transparency=int(COLOR[0, 0, 0]))
        case "1 bit":
            save(path, PillowImage.fromarray(COLOR[..., 0] > 127), transparency=0)
        case "RGB":
            save(path, COLOR, transparency=tuple(map(int, COLOR[0, 0])))
        case "RGBA":
            save(path, np.dstack([COLOR, COLOR[..., 0]]))
        case "grey and alpha":
            save(path, COLOR[..., :2])
        case "16 bit":
            write_deep_png(path, DEEP)
    with pytest.raises(ImageError, match=r"a\.png: the picture is partly transparent.*--convert alpha"):
        read_image(path, channels=3, depth="uint16")
    kept = PillowImage.open(path).convert("RGBA").convert("RGB")  # drops it, and all but 8 bits
    picture = read_image(path, channels=3, depth="uint16", convert=["alpha"])
    np.testing.assert_array_equal(picture >> 8, np.asarray(kept))


@pytest.mark.parametrize("kind", ["palette", "RGBA", "grey and alpha", "16 bit"])
def test_an_alpha_channel_that_is_opaque_is_no_loss(tmp_path: Path, write_deep_png: WriteDeep, kind: str) -> None:
    path = tmp_path / "a.png"
    match kind:
        case "palette":
            image = PillowImage.fromarray(COLOR[..., 0] // 2)
            image.putpalette(bytes(value for value in range(256) for _ in range(3)))
            save(path, image, transparency=255)
        case "RGBA":
            save(path, np.dstack([COLOR, np.full((6, 9), 255, np.uint8)]))
        case "grey and alpha":
            save(path, np.dstack([COLOR[..., 0], np.full((6, 9), 255, np.uint8)]))
        case "16 bit":
            write_deep_png(path, np.dstack([DEEP[..., :3] // 257 * 257, np.full((6, 9), 65535, np.uint16)]))
    expected = np.asarray(PillowImage.open(path).convert("RGB"))
    np.testing.assert_array_equal(read_color(path), expected)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", PillowImage.fromarray(COLOR).convert("CMYK"), quality=95)
    image = PillowImage.open(path)
    assert image.mode == "CMYK"
    np.testing.assert_array_equal(read_color(path), np.asarray(image.convert("RGB")))


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    bits = COLOR[..., 0] > 127
    picture = read_image(save(tmp_path / "a.png", PillowImage.fromarray(bits)), channels=1, depth="uint8")
    np.testing.assert_array_equal(picture[..., 0], bits * np.uint8(255))


def test_one_pixel_is_a_picture(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_color(save(tmp_path / "a.png", COLOR[:1, :1])), COLOR[:1, :1])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_truncated_picture_is_an_error_and_not_half_a_picture(tmp_path: Path, suffix: str, kept: float) -> None:
    whole = io.BytesIO()
    big = RNG.integers(0, 256, (60, 70, 3), np.uint8)
    PillowImage.fromarray(big).save(whole, {".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper()))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(whole.getvalue()[: int(len(whole.getvalue()) * kept)])
    with pytest.raises(ImageError, match=re.escape(str(path))):
        read_color(path)


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_a_truncated_16_bit_picture_is_an_error(
    tmp_path: Path, write_deep_png: WriteDeep, write_deep_tiff: WriteDeep, kind: str
) -> None:
    pixels = RNG.integers(0, 65536, (40, 50, 3)).astype(np.uint16)
    path = (write_deep_png if kind == "png" else write_deep_tiff)(tmp_path / f"a.{kind}", pixels)
    path.write_bytes(path.read_bytes()[:-9000])
    with pytest.raises(ImageError, match=re.escape(str(path))):
        read_image(path, channels=3, depth="uint16")


@pytest.mark.parametrize("content", [b"", b"this is a text\n", bytes(400)])
def test_a_file_that_is_no_picture_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"notes\.jpg: no picture that can be read"):
        read_color(path)


def test_a_missing_file_and_a_folder_are_said_to_be_that(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"missing\.png: cannot be read \(No such file"):
        read_color(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="cannot be read"):
        read_color(tmp_path)


def test_a_form_that_is_not_read_is_named_with_its_file(tmp_path: Path) -> None:
    path = save(tmp_path / "float.tif", PillowImage.fromarray(np.ones((4, 4), np.float32)))
    with pytest.raises(ImageError, match=r"float\.tif: pictures of mode F.*convert it to 8- or 16-bit"):
        read_color(path)


def test_a_decompression_bomb_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "bomb.png", COLOR)
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + path.read_bytes()[24:29]
    content = path.read_bytes()
    path.write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])
    with pytest.raises(ImageError, match=r"bomb\.png.*400000000 pixels"):
        read_color(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_an_image_error_or_a_picture(
    tmp_path: Path, write_deep_png: WriteDeep, write_deep_tiff: WriteDeep, data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from(["png", "jpg", "tif", "bmp", "webp", "deep.png", "deep.tif"]))
    path = tmp_path / f"a.{kind}"
    if kind.startswith("deep"):
        (write_deep_png if kind.endswith("png") else write_deep_tiff)(path, DEEP[..., :3])
    else:
        exif = PillowImage.Exif()
        exif[ORIENTATION] = 6
        save(path, COLOR, exif=exif)
    content = bytearray(path.read_bytes())
    near_start = st.integers(0, min(120, len(content) - 1))  # where the headers are
    place = near_start | st.integers(0, len(content) - 1)
    for at, value in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), max_size=4)):
        content[at] = value
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    outcome = _read_whatever_pillow_warns_of(path)
    if isinstance(outcome, ImageError):
        assert str(path) in str(outcome)
    else:
        assert outcome.dtype == np.uint16
        assert outcome.shape[2] == 3


def _read_whatever_pillow_warns_of(path: Path) -> NDArray[Any] | ImageError:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read_image(path, channels=3, depth="uint16", convert=["alpha"])
        except ImageError as error:
            return error


def test_a_pillow_image_is_read_like_its_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", COLOR)
    np.testing.assert_array_equal(read_color(PillowImage.open(path)), COLOR)
    np.testing.assert_array_equal(read_color(PillowImage.fromarray(COLOR)), COLOR)


def test_a_big_endian_pillow_image_keeps_its_values() -> None:
    image = PillowImage.frombytes("I;16B", (9, 6), DEEP[..., 0].astype(">u2").tobytes())
    np.testing.assert_array_equal(read_image(image, channels=1, depth="uint16"), DEEP[..., :1])


def test_arrays_are_pictures_of_their_own_form() -> None:
    assert read_image(COLOR, channels=3, depth="uint8") is COLOR
    np.testing.assert_array_equal(read_image(COLOR[..., 0], channels=1, depth="uint8"), COLOR[..., :1])
    np.testing.assert_array_equal(read_image(DEEP[..., :1], channels=1, depth="uint16"), DEEP[..., :1])


def test_an_array_of_the_other_byte_order_keeps_its_values() -> None:
    picture = read_image(DEEP[..., 0].astype(">u2"), channels=1, depth="uint16")
    assert picture.dtype.isnative
    np.testing.assert_array_equal(picture, DEEP[..., :1])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32 is no picture; expected uint8 or uint16"),
        (np.zeros((4, 4, 3), np.int64), "int64 is no picture"),
        (np.zeros((4, 4), np.bool_), "bool is no picture"),
        (np.zeros((3, 4, 4, 3), np.uint8), r"shape \(3, 4, 4, 3\) is no picture"),
        (np.zeros((3, 40, 50), np.uint8), r"shape \(3, 40, 50\) is no picture; expected \(H, W\)"),
        (np.zeros((0, 4, 3), np.uint8), "no picture"),
        (np.zeros(5, np.uint8), "no picture"),
    ],
)
def test_an_array_that_is_no_picture_says_what_one_is(array: NDArray[np.uint8], words: str) -> None:
    with pytest.raises(ImageError, match=words):
        read_image(array, channels=3, depth="uint8")


def test_a_tiff_of_several_pages_is_not_guessed_at(tmp_path: Path) -> None:
    pages = [PillowImage.new("RGB", (8, 6), (page, page, page)) for page in (10, 20, 30)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ImageError, match=r"pages\.tif: the file holds 3 pages"):
        read_image(tmp_path / "pages.tif", channels=3, depth="uint8")


def test_a_pillow_image_that_has_lost_half_its_bits_is_refused(tmp_path: Path, write_deep_png: WriteDeep) -> None:
    path = write_deep_png(tmp_path / "deep.png", np.full((4, 5, 3), 12345, np.uint16))
    with PillowImage.open(path) as image, pytest.raises(ImageError, match="give the path of the file instead"):
        read_image(image, channels=3, depth="uint16")
    assert read_image(path, channels=3, depth="uint16").max() == 12345
