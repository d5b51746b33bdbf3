"""A sheet that shows what a run makes of its pictures and masks."""

from pathlib import Path
from typing import Final

import numpy as np
from torch import Tensor

from segship.runtime.card import ModelCard
from segship.runtime.preprocess import Image
from segship.runtime.render import RgbImage, color_image, contact_sheet, displayable, overlay_image, write_rgb
from segship.training.augment import Augmentation
from segship.training.config import TrainConfig
from segship.training.data import spread_evenly
from segship.training.loader import Loader, augmentation_seeds
from segship.training.setup import Setup

SHEET_SAMPLES: Final = 4
SHEET_EPOCHS: Final = 3


def draw_preview(path: Path, config: TrainConfig, setup: Setup) -> None:
    """Draw a few pictures, spread over the training part: photo | truth | what the first epochs make of them.

    Crops and augmentations are those that the run itself draws.

    Args:
        path: of the PNG.
        config: of the run.
        setup: made from it.
    """
    card, train = setup.card, setup.split.train
    augment = Augmentation.for_card(config.augment, card)
    indices = spread_evenly(len(train), SHEET_SAMPLES)
    keys = [[(config.seed, epoch, index) for epoch in range(1, SHEET_EPOCHS + 1)] for index in indices]
    rows: list[list[RgbImage]] = []
    with Loader(train, card.preprocess, setup.cropper(config), workers=1, cache_mb=0) as loader:
        for index, batch in zip(indices, loader.batches(keys), strict=True):
            sample = train[index]
            row = [displayable(sample.image), color_image(sample.labels, card)]
            varied = augment(batch.pixels, batch.labels, augmentation_seeds(batch.keys))
            for pixels, labels in zip(*varied, strict=True):
                picture = _as_image(pixels, card)
                row += [displayable(picture), overlay_image(picture, labels.numpy(), card)]
            rows.append(row)
    epochs = [title for epoch in range(1, SHEET_EPOCHS + 1) for title in (f"epoch {epoch}", "with its mask")]
    write_rgb(path, contact_sheet(rows, ["photo", "truth", *epochs]))


def _as_image(pixels: Tensor, card: ModelCard) -> Image:
    image: Image = np.rint(pixels.permute(1, 2, 0).numpy()).astype(card.preprocess.depth)
    return image
