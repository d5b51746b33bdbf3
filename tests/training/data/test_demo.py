import hashlib
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from segship.runtime.errors import DatasetError
from segship.runtime.palettes import DEMO
from segship.training.data import IGNORE_INDEX, Dataset, Split, open_dataset
from segship.training.data.demo import HEIGHT_PX, TRAIN_COUNT, VAL_COUNT, WIDTH_PX, open_demo
from segship.training.metrics import ConfusionMatrix

VARIANTS = {"": (3, np.uint8), "grey8": (1, np.uint8), "grey16": (1, np.uint16)}
DIGEST_IN_A_FRESH_PROCESS = """
import hashlib
from segship.training.data.demo import open_demo
sample = open_demo("{variant}", seed=7).val[11]
print(hashlib.sha256(sample.image.tobytes() + sample.labels.tobytes()).hexdigest())
"""

Pixels = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Pictures (N, H, W, 3) and labels (N, H, W)."""


@pytest.fixture(scope="module")
def split() -> Split:
    return open_demo("")


@pytest.fixture(scope="module")
def train_pixels(split: Split) -> Pixels:
    return _pixels(split.train, range(0, TRAIN_COUNT, 4))


@pytest.fixture(scope="module")
def val_pixels(split: Split) -> Pixels:
    return _pixels(split.val, range(VAL_COUNT))


@pytest.mark.parametrize("variant", VARIANTS)
def test_pictures_have_the_variants_size_channels_and_depth(variant: str) -> None:
    channels, dtype = VARIANTS[variant]
    split = open_demo(variant)
    assert (len(split.train), len(split.val)) == (TRAIN_COUNT, VAL_COUNT)
    for dataset in (split.train, split.val):
        sample = dataset[0]
        assert sample.image.shape == (HEIGHT_PX, WIDTH_PX, channels)
        assert sample.image.dtype == dtype
        assert sample.labels.shape == (HEIGHT_PX, WIDTH_PX)
        assert sample.labels.dtype == np.uint8
        assert (dataset.channels, dataset.depth, dataset.classes) == (channels, np.dtype(dtype).name, DEMO)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_picture_is_the_same_in_every_object_and_process(variant: str) -> None:
    sample = open_demo(variant, seed=7).val[11]
    after_others = open_demo(variant, seed=7).val
    for index in (3, 11, 12):
        after_others[index]
    again = after_others[11]
    assert again.name == sample.name
    np.testing.assert_array_equal(again.image, sample.image)
    np.testing.assert_array_equal(again.labels, sample.labels)
    elsewhere = subprocess.run(
        [sys.executable, "-c", DIGEST_IN_A_FRESH_PROCESS.format(variant=variant)],
        capture_output=True,
        text=True,
        check=True,
    )
    here = hashlib.sha256(sample.image.tobytes() + sample.labels.tobytes()).hexdigest()
    assert elsewhere.stdout.strip() == here


def test_seeds_parts_and_indices_give_different_scenes(split: Split) -> None:
    samples = [split.train[0], split.train[1], split.val[0], open_demo("", seed=1).train[0]]
    assert len({sample.image.tobytes() for sample in samples}) == len(samples)
    assert len({sample.labels.tobytes() for sample in samples}) == len(samples)


def test_all_variants_have_the_same_labels(split: Split) -> None:
    for variant in VARIANTS:
        np.testing.assert_array_equal(open_demo(variant).train[5].labels, split.train[5].labels)


def test_writing_into_a_sample_spoils_no_later_one(split: Split) -> None:
    before = split.train[2].image.copy()
    spoilt = split.train[2]
    spoilt.image[:] = 0
    spoilt.labels[:] = IGNORE_INDEX
    np.testing.assert_array_equal(split.train[2].image, before)
    assert split.train[2].labels.max() < len(DEMO)


def test_going_through_a_part_ends_after_its_last_picture(split: Split) -> None:
    with pytest.raises(IndexError):
        split.val[VAL_COUNT]


def test_labels_are_the_classes_and_nothing_else(train_pixels: Pixels, val_pixels: Pixels) -> None:
    for _, labels in (train_pixels, val_pixels):
        np.testing.assert_array_equal(np.unique(labels), np.arange(len(DEMO)))


def test_every_class_covers_at_least_one_percent_of_both_parts(train_pixels: Pixels, val_pixels: Pixels) -> None:
    for _, labels in (train_pixels, val_pixels):
        shares = np.bincount(labels.ravel(), minlength=len(DEMO)) / labels.size
        assert shares.min() >= 0.01, dict(zip(DEMO.names, shares, strict=True))


def test_16_bit_pictures_hold_more_than_8_bits() -> None:
    dataset = open_demo("grey16").val
    for index in range(8):
        image = dataset[index].image
        assert len(np.unique(image)) > 256
        assert len(np.unique(image >> 8)) < 64  # what an 8-bit reader would be left with


def test_the_nearest_mean_colour_does_not_tell_the_classes(train_pixels: Pixels, val_pixels: Pixels) -> None:
    pictures, labels = train_pixels
    means = np.stack([pictures[labels == class_id].mean(axis=0) for class_id in range(len(DEMO))])

    def nearest(image: NDArray[np.uint8]) -> NDArray[np.intp]:
        return np.asarray(np.square(image[..., None, :] - means).sum(axis=-1).argmin(axis=-1))

    assert _miou(nearest, val_pixels) < 0.45


def test_the_likeliest_class_of_each_colour_does_not_tell_them_either(train_pixels: Pixels, val_pixels: Pixels) -> None:
    pictures, labels = train_pixels
    counts = np.zeros((16, 16, 16, len(DEMO)), np.int64)
    np.add.at(counts, (*np.moveaxis(pictures >> 4, -1, 0), labels), 1)

    def likeliest(image: NDArray[np.uint8]) -> NDArray[np.intp]:
        return np.asarray(counts[tuple(np.moveaxis(image >> 4, -1, 0))].argmax(axis=-1))

    assert _miou(likeliest, val_pixels) < 0.45


@pytest.mark.parametrize("place", ["grey32", "GREY8", "/some/folder", " "])
def test_an_unknown_variant_is_refused_naming_the_known_ones(place: str) -> None:
    with pytest.raises(DatasetError, match=r"demo:grey8.*demo:grey16") as caught:
        open_dataset(f"demo:{place}")
    assert repr(place)[1:-1] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(DatasetError, match="seed is -1"):
        open_demo("", seed=-1)


def _pixels(dataset: Dataset, indices: range) -> Pixels:
    samples = [dataset[index] for index in indices]
    return np.stack([sample.image for sample in samples]), np.stack([sample.labels for sample in samples])


def _miou(classify: Callable[[NDArray[np.uint8]], NDArray[np.intp]], pixels: Pixels) -> float:
    matrix = ConfusionMatrix(len(DEMO), IGNORE_INDEX)
    for image, labels in zip(*pixels, strict=True):
        matrix.add(labels, classify(image))
    return matrix.scores().miou
