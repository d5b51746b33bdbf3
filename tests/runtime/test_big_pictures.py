import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime import big_pictures, tiff_form
from segship.runtime.big_pictures import BigPicture, is_big
from segship.runtime.errors import ImageError
from segship.runtime.images import Page, in_form, read_image


def noise(height: int, width: int, channels: int = 3, dtype: Any = np.uint8) -> NDArray[Any]:
    """Noise on a ramp, so that codecs and predictors have something to do."""
    rng = np.random.default_rng(height * width)
    ramp = np.linspace(0, 200, width, dtype=np.float64)[:, None] + rng.integers(0, 50, (height, width, channels))
    return (ramp * (257 if dtype == np.uint16 else 1)).astype(dtype)


def write(path: Path, pixels: NDArray[Any], **form: Any) -> Path:
    channels = pixels.shape[2]
    form = {"photometric": "rgb" if channels >= 3 else "minisblack"} | form
    tifffile.imwrite(path, pixels[..., 0] if channels == 1 else pixels, metadata=None, **form)
    return path


def in_parts(picture: BigPicture, high: int) -> NDArray[Any]:
    height = picture.size[0]
    return np.concatenate([picture.rows(top, min(top + high, height)) for top in range(0, height, high)])


FORMS: dict[str, dict[str, Any]] = {
    "one strip": {},
    "strips": {"rowsperstrip": 7},
    "tiles": {"tile": (32, 48)},
    "big endian strips": {"rowsperstrip": 7, "byteorder": ">"},
    "deflated strips": {"rowsperstrip": 7, "compression": "zlib"},
    "deflated tiles": {"tile": (32, 48), "compression": "zlib"},
    "predicted tiles": {"tile": (32, 48), "compression": "zlib", "predictor": True},
    "predicted big endian": {"rowsperstrip": 20, "compression": "zlib", "predictor": True, "byteorder": ">"},
    "lzw strips": {"rowsperstrip": 7, "compression": "lzw"},
    "lzw predicted tiles": {"tile": (32, 48), "compression": "lzw", "predictor": True},
    "packbits": {"rowsperstrip": 7, "compression": "packbits"},
    "bigtiff": {"tile": (32, 48), "compression": "zlib", "bigtiff": True},
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("form", FORMS)
def test_rows_are_those_of_the_whole_picture_in_every_form(
    tmp_path: Path, form: str, dtype: Any, channels: int
) -> None:
    if "lzw" in form or "packbits" in form:
        pytest.importorskip("imagecodecs")
    pixels = noise(101, 150, channels, dtype)
    with BigPicture(write(tmp_path / "big.tif", pixels, **FORMS[form])) as picture:
        assert (picture.size, picture.channels, picture.dtype) == ((101, 150), channels, dtype)
        for high in (101, 13, 1):
            rows = in_parts(picture, high)
            assert rows.dtype == dtype
            np.testing.assert_array_equal(rows, pixels)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 100), st.integers(0, 100))
def test_any_rows_can_be_asked_for_in_any_order(tmp_path_factory: pytest.TempPathFactory, one: int, other: int) -> None:
    pixels = noise(100, 90)
    start, stop = sorted((one, other))
    for form in ("strips", "deflated tiles"):
        path = tmp_path_factory.getbasetemp() / f"{form}.tif"
        with BigPicture(path if path.exists() else write(path, pixels, **FORMS[form])) as picture:
            picture.rows(60, 70)
            np.testing.assert_array_equal(picture.rows(start, stop), pixels[start:stop])


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("tile", [None, (32, 48)])
def test_planes_that_lie_apart_are_brought_together(tmp_path: Path, compression: str | None, tile: Any) -> None:
    pixels = noise(70, 90)
    path = tmp_path / "planes.tif"
    form = {"rowsperstrip": 9} if tile is None else {"tile": tile}
    tifffile.imwrite(
        path,
        pixels.transpose(2, 0, 1),
        photometric="rgb",
        planarconfig="separate",
        compression=compression,
        metadata=None,
        **form,
    )
    with BigPicture(path) as picture:
        np.testing.assert_array_equal(in_parts(picture, 11), pixels)


@pytest.mark.parametrize("compression", ["raw", "tiff_adobe_deflate", "tiff_lzw", "packbits", "jpeg"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_files_of_libtiff_read_as_read_image_reads_them(tmp_path: Path, compression: str, mode: str) -> None:
    if compression in ("tiff_lzw", "jpeg"):
        pytest.importorskip("imagecodecs")
    path = tmp_path / "libtiff.tif"
    image = PillowImage.fromarray(noise(120, 160)).convert(mode)
    image.save(path, compression=compression, tiffinfo={278: 16})
    expected = read_image(path, channels=3, depth="uint8")
    with BigPicture(path) as picture:
        rows = in_form(in_parts(picture, 50), channels=3, depth="uint8", name="")
    tolerance = 2 if compression == "jpeg" else 0  # two libraries' inverse cosine transforms
    np.testing.assert_allclose(rows.astype(int), expected, atol=tolerance)


def test_jpeg_tiles_that_share_their_tables_are_read_as_rgb(tmp_path: Path) -> None:
    pytest.importorskip("imagecodecs")
    smooth = np.repeat(np.repeat(noise(10, 12), 16, axis=0), 16, axis=1)
    path = write(tmp_path / "jpeg.tif", smooth, tile=(64, 64), compression="jpeg", compressionargs={"level": 95})
    with BigPicture(path) as picture:
        assert np.abs(in_parts(picture, 33).astype(int) - smooth).mean() < 4


@pytest.mark.parametrize(("channels", "kept"), [(2, 2), (4, 4)])
def test_opacity_is_a_channel(tmp_path: Path, channels: int, kept: int) -> None:
    pixels = noise(40, 50, channels)
    path = write(tmp_path / "alpha.tif", pixels, extrasamples=["unassalpha"], tile=(16, 16), planarconfig="contig")
    with BigPicture(path) as picture:
        assert picture.channels == kept
        np.testing.assert_array_equal(in_parts(picture, 20), pixels)


def test_a_fourth_channel_of_which_nothing_is_said_is_left_out(tmp_path: Path) -> None:
    pixels = noise(40, 50, 4)
    with BigPicture(write(tmp_path / "extra.tif", pixels, extrasamples=["unspecified"])) as picture:
        assert picture.channels == 3
        np.testing.assert_array_equal(in_parts(picture, 20), pixels[..., :3])


def test_colours_that_are_multiplied_by_their_opacity_are_refused_where_it_shows(tmp_path: Path) -> None:
    pixels = noise(40, 50, 4)
    pixels[..., 3] = 255
    pixels[30, 20, 3] = 9
    with BigPicture(write(tmp_path / "associated.tif", pixels, extrasamples=["assocalpha"])) as picture:
        np.testing.assert_array_equal(picture.rows(0, 30), pixels[:30])
        with pytest.raises(ImageError, match=r"multiplied by their opacity.*save it with separate"):
            picture.rows(30, 31)


def test_from_top_to_bottom_each_part_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "tiles.tif", noise(128, 96), tile=(32, 48), compression="zlib")
    decoded: list[int] = []
    plain = BigPicture._decode_segment

    def counted(self: BigPicture, index: int, shape: tuple[int, int, int]) -> NDArray[Any] | None:
        decoded.append(index)
        return plain(self, index, shape)

    monkeypatch.setattr(BigPicture, "_decode_segment", counted)
    with BigPicture(path) as picture:
        in_parts(picture, 10)
    assert decoded == list(range(8))


def test_a_part_that_was_left_out_is_black(tmp_path: Path) -> None:
    tiles = [np.full((16, 16), 9, np.uint8), None, np.full((16, 16), 7, np.uint8), None]
    path = tmp_path / "sparse.tif"
    tifffile.imwrite(path, iter(tiles), shape=(32, 32), dtype=np.uint8, tile=(16, 16), compression="zlib")
    with BigPicture(path) as picture:
        rows = in_parts(picture, 32)[..., 0]
    assert [int(rows[y, x]) for y in (0, 20) for x in (0, 20)] == [9, 0, 7, 0]


def test_a_page_is_told_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "pages.tif"
    pages = [noise(40, 50), noise(30, 60)]
    with tifffile.TiffWriter(path) as writer:
        for page in pages:
            writer.write(page, photometric="rgb", tile=(16, 16), metadata=None)
    with pytest.raises(ImageError, match="holds 2 pages; say which"):
        BigPicture(path)
    with BigPicture(Page(path, 1)) as picture:
        np.testing.assert_array_equal(in_parts(picture, 8), pages[1])
    with pytest.raises(ImageError, match=r"\[page 3\]: the file has no such page"):
        BigPicture(Page(path, 2))


def test_smaller_copies_of_a_page_are_no_pages(tmp_path: Path) -> None:
    path = tmp_path / "pyramid.tif"
    pixels = noise(64, 64)
    with tifffile.TiffWriter(path) as writer:
        writer.write(pixels, photometric="rgb", tile=(16, 16), metadata=None)
        writer.write(pixels[::2, ::2], photometric="rgb", tile=(16, 16), subfiletype=1, metadata=None)
    with BigPicture(path) as picture:
        np.testing.assert_array_equal(in_parts(picture, 8), pixels)


@pytest.mark.parametrize(
    ("make", "finding"),
    [
        (lambda path: write(path, noise(20, 20).astype(np.float32)), "32 bits, 3 channels, RGB: such a TIFF is not"),
        (lambda path: write(path, noise(20, 20, 1), photometric="miniswhite"), "MINISWHITE: such a TIFF is not"),
        (lambda path: write(path, noise(20, 20, 4), photometric="separated"), "SEPARATED: such a TIFF is not"),
        (lambda path: write(path, noise(20, 20), extratags=[(274, 3, 1, 6, True)]), "orientation 6"),
        (lambda path: path.write_bytes(b"II*\0\x08\0\0\0\xff\xff"), "damaged picture"),
        (lambda path: path.write_bytes(b"no picture"), "damaged picture|no picture"),
        (lambda path: path.mkdir(), "cannot be read|a pipe or a device"),
        (lambda path: None, "cannot be read"),
    ],
)
def test_what_is_not_read_by_rows_is_told_before_a_row_is_read(
    tmp_path: Path, make: Callable[[Path], object], finding: str
) -> None:
    path = tmp_path / "other.tif"
    make(path)
    with pytest.raises(ImageError, match=finding) as caught:
        BigPicture(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_picture_of_more_pixels_than_allowed_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "big.tif", noise(40, 50), tile=(16, 16))
    with pytest.raises(ImageError, match="--max-pixels 1999; raise it"):
        BigPicture(path, max_pixels=1999)
    BigPicture(path, max_pixels=2000).close()


def test_without_its_codec_a_picture_is_refused_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lzw.tif"
    PillowImage.fromarray(noise(40, 50)).save(path, compression="tiff_lzw")
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(ImageError, match=r'reading LZW TIFFs row by row needs imagecodecs.*"segship\[tiff\]"'):
        BigPicture(path)


@pytest.mark.parametrize("form", ["strips", "deflated tiles", "predicted tiles"])
def test_a_truncated_file_is_an_error_where_something_is_missing(tmp_path: Path, form: str) -> None:
    path = tmp_path / "whole.tif"
    write(path, noise(120, 150), **FORMS[form])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with BigPicture(path) as picture:
        picture.rows(0, 5)
        with pytest.raises(ImageError, match="damaged picture in the rows 100…119"):
            picture.rows(100, 120)


def test_data_that_are_no_deflate_stream_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.tif", noise(64, 64), tile=(32, 32), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[3]
    content = bytearray(path.read_bytes())
    content[offset : offset + 20] = bytes(20)
    path.write_bytes(content)
    with BigPicture(path) as picture:
        picture.rows(0, 32)
        with pytest.raises(ImageError, match=r"damaged picture in the rows 32…63 \(.*unknown compression"):
            picture.rows(32, 64)


@pytest.mark.parametrize("form", ["strips", "deflated tiles", "predicted tiles", "bigtiff"])
def test_whatever_is_changed_in_a_file_it_is_read_or_an_error_of_ours(tmp_path: Path, form: str) -> None:
    whole = write(tmp_path / "whole.tif", noise(60, 70), **FORMS[form]).read_bytes()
    rng = np.random.default_rng(len(whole))
    path = tmp_path / "changed.tif"
    refused = 0
    for _ in range(200):
        content = bytearray(whole)
        for place in rng.integers(0, rng.choice([300, len(whole)]), rng.integers(1, 5)):
            content[place : place + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\2", b"\1\0\0\0"])
        path.write_bytes(content)
        try:
            with BigPicture(path, max_pixels=100_000) as picture:
                in_parts(picture, 50)
        except ImageError as error:
            assert "\n" not in str(error)  # noqa: PT017  # which files fail is not the point
            refused += 1
    assert refused > 20


def test_a_tag_of_two_values_where_one_belongs_is_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.tif", noise(20, 20))
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].tags["ImageWidth"].offset
    content = bytearray(path.read_bytes())
    content[place + 2 : place + 8] = b"\3\0\2\0\0\0"  # two short numbers in place of a long one
    path.write_bytes(content)
    with pytest.raises(ImageError, match="one of its tags is no number"):
        BigPicture(path)


def test_what_tifffile_finds_wrong_is_no_noise_on_stderr(tmp_path: Path) -> None:
    content = bytearray(write(tmp_path / "bad.tif", noise(20, 20)).read_bytes())
    content[content.index(b"\x11\x01\x04\0") + 2] = 200  # the type of the strips' offsets
    (tmp_path / "bad.tif").write_bytes(content)
    program = """
import sys
from segship.runtime.big_pictures import BigPicture
from segship.runtime.errors import ImageError
try:
    BigPicture(sys.argv[1])
except ImageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "bad.tif"], capture_output=True, text=True)
    assert "damaged picture (0 parts; its size needs 1)" in done.stdout
    assert done.stderr == ""


def test_a_part_that_would_unpack_to_far_more_than_its_size_is_not_unpacked(tmp_path: Path) -> None:
    path = write(tmp_path / "bomb.tif", np.zeros((64, 64, 3), np.uint8), rowsperstrip=64, compression="zlib")
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        places = page.tags["StripOffsets"].valueoffset, page.tags["StripByteCounts"].valueoffset
    bomb = zlib.compress(bytes(200 << 20))
    content = bytearray(path.read_bytes())
    for place, value in zip(places, (len(content), len(bomb)), strict=True):
        content[place : place + 4] = value.to_bytes(4, "little")
    path.write_bytes(content + bomb)
    tracemalloc.start()
    with BigPicture(path) as picture:
        assert not picture.rows(0, 64).any()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 << 20


def test_a_part_that_is_longer_than_its_pixels_could_be_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "long.tif", np.zeros((64, 64, 3), np.uint8), rowsperstrip=64, compression="zlib")
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].tags["StripByteCounts"].valueoffset
    content = bytearray(path.read_bytes())
    content[place : place + 4] = (3 << 20).to_bytes(4, "little")
    path.write_bytes(content + bytes(4 << 20))
    with BigPicture(path) as picture, pytest.raises(ImageError, match="a part of 3145728 bytes, which has 12288"):
        picture.rows(0, 64)


def test_rows_that_can_only_be_decoded_all_at_once_are_refused_where_they_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff_form, "MAX_BAND", 20_000)
    pixels = noise(100, 100)
    with pytest.raises(ImageError, match=r"its rows can only be decoded 100 at once.*smaller strips or tiles"):
        BigPicture(write(tmp_path / "strip.tif", pixels, rowsperstrip=100, compression="zlib"))
    for form in ({}, {"rowsperstrip": 10, "compression": "zlib"}, {"tile": (32, 32), "compression": "zlib"}):
        with BigPicture(write(tmp_path / "good.tif", pixels, **form)) as picture:
            np.testing.assert_array_equal(in_parts(picture, 30), pixels)


def test_a_big_picture_is_a_tiff_of_many_pixels(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.TIFF", noise(40, 50), tile=(16, 16))
    assert is_big(path, above_px=1999)
    assert is_big(str(path), above_px=1999)
    assert is_big(Page(path, 0), above_px=1999)
    assert not is_big(path, above_px=2000)
    assert not is_big(noise(40, 50), above_px=0)
    assert not is_big(b"II*\0", above_px=0)
    assert not is_big(tmp_path / "missing.tif", above_px=0)
    PillowImage.fromarray(noise(40, 50)).save(tmp_path / "photo.png")
    assert not is_big(tmp_path / "photo.png", above_px=0)


@pytest.mark.parametrize(
    "form",
    [
        {"rowsperstrip": 40, "compression": "zlib"},
        {"extratags": [(274, "H", 1, 6, True)]},
        {"photometric": "miniswhite"},
        {"compression": "lzw"},
    ],
)
def test_a_big_picture_is_big_in_a_form_that_is_not_read_by_rows_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: dict[str, Any]
) -> None:
    if form.get("compression") == "lzw":
        pytest.importorskip("imagecodecs")  # to write it
    path = write(tmp_path / "scan.tif", noise(40, 50, channels=1), **form)
    monkeypatch.setattr(tiff_form, "MAX_BAND", 1000)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(ImageError):
        BigPicture(path)
    assert is_big(path, above_px=1999)
    assert not is_big(path, above_px=2000)


def test_tifffile_is_imported_when_a_tiff_is_opened_and_not_before() -> None:
    assert not hasattr(big_pictures, "tifffile")
    assert not hasattr(tiff_form, "tifffile")
