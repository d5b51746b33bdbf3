from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from segship.export.calibration import MEASURED, open_calibration
from segship.runtime.errors import DatasetError, ImageError, LossyConversionError
from segship.runtime.model_file import read_card


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(10):
        PillowImage.fromarray(np.full((4, 5, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path


def test_of_a_folder_damage_is_measured_on_the_pictures_that_ranges_do_not_come_from(
    folder: Path, tiny_model: Path
) -> None:
    pictures = open_calibration(str(folder), read_card(tiny_model), images=4)
    ranges, measured = ([int(image[0, 0, 0]) for image, _ in part] for part in (pictures.ranges, pictures.measured))
    assert len(ranges) == 4
    assert sorted(ranges + measured) == list(range(10))
    assert not pictures.labelled
    assert {labels for _, labels in pictures.measured} == {None}


def test_a_small_folder_serves_for_both(folder: Path, tiny_model: Path) -> None:
    pictures = open_calibration(str(folder), read_card(tiny_model), images=20)
    assert len(pictures.ranges) == len(pictures.measured) == 10


def test_of_a_dataset_ranges_come_from_training_and_damage_from_validation(tiny_model: Path) -> None:
    pictures = open_calibration("demo", read_card(tiny_model), images=5)
    assert (len(pictures.ranges), len(pictures.measured)) == (5, min(60, MEASURED))
    assert pictures.labelled
    image, labels = next(iter(pictures.measured))
    assert labels is not None
    assert labels.shape == image.shape[:2]
    assert not np.array_equal(next(iter(pictures.ranges))[0], image)


def test_pictures_are_read_when_they_are_asked_for(folder: Path, tiny_model: Path) -> None:
    pictures = open_calibration(str(folder), read_card(tiny_model), images=2)
    (folder / "0.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"0\.png"):
        list(pictures.ranges)


def test_a_lossy_conversion_must_be_asked_for(tmp_path: Path, tiny_model: Path) -> None:
    PillowImage.fromarray(np.full((4, 5), 700, np.uint16)).save(tmp_path / "deep.png")
    card = read_card(tiny_model)
    with pytest.raises(LossyConversionError):
        list(open_calibration(str(tmp_path), card, images=1).ranges)
    ((image, _),) = open_calibration(str(tmp_path), card, images=1, convert=["depth"]).ranges
    assert image.dtype == np.uint8


@pytest.mark.parametrize(("data", "said"), [("nowhere", "no such folder"), ("demo:grey8", "channels")])
def test_what_cannot_calibrate_the_model_is_refused(data: str, said: str, tiny_model: Path) -> None:
    with pytest.raises(DatasetError, match=said):
        open_calibration(data, read_card(tiny_model), images=4)
