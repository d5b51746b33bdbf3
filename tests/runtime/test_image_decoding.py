"""OpenCV decodes what is seen to be whole: what it makes of a file must be what Pillow makes of it, errors too."""

import io
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime import image_decoding
from segship.runtime.errors import ImageError
from segship.runtime.image_decoding import decode_bytes

COARSE = np.random.default_rng(11).integers(0, 256, (9, 12, 3), np.uint8)
PHOTO = cv2.resize(COARSE, (97, 61), interpolation=cv2.INTER_CUBIC)


def encoded(kind: str, pixels: NDArray[np.uint8] = PHOTO, **options: Any) -> bytes:
    file = io.BytesIO()
    PillowImage.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


FILES = {
    "jpeg": encoded("JPEG"),
    "jpeg, full colour": encoded("JPEG", quality=97, subsampling=0),
    "jpeg, 4:2:2": encoded("JPEG", subsampling=1),
    "jpeg with restarts": encoded("JPEG", restart_marker_blocks=3),
    "jpeg of RGB": encoded("JPEG", keep_rgb=True),
    "grey jpeg": encoded("JPEG", PHOTO[..., 0]),
    "webp": encoded("WEBP", quality=60),
    "lossless webp": encoded("WEBP", lossless=True),
}
OTHERS = {
    "progressive jpeg": encoded("JPEG", progressive=True),
    "jpeg with something behind it": encoded("JPEG") + b"\0\0",
    "two jpegs": encoded("JPEG") * 2,
    "webp with alpha": encoded("WEBP", np.dstack([PHOTO, PHOTO[..., 0]])),
    "png": encoded("PNG"),
}


def by_pillow(content: bytes) -> NDArray[Any]:
    pixels = np.asarray(PillowImage.open(io.BytesIO(content)))
    return pixels[..., None] if pixels.ndim == 2 else pixels


@pytest.fixture
def decoded_by_opencv(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether OpenCV decoded, of each picture."""
    calls: list[bool] = []
    decode = image_decoding._decode_whole

    def watched(image: PillowImage.Image, file: io.BytesIO) -> NDArray[Any] | None:
        picture = decode(image, file)
        calls.append(picture is not None)
        return picture

    monkeypatch.setattr(image_decoding, "_decode_whole", watched)
    return calls


@pytest.mark.parametrize("name", [*FILES, *OTHERS])
def test_pixels_are_pillows_whoever_decodes(name: str, decoded_by_opencv: list[bool]) -> None:
    content = (FILES | OTHERS)[name]
    np.testing.assert_array_equal(decode_bytes(content, "a", max_pixels=10_000), by_pillow(content))
    assert decoded_by_opencv == [name in FILES]


def outcome(content: bytes) -> NDArray[Any] | None:
    try:
        return decode_bytes(content, "a", max_pixels=1_000_000)
    except ImageError:
        return None


@pytest.mark.filterwarnings("ignore")  # what Pillow has to say of damaged EXIF data
@settings(max_examples=400, deadline=None)
@given(name=st.sampled_from(sorted(FILES)), data=st.data())
def test_a_damaged_file_is_to_opencv_what_it_is_to_pillow(name: str, data: st.DataObject) -> None:
    content = bytearray(FILES[name])
    values = st.sampled_from([0x00, 0xFF, 0xC4, 0xD0, 0xD9, 0xDA]) | st.integers(0, 255)
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), values), max_size=5)):
        content[at] = value
    damaged = bytes(content[: data.draw(st.sampled_from([len(content)]) | st.integers(1, len(content)))])
    picture = outcome(damaged)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_decoding, "_decode_whole", _leave_to_pillow)
        expected = outcome(damaged)
    assert (picture is None) == (expected is None)
    if expected is not None:
        np.testing.assert_array_equal(picture, expected)


def _leave_to_pillow(image: PillowImage.Image, file: io.BytesIO) -> None:
    return None


@pytest.mark.parametrize("name", sorted(FILES))
def test_whatever_is_missing_at_its_end_is_missed(name: str) -> None:
    for missing in (1, 2, 3, 50, len(FILES[name]) // 2):
        with pytest.raises(ImageError, match="a: damaged picture"):
            decode_bytes(FILES[name][:-missing], "a", max_pixels=10_000)


def test_a_phones_picture_with_others_behind_it_is_itself(write_mpo: Callable[[], bytes]) -> None:
    np.testing.assert_array_equal(decode_bytes(write_mpo(), "a", max_pixels=10_000), by_pillow(FILES["jpeg"]))


@pytest.fixture
def write_mpo() -> Callable[[], bytes]:
    """Encode a JPEG of two pictures, the first of which is the one that is meant."""

    def write() -> bytes:
        file = io.BytesIO()
        first, second = PillowImage.fromarray(PHOTO), PillowImage.fromarray(PHOTO[:30, :40])
        first.save(file, "MPO", save_all=True, append_images=[second])
        return file.getvalue()

    return write
