import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.training.data import open_dataset
from segship.training.data.sheet import CELL_HEIGHT_PX, CELL_WIDTH_PX, PICTURES_A_PART, draw_contact_sheet

GAP, TITLES = 4, 24
CLASSES = [{"id": 0, "name": "black", "color": [0, 0, 0]}, {"id": 1, "name": "green", "color": [0, 200, 0]}]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Five training pictures and one test picture of different sizes, all grey 100; a third each black, green, void."""
    for part, count in (("train", 5), ("test", 1)):
        for folder in ("images", "masks"):
            (tmp_path / f"{part}_data" / folder).mkdir(parents=True)
        for number in range(count):
            height, width = 30 + 100 * number, 60 + 300 * (number == 1)
            PillowImage.new("RGB", (width, height), (100, 100, 100)).save(tmp_path / f"{part}_data/images/{number}.png")
            mask = np.repeat(np.array([0, 1, 255], np.uint8), width // 3)
            PillowImage.fromarray(np.tile(mask, (height, 1))).save(tmp_path / f"{part}_data/masks/{number}.png")
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    return tmp_path


def _draw(tree: Path) -> NDArray[np.uint8]:
    draw_contact_sheet(open_dataset(f"folder:{tree}"), tree / "sheet.png")
    return np.asarray(PillowImage.open(tree / "sheet.png"))


def _cell(sheet: NDArray[np.uint8], row: int, column: int) -> NDArray[np.uint8]:
    top, left = TITLES + row * (CELL_HEIGHT_PX + GAP), column * (CELL_WIDTH_PX + GAP)
    return sheet[top : top + CELL_HEIGHT_PX, left : left + CELL_WIDTH_PX]


def test_pictures_of_all_sizes_lie_in_cells_of_one_size_photo_beside_truth(tree: Path) -> None:
    sheet = _draw(tree)
    assert sheet.shape == (TITLES + PICTURES_A_PART * (CELL_HEIGHT_PX + GAP), 4 * (CELL_WIDTH_PX + GAP), 3)
    assert (sheet[:TITLES] < 128).any(), "the columns should have titles"
    for row in range(PICTURES_A_PART):
        photo, truth = _cell(sheet, row, 0), _cell(sheet, row, 1)
        covered = (photo == 100).all(axis=2)
        assert covered.any()
        assert (photo[~covered] == 255).all()
        assert (truth[~covered] == 255).all()
        rows, columns = np.nonzero(covered)
        assert np.ptp(rows) + 1 == CELL_HEIGHT_PX or np.ptp(columns) + 1 == CELL_WIDTH_PX


def test_truth_shows_colours_and_void_is_hatched_so_that_it_is_told_from_black(tree: Path) -> None:
    truth = _cell(_draw(tree), 0, 1)  # 30 × 60, enlarged to 160 × 320
    black, green, void = (truth[100:140, left : left + 80] for left in (10, 117, 230))
    assert (black == 50).all()
    assert (green == (50, 150, 50)).all()
    assert set(map(tuple, void.reshape(-1, 3).tolist())) == {(100, 100, 100), (255, 255, 255)}
    assert 0.2 < (void == 255).mean() < 0.3


def test_places_without_a_picture_are_white(tree: Path) -> None:
    sheet = _draw(tree)
    assert (_cell(sheet, 0, 2) == 100).any()
    for row in range(1, PICTURES_A_PART):
        assert (_cell(sheet, row, 2) == 255).all()


def test_a_picture_that_cannot_be_used_is_left_out(tree: Path) -> None:
    (tree / "test_data/images/0.png").write_bytes(b"?")
    sheet = _draw(tree)
    assert (_cell(sheet, 0, 2) == 255).all()
    assert (_cell(sheet, 0, 0) == 100).any()


def test_grey_16_bit_pictures_are_drawn_too(tmp_path: Path) -> None:
    draw_contact_sheet(open_dataset("demo:grey16"), tmp_path / "sheet.png")
    photo = _cell(np.asarray(PillowImage.open(tmp_path / "sheet.png")), 3, 2)
    assert photo.std() > 20
