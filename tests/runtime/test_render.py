import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.card import ModelCard
from segship.runtime.errors import OutputError
from segship.runtime.preprocess import Preprocess
from segship.runtime.render import (
    color_image,
    contact_sheet,
    cutout_image,
    displayable,
    overlay_image,
    side_by_side_image,
    write_mask,
    write_pixels,
    write_rgb,
)

RNG = np.random.default_rng(3)
CARD = ModelCard(("a", "b", "c"), ((10, 20, 30), (200, 0, 7), (0, 255, 0)), Preprocess((4, 4)))
LABELS = RNG.integers(0, 3, (20, 30), np.uint8)
IMAGE = RNG.integers(0, 256, (20, 30, 3), np.uint8)
DISK_WITHOUT_ROOM = """
import resource, sys
from pathlib import Path
import numpy as np
from segship.runtime.errors import OutputError
from segship.runtime.render import write_rgb
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_rgb(Path(sys.argv[1]), np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8))
except OutputError as error:
    print(error)
"""


def card_of(num_classes: int) -> ModelCard:
    colors = tuple((i % 256, i // 256, 7) for i in range(num_classes))
    return ModelCard(tuple(map(str, range(num_classes))), colors, Preprocess((4, 4)), ignore_index=65535)


def test_each_class_has_its_colour() -> None:
    np.testing.assert_array_equal(color_image(LABELS, CARD), np.array(CARD.palette, np.uint8)[LABELS])


def test_the_ignore_index_is_black() -> None:
    assert (color_image(np.full((2, 3), 255, np.uint8), CARD) == 0).all()


@pytest.mark.parametrize("num_classes", [256, 257, 1000])
def test_many_classes_have_their_colours_too(num_classes: int) -> None:
    labels = np.arange(num_classes, dtype=np.uint8 if num_classes <= 256 else np.uint16).reshape(1, -1)
    np.testing.assert_array_equal(color_image(labels, card_of(num_classes))[0], card_of(num_classes).palette)


def test_an_overlay_goes_from_the_picture_to_the_colours() -> None:
    np.testing.assert_array_equal(overlay_image(IMAGE, LABELS, CARD, 0), IMAGE)
    np.testing.assert_array_equal(overlay_image(IMAGE, LABELS, CARD, 1), color_image(LABELS, CARD))
    middle = 0.25 * color_image(LABELS, CARD) + 0.75 * IMAGE
    np.testing.assert_allclose(overlay_image(IMAGE, LABELS, CARD, 0.25), middle, atol=0.51)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_an_opacity_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="expected 0…1"):
        overlay_image(IMAGE, LABELS, CARD, alpha)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_overlay_leaves_the_picture_where_there_is_no_class(dtype: type) -> None:
    labels = LABELS.astype(dtype)
    labels[5:9] = 255
    drawn = overlay_image(IMAGE, labels, CARD, 0.5)
    np.testing.assert_array_equal(drawn[5:9], IMAGE[5:9])
    np.testing.assert_array_equal(drawn[:5], overlay_image(IMAGE, LABELS, CARD, 0.5)[:5])


def test_labels_of_16_bits_have_their_colours_whatever_the_number_of_classes() -> None:
    np.testing.assert_array_equal(color_image(LABELS.astype(np.uint16), CARD), color_image(LABELS, CARD))
    assert (color_image(np.full((1, 1), 65535, np.uint16), CARD) == 0).all()


def test_side_by_side_a_grey_16_bit_picture_is_shown_beside_its_colours() -> None:
    deep = IMAGE[..., :1].astype(np.uint16) * 257
    drawn = side_by_side_image(deep, LABELS, CARD)
    np.testing.assert_array_equal(drawn[:, :30], displayable(deep))
    np.testing.assert_array_equal(drawn[:, 30:], color_image(LABELS, CARD))


def test_a_cutout_keeps_nothing_of_what_is_cut_away() -> None:
    opacity = np.where(LABELS == 1, 200, 0).astype(np.uint8)
    cutout = cutout_image(IMAGE, opacity)
    np.testing.assert_array_equal(cutout[..., 3], opacity)
    np.testing.assert_array_equal(cutout[LABELS == 1][:, :3], IMAGE[LABELS == 1])
    assert (cutout[LABELS != 1] == 0).all()


def test_pixels_of_every_form_are_read_back_as_they_were(tmp_path: Path) -> None:
    grey, deep = IMAGE[..., 0], IMAGE[..., 0].astype(np.uint16) * 257
    for number, pixels in enumerate((grey, deep, IMAGE, np.dstack([IMAGE, grey]))):
        write_pixels(tmp_path / f"{number}.png", pixels)
        with PillowImage.open(tmp_path / f"{number}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), pixels)


def test_a_16_bit_picture_is_shown_over_its_own_range() -> None:
    shown = displayable(np.array([[[1000], [1500], [2000]]], np.uint16))
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(shown[0], np.repeat([[0], [128], [255]], 3, axis=1))


def test_a_flat_16_bit_picture_is_shown_black() -> None:
    assert (displayable(np.full((2, 2, 1), 40000, np.uint16)) == 0).all()


def test_a_mask_shows_colours_and_holds_ids(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    write_mask(path, LABELS, CARD)
    with PillowImage.open(path) as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask), LABELS)
        np.testing.assert_array_equal(np.asarray(mask.convert("RGB")), color_image(LABELS, CARD))


def test_a_mask_of_more_than_256_classes_is_16_bit_grey(tmp_path: Path) -> None:
    labels = np.arange(300, dtype=np.uint16).reshape(15, 20)
    write_mask(tmp_path / "mask.png", labels, card_of(300))
    with PillowImage.open(tmp_path / "mask.png") as mask:
        assert mask.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(mask), labels)


def test_a_written_picture_is_read_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "Straße 道路" / "a picture.png"
    write_rgb(path, IMAGE)
    np.testing.assert_array_equal(np.asarray(PillowImage.open(path)), IMAGE)


def test_on_a_disk_without_room_nothing_is_left(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    path = tmp_path / "picture.png"
    path.write_text("what was there")
    done = subprocess.run(
        [sys.executable, "-c", DISK_WITHOUT_ROOM, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"cannot write {path}: ")
    assert [child.name for child in tmp_path.iterdir()] == ["picture.png"]
    assert path.read_text() == "what was there"


def test_a_picture_cannot_be_written_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*overlay\.png: "):
        write_rgb(tmp_path / "file" / "overlay.png", IMAGE)


def test_a_contact_sheet_holds_every_picture_under_its_title() -> None:
    def flat(value: int, size: tuple[int, int] = (90, 60)) -> NDArray[np.uint8]:
        return np.full((*size, 3), value, np.uint8)

    rows = [[flat(10), flat(20)], [flat(30), flat(40)]]
    sheet = contact_sheet(rows, ["photo", "mask"], cell_height_px=30)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (24 + 2 * (30 + 4), 2 * (20 + 4), 3)
    assert [int(sheet[24 + 34 * row + 15, 24 * column + 10, 0]) for row in (0, 1) for column in (0, 1)] == [
        10,
        20,
        30,
        40,
    ]
    assert (sheet[:24] < 100).any()
