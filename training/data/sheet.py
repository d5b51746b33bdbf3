"""A picture of a dataset: some photos, and the classes of each laid over it."""

from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.runtime.card import ModelCard
from segship.runtime.errors import DatasetError
from segship.runtime.preprocess import Preprocess
from segship.runtime.render import RgbImage, contact_sheet, displayable, overlay_image, write_rgb
from segship.training.data import IGNORE_INDEX, Dataset, Split, spread_evenly

PICTURES_A_PART: Final = 4
CELL_HEIGHT_PX: Final = 240
CELL_WIDTH_PX: Final = 320


def draw_contact_sheet(split: Split, path: Path) -> None:
    """Draw four pictures of each part, spread over it: the photo, and its classes laid over it, void hatched.

    Pictures that cannot be used are left out: ``check_dataset`` says what is wrong with them.

    Args:
        split: the dataset. Its pictures may differ in size.
        path: of the PNG to write.

    Raises:
        OutputError: if it cannot be written.
    """
    rows = [train + val for train, val in zip(_draw_part(split.train), _draw_part(split.val), strict=True)]
    titles = ["train", "train: truth (void hatched)", "val", "val: truth (void hatched)"]
    write_rgb(path, contact_sheet(rows, titles, cell_height_px=CELL_HEIGHT_PX))


def _draw_part(dataset: Dataset) -> list[list[RgbImage]]:
    """Draw photo and truth of each of four pictures, white where the part has fewer that can be used."""
    card = ModelCard(dataset.classes.names, dataset.classes.palette, Preprocess((1, 1)))  # for its colours
    rows: list[list[RgbImage]] = []
    for index in spread_evenly(len(dataset), PICTURES_A_PART):
        try:
            sample = dataset[index]
        except DatasetError:
            continue
        truth = _fitted(overlay_image(sample.image, sample.labels, card), 255)
        void = _fitted(np.where(sample.labels == IGNORE_INDEX, np.uint8(255), np.uint8(0)), 0) > 127
        rows.append([_fitted(displayable(sample.image), 255), _hatched(truth, void)])
    blank = np.full((CELL_HEIGHT_PX, CELL_WIDTH_PX, 3), 255, np.uint8)
    return rows + [[blank, blank]] * (PICTURES_A_PART - len(rows))


def _fitted(picture: NDArray[np.uint8], background: int) -> NDArray[np.uint8]:
    """Scale a picture (H, W) or (H, W, 3) to fit into a cell, and centre it there."""
    height, width = picture.shape[:2]
    scale = min(CELL_HEIGHT_PX / height, CELL_WIDTH_PX / width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    scaled = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    cell = np.full((CELL_HEIGHT_PX, CELL_WIDTH_PX, *picture.shape[2:]), background, np.uint8)
    top, left = (CELL_HEIGHT_PX - size[1]) // 2, (CELL_WIDTH_PX - size[0]) // 2
    cell[top : top + size[1], left : left + size[0]] = scaled
    return cell


def _hatched(picture: RgbImage, where: NDArray[np.bool_]) -> RgbImage:
    """Draw white stripes over part of a picture: a class may well be black, as void is."""
    rows, columns = np.indices(where.shape)
    picture[where & ((rows + columns) % 8 < 2)] = 255
    return picture
