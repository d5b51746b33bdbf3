import io
import os
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
from segship.runtime.images import ImageSource, Page, read_image

WriteDeep = Callable[..., Path]
RNG = np.random.default_rng(5)
COLOR = RNG.integers(0, 256, (6, 9, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (6, 9, 4)).astype(np.uint16)
ORIENTATION = 0x0112


def save(path: Path, pixels: NDArray[np.uint8] | PillowImage.Image, **options: Any) -> Path:
    image = pixels if isinstance(pixels, PillowImage.Image) else PillowImage.fromarray(pixels)
    image.save(path, **options)
    return path


def read_color(source: ImageSource) -> NDArray[np.uint8]:
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
    with pytest.raises(
        ImageError, match=r"bomb\.png: 20000×20000 = 400000000 pixels, above --max-pixels 178956970; raise it"
    ):
        read_color(path)
    with pytest.raises(ImageError, match=r"bomb\.png: damaged"):  # allowed, and not there
        read_image(path, channels=3, depth="uint8", max_pixels=400_000_000)


def test_a_large_picture_is_read_if_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PillowImage, "MAX_IMAGE_PIXELS", 10)  # as a process may set it for itself: not asked
    for suffix in (".png", ".jpg", ".bmp", ".tif"):
        path = save(tmp_path / f"a{suffix}", COLOR)
        assert read_image(path, channels=3, depth="uint8", max_pixels=54).shape == COLOR.shape
        with pytest.raises(ImageError, match="9×6 = 54 pixels, above --max-pixels 53"):
            read_image(path, channels=3, depth="uint8", max_pixels=53)
    assert PillowImage.MAX_IMAGE_PIXELS == 10


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
    path = tmp_path / "pages.tif"
    with pytest.raises(ImageError, match=r"pages\.tif: the file holds 3 pages; say which is meant: Page\(path, number"):
        read_color(path)
    with pytest.raises(ImageError, match="image: the file holds 3 pages"):
        read_color(path.read_bytes())
    with PillowImage.open(path) as image, pytest.raises(ImageError, match=r"pages\.tif: the file holds 3 pages"):
        read_color(image)
    for number, value in enumerate((10, 20, 30)):
        np.testing.assert_array_equal(read_color(Page(path, number)), np.full((6, 8, 3), value))
    with pytest.raises(ImageError, match=r"pages\.tif\[page 4\]: the file has no such page"):
        read_color(Page(path, 3))
    with pytest.raises(ImageError, match=r"a\.png\[page 1\]: a PNG file has no pages"):
        read_color(Page(save(tmp_path / "a.png", COLOR), 0))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
def test_each_16_bit_page_keeps_its_own_bits_and_turn(tmp_path: Path, channels: int, compression: str) -> None:
    stack = RNG.integers(0, 65536, (3, 6, 9, channels)).astype(np.uint16)
    path = tmp_path / "stack.tif"
    code = {"raw": 1, "tiff_lzw": 5, "tiff_adobe_deflate": 8}[compression]
    pages = [np.ascontiguousarray(page[..., ::-1]) for page in stack]
    cv2.imwritemulti(str(path), pages, [cv2.IMWRITE_TIFF_COMPRESSION, code])
    for number, page in enumerate(stack):
        np.testing.assert_array_equal(read_image(Page(path, number), channels=channels, depth="uint16"), page)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_no_picture(tmp_path: Path, kind: str) -> None:
    frames = [PillowImage.new("RGB", (8, 6), (value, 0, 0)) for value in (10, 200)]
    path = tmp_path / f"moving.{kind.lower()}"
    frames[0].save(path, kind, save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match=r"moving\.[a-z]*: an animation of 2 frames and no picture; save the frame"):
        read_color(path)


def test_a_picture_in_memory_is_read_like_its_file(tmp_path: Path, write_deep_png: WriteDeep) -> None:
    for suffix in (".png", ".jpg", ".bmp", ".tif", ".webp"):
        path = save(tmp_path / f"a{suffix}", COLOR)
        np.testing.assert_array_equal(read_color(path.read_bytes()), read_color(path))
    content = write_deep_png(tmp_path / "deep.png", DEEP[..., :3]).read_bytes()
    np.testing.assert_array_equal(read_image(content, channels=3, depth="uint16"), DEEP[..., :3])
    with pytest.raises(ImageError, match=r"^image: no picture that can be read"):
        read_color(b"text")


def test_an_error_on_the_way_to_a_picture_is_raised_where_it_is_read() -> None:
    with pytest.raises(ImageError, match="gone"):
        read_image(ImageError("gone"), channels=3, depth="uint8")


def test_messages_call_a_picture_as_they_are_told_to() -> None:
    with pytest.raises(ImageError, match=r"^video\.mp4 frame 7: a colour picture"):
        read_image(COLOR, channels=1, depth="uint8", name="video.mp4 frame 7")


@pytest.mark.parametrize("name", ["with space.png", "Straße ☂ 道路.jpg", os.fsdecode(b"not text \xff\xfe.png")])
def test_any_name_that_a_file_may_have_is_read(tmp_path: Path, write_deep_png: WriteDeep, name: str) -> None:
    assert read_color(save(tmp_path / name, COLOR)).shape == COLOR.shape
    deep = write_deep_png(tmp_path / f"deep {name}", DEEP[..., :3])
    np.testing.assert_array_equal(read_image(deep, channels=3, depth="uint16"), DEEP[..., :3])
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        read_color(tmp_path / name)
    str(caught.value).encode()  # printable


def test_a_pipe_or_device_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(ImageError, match=r"a pipe or a device and no file; pipe pictures to - instead"):
            read_color(path)


@pytest.mark.parametrize("name", ["zero\0byte.png", "half a character \ud800.png"])
def test_a_name_that_no_file_can_have_is_an_error_of_its_picture(name: str) -> None:
    with pytest.raises(ImageError, match="no file can have this name") as caught:
        read_color(name)
    str(caught.value).encode()  # printable


def test_a_file_of_many_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = save(tmp_path / "huge.png", COLOR)
    os.truncate(path, 5 << 30)  # sparse
    with pytest.raises(ImageError, match=r"huge\.png: 5 GiB, more than an encoded picture has \(4 GiB\)"):
        read_color(path)


def test_a_pillow_image_that_has_lost_half_its_bits_is_refused(tmp_path: Path, write_deep_png: WriteDeep) -> None:
    path = write_deep_png(tmp_path / "deep.png", np.full((4, 5, 3), 12345, np.uint16))
    with PillowImage.open(path) as image, pytest.raises(ImageError, match="give the path of the file instead"):
        read_image(image, channels=3, depth="uint16")
    assert read_image(path, channels=3, depth="uint16").max() == 12345
