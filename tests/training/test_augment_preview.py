from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from segship.runtime.card import Network
from segship.runtime.render import RgbImage, color_image, displayable
from segship.training.augment import PRESETS, Augmentation
from segship.training.augment_preview import SHEET_EPOCHS, SHEET_SAMPLES, draw_preview
from segship.training.config import TrainConfig
from segship.training.loader import Loader, augmentation_seeds
from segship.training.progress import Progress
from segship.training.setup import Setup, set_up

TITLE_PX, CELL_PX, GAP_PX = 24, 180, 4


def _drawn(tree: Path, path: Path, **settings: Any) -> tuple[RgbImage, TrainConfig, Setup]:
    network = Network("unet", {"base_channels": 4})
    config = TrainConfig(**{"data": f"camvid:{tree}", "network": network, "batch_size": 2, **settings})
    setup = set_up(config, Progress())
    draw_preview(path, config, setup)
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), np.uint8), config, setup


def _row(sheet: RgbImage, number: int) -> RgbImage:
    top = TITLE_PX + number * (CELL_PX + GAP_PX)
    return sheet[top : top + CELL_PX]


def _cell(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    width = round(picture.shape[1] * CELL_PX / picture.shape[0])
    return np.asarray(cv2.resize(picture, (width, CELL_PX), interpolation=cv2.INTER_NEAREST), np.uint8)


@pytest.mark.parametrize("crop", [None, (16, 24)])
def test_each_row_shows_photo_truth_and_what_the_run_itself_will_see(
    index_tree: Path, tmp_path: Path, crop: tuple[int, int] | None
) -> None:
    sheet, config, setup = _drawn(index_tree, tmp_path / "new/preview.png", crop=crop, seed=5)
    assert len(sheet) == TITLE_PX + SHEET_SAMPLES * (CELL_PX + GAP_PX)
    augment = Augmentation.for_card(config.augment, setup.card)
    for number, index in enumerate((0, 1, 3, 4)):
        sample, row = setup.split.train[index], _row(sheet, number)
        left = 0
        for picture in (displayable(sample.image), color_image(sample.labels, setup.card)):
            cell = _cell(picture)
            np.testing.assert_array_equal(row[:, left : left + cell.shape[1]], cell)
            left += cell.shape[1] + GAP_PX
        for epoch in range(1, SHEET_EPOCHS + 1):
            keys = [(5, epoch, index)]
            with Loader(
                setup.split.train, setup.card.preprocess, setup.cropper(config), workers=1, cache_mb=0
            ) as loader:
                (batch,) = loader.batches([keys])
            pixels, _ = augment(batch.pixels, batch.labels, augmentation_seeds(keys))
            cell = _cell(np.rint(pixels[0].permute(1, 2, 0).numpy()).astype(np.uint8))
            np.testing.assert_allclose(row[:, left : left + cell.shape[1]].astype(int), cell, atol=1)
            left += 2 * (cell.shape[1] + GAP_PX)


def test_without_augmentation_every_epoch_looks_like_the_photo(index_tree: Path, tmp_path: Path) -> None:
    sheet, _, setup = _drawn(index_tree, tmp_path / "preview.png", augment=PRESETS["none"])
    cell = _cell(setup.split.train[0].image)
    step = cell.shape[1] + GAP_PX
    for column in (0, 2, 4, 6):
        np.testing.assert_array_equal(_row(sheet, 0)[:, column * step : column * step + cell.shape[1]], cell)


def test_another_seed_draws_another_sheet_and_the_same_seed_the_same(index_tree: Path, tmp_path: Path) -> None:
    first, again, other = (_drawn(index_tree, tmp_path / "preview.png", seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_fewer_pictures_than_rows_are_all_shown(write_camvid: Any, tmp_path: Path) -> None:
    sheet, _, _ = _drawn(write_camvid(tmp_path / "two", train=2), tmp_path / "preview.png")
    assert len(sheet) == TITLE_PX + 2 * (CELL_PX + GAP_PX)
