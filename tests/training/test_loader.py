import dataclasses
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.errors import DatasetError
from segship.runtime.palettes import DEMO
from segship.runtime.preprocess import Depth, Preprocess
from segship.training.data import Sample
from segship.training.data.camvid import open_camvid
from segship.training.loader import PixelsAndLabels, batches, channel_statistics, training_loader


class Pictures:
    """A dataset of the pictures it is given, whose labels are all void but for a corner."""

    classes = DEMO

    def __init__(self, images: list[NDArray[np.integer]], depth: Depth = "uint8") -> None:
        self.images, self.depth, self.channels = images, depth, images[0].shape[2]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        labels = np.full(self.images[index].shape[:2], 255, np.uint8)
        labels[:4, :4] = 3
        return Sample(str(index), self.images[index], labels)


def _form(size: tuple[int, int], channels: int = 3, depth: Depth = "uint8") -> Preprocess:
    order = "RGB" if channels == 3 else "grey"
    return Preprocess(size, channels, depth, color_order=order, mean=(0.0,) * channels, std=(1.0,) * channels)


def _numbered(count: int) -> Pictures:
    return Pictures([np.full((8, 8, 3), number, np.uint8) for number in range(count)])


def _order(dataset: Pictures, *, batch_size: int = 2, workers: int = 0, seed: int = 0) -> list[list[int]]:
    loader = training_loader(dataset, _form((8, 8)), batch_size=batch_size, workers=workers, seed=seed)
    return [pixels[:, 0, 0, 0].tolist() for pixels, _ in loader]


def test_pixels_are_those_of_the_runtimes_geometry(write_camvid: Callable[..., Path], tmp_path: Path) -> None:
    dataset = open_camvid(str(write_camvid(tmp_path / "camvid", size=(45, 61)))).train
    form = _form((24, 32))
    pixels, labels = PixelsAndLabels(dataset, form)[1]
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 24, 32))
    assert (labels.dtype, labels.shape) == (torch.uint8, (24, 32))
    sample = dataset[1]
    expected = cv2.resize(sample.image, (32, 24), interpolation=cv2.INTER_LINEAR_EXACT)
    np.testing.assert_array_equal(pixels.numpy().transpose(1, 2, 0), expected)
    nearest = cv2.resize(sample.labels, (32, 24), interpolation=cv2.INTER_NEAREST_EXACT)
    np.testing.assert_array_equal(labels.numpy(), nearest)


def test_a_16_bit_picture_keeps_all_its_values() -> None:
    image = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    pixels, _ = PixelsAndLabels(Pictures([image], "uint16"), _form((256, 256), 1, "uint16"))[0]
    assert pixels.dtype == torch.int32
    np.testing.assert_array_equal(pixels.numpy()[0], image[..., 0])


def test_an_epoch_goes_once_over_all_pictures_in_an_order_that_the_seed_gives() -> None:
    order = _order(_numbered(8), seed=1)
    pictures = [picture for batch in order for picture in batch]
    assert sorted(pictures) == list(range(8))
    assert pictures != list(range(8))
    assert order == _order(_numbered(8), seed=1)
    assert order != _order(_numbered(8), seed=2)


def test_every_epoch_has_another_order() -> None:
    loader = training_loader(_numbered(8), _form((8, 8)), batch_size=2, workers=0, seed=0)
    first, second = ([pixels[:, 0, 0, 0].tolist() for pixels, _ in loader] for _ in range(2))
    assert first != second


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # newer Pythons warn of forking beside torch's threads
def test_worker_processes_give_the_same_batches() -> None:
    assert _order(_numbered(8), workers=1, seed=3) == _order(_numbered(8), workers=0, seed=3)


@pytest.mark.parametrize(("pictures", "batches"), [(5, [2, 2]), (4, [2, 2]), (2, [2]), (1, [1])])
def test_a_smaller_last_batch_is_left_out_only_if_there_are_others(pictures: int, batches: list[int]) -> None:
    assert [len(batch) for batch in _order(_numbered(pictures))] == batches


@pytest.mark.parametrize(("channels", "depth", "full"), [(3, "uint8", 255), (1, "uint8", 255), (1, "uint16", 65535)])
def test_statistics_are_those_of_all_pixels_as_shares_of_full_scale(channels: int, depth: Depth, full: int) -> None:
    rng = np.random.default_rng(5)
    images = [rng.integers(0, full // (k + 1), (12, 10, channels), depth) for k in range(5)]
    mean, std = channel_statistics(Pictures(images, depth), _form((12, 10), channels, depth))
    every = np.stack(images).reshape(-1, channels).astype(np.float64) / full
    np.testing.assert_allclose(mean, every.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(std, every.std(axis=0), atol=1e-6)


def test_statistics_are_taken_at_the_networks_size() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[::2] = 255  # stripes that halving the size melts to grey
    form = _form((16, 16))
    assert channel_statistics(Pictures([image]), form)[1] == pytest.approx((0.5,) * 3, abs=1e-3)
    halved = channel_statistics(Pictures([image]), dataclasses.replace(form, size=(8, 16)))[1]
    assert halved == (0.001,) * 3


def test_a_constant_channel_is_not_blown_up() -> None:
    image = np.full((4, 4, 3), 77, np.uint8)
    mean, std = channel_statistics(Pictures([image, image]), _form((4, 4)))
    assert mean == pytest.approx((77 / 255,) * 3, abs=1e-6)
    assert std == (0.001,) * 3


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12 and later; PyTorch forks all the same
def test_a_bad_sample_is_the_datasets_own_error_whoever_reads_it(
    write_camvid: Callable[..., Path], tmp_path: Path, workers: int
) -> None:
    tree = write_camvid(tmp_path / "camvid")
    mask = min((tree / "trainannot").iterdir())
    PillowImage.new("L", (40, 32), 99).save(mask)
    dataset = open_camvid(str(tree)).train
    loader = training_loader(dataset, _form((8, 8)), batch_size=2, workers=workers, seed=0)
    with pytest.raises(DatasetError, match=r"label id 99 is outside the classes 0…11 \(1280 pixels") as caught:
        list(batches(loader))
    assert "Traceback" not in str(caught.value)
