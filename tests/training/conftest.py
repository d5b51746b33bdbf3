"""Small CamVid trees, written in the forms that CamVid is passed around in."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

WriteCamVid = Callable[..., Path]

TWELVE_COLORS = [
    (128, 128, 128),  # Sky
    (128, 0, 0),  # Building
    (192, 192, 128),  # Pole
    (128, 64, 128),  # Road
    (60, 40, 222),  # Pavement
    (128, 128, 0),  # Tree
    (192, 128, 128),  # SignSymbol
    (64, 64, 128),  # Fence
    (64, 0, 128),  # Car
    (64, 64, 0),  # Pedestrian
    (0, 128, 192),  # Bicyclist
    (0, 0, 0),  # Unlabelled
]


@pytest.fixture(scope="session")
def write_camvid() -> WriteCamVid:
    """Write a tree of pictures and masks in patches of 8 pixels, some of them void: there is something to learn.

    ``masks`` is ``index`` (``trainannot/``, grey ids, 11 void) or ``color`` (``train_labels/``, ``_L`` after the name).
    The patches are the same in both forms.
    """

    def write(
        root: Path, *, masks: str = "index", train: int = 6, val: int = 3, size: tuple[int, int] = (32, 40)
    ) -> Path:
        rng = np.random.default_rng(11)
        colors = np.array(TWELVE_COLORS, np.uint8)
        for part, count in (("train", train), ("val", val)):
            folder = root / (f"{part}annot" if masks == "index" else f"{part}_labels")
            (root / part).mkdir(parents=True)
            folder.mkdir()
            for number in range(count):
                patches = rng.integers(0, len(colors), (size[0] // 8 + 1, size[1] // 8 + 1), np.uint8)
                ids = np.kron(patches, np.ones((8, 8), np.uint8))[: size[0], : size[1]]
                noise = rng.integers(-12, 13, (*size, 3))
                picture = np.clip(20 * ids[..., None].astype(int) + np.array([0, 10, 30]) + noise, 0, 255)
                PillowImage.fromarray(picture.astype(np.uint8)).save(root / part / f"seq_{number:03}.png")
                mask, suffix = (ids, "") if masks == "index" else (colors[ids], "_L")
                PillowImage.fromarray(mask).save(folder / f"seq_{number:03}{suffix}.png")
        return root

    return write


@pytest.fixture
def index_tree(write_camvid: WriteCamVid, tmp_path: Path) -> Path:
    """A CamVid of 6 and 3 pictures, 32×40, with index masks."""
    return write_camvid(tmp_path / "camvid")


@pytest.fixture
def color_tree(write_camvid: WriteCamVid, tmp_path: Path) -> Path:
    """The same with colour masks of the 12-colour table, and no class_dict.csv."""
    return write_camvid(tmp_path / "camvid", masks="color")
