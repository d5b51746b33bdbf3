import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from segship.training.crops import Cropper
from segship.training.data import Sample

RARE = 2
VOID = 255


def _sample(height: int, width: int, channels: int = 3) -> Sample:
    """Return a picture whose pixels tell where they are, all of class 0."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, rows + columns][:channels], axis=2).astype(np.uint16)
    return Sample("picture", image, np.zeros((height, width), np.uint8))


def _with(sample: Sample, *places: tuple[int, int, int]) -> Sample:
    for row, column, class_id in places:
        sample.labels[row, column] = class_id
    return sample


def _corner(image: NDArray[np.integer]) -> tuple[int, int]:
    return int(image[0, 0, 0]), int(image[0, 0, 1])


@given(
    sides=st.tuples(*[st.integers(1, 40)] * 4), seed=st.integers(0, 2**32), rare_share=st.sampled_from([0.0, 0.5, 1.0])
)
def test_a_part_lies_inside_the_picture_and_picture_and_labels_stay_together(
    sides: tuple[int, ...], seed: int, rare_share: float
) -> None:
    height, width, *size = sides
    sample = _sample(height, width)
    sample.labels[:] = np.random.default_rng(seed).integers(0, 4, (height, width))
    labels_before = sample.labels.copy()
    cropper = Cropper((size[0], size[1]), rare_share, (0.5, 1, 2, 0))
    image, labels = cropper(sample, np.random.default_rng(seed))
    assert (image.shape, labels.shape) == ((*size, 3), tuple(size))
    assert (image.dtype, labels.dtype) == (np.uint16, np.uint8)
    top, left = _corner(image)
    rows, columns = min(height, size[0]), min(width, size[1])
    assert top + rows <= height
    assert left + columns <= width
    np.testing.assert_array_equal(image[:rows, :columns], sample.image[top : top + rows, left : left + columns])
    np.testing.assert_array_equal(labels[:rows, :columns], sample.labels[top : top + rows, left : left + columns])
    assert np.all(labels[rows:] == VOID)
    assert np.all(labels[:, columns:] == VOID)
    np.testing.assert_array_equal(sample.labels, labels_before)
    again = cropper(sample, np.random.default_rng(seed))
    np.testing.assert_array_equal(again[0], image)
    np.testing.assert_array_equal(again[1], labels)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_smaller_picture_is_continued_by_its_edge_and_by_void(channels: int) -> None:
    sample = _sample(3, 4, channels)
    image, labels = Cropper((5, 6), 1.0, (1,))(sample, np.random.default_rng(0))
    np.testing.assert_array_equal(image, np.pad(sample.image, ((0, 2), (0, 2), (0, 0)), "edge"))
    np.testing.assert_array_equal(labels, np.pad(sample.labels, ((0, 2), (0, 2)), constant_values=VOID))


@given(row=st.integers(0, 29), column=st.integers(0, 39), seed=st.integers(0, 2**32))
def test_the_pixel_that_is_favoured_lies_in_the_part(row: int, column: int, seed: int) -> None:
    sample = _with(_sample(30, 40), (row, column, RARE))
    _, labels = Cropper((7, 9), 1.0, (0, 0, 1))(sample, np.random.default_rng(seed))
    assert RARE in labels


def test_the_pixel_that_is_favoured_lies_anywhere_in_the_part() -> None:
    sample = _with(_sample(30, 40), (15, 20, RARE))
    cropper = Cropper((3, 4), 1.0, (0, 0, 1))
    parts = [cropper(sample, np.random.default_rng(seed))[1] for seed in range(300)]
    assert {tuple(np.argwhere(labels == RARE)[0]) for labels in parts} == {(r, c) for r in range(3) for c in range(4)}


def test_parts_that_favour_nothing_lie_anywhere_up_to_the_borders() -> None:
    sample, cropper = _sample(6, 7), Cropper((4, 4), 0.0, (1,))
    corners = {_corner(cropper(sample, np.random.default_rng(seed))[0]) for seed in range(300)}
    assert corners == {(row, column) for row in range(3) for column in range(4)}


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_of_parts_that_favour_rare_classes_is_the_one_asked_for(share: float) -> None:
    sample = _with(_sample(100, 100), (50, 50, RARE))
    cropper = Cropper((10, 10), share, (0, 0, 1))
    hits = [RARE in cropper(sample, np.random.default_rng(seed))[1] for seed in range(800)]
    by_chance = (10 / 91) ** 2
    assert np.mean(hits) == pytest.approx(share + (1 - share) * by_chance, abs=0.045)


def test_classes_are_drawn_by_their_rarity_and_their_pixels_evenly() -> None:
    sample = _sample(60, 60)
    sample.labels[:30] = 1
    sample.labels[40, ::2] = RARE  # 30 pixels
    sample.labels[50, 3] = RARE
    cropper = Cropper((1, 1), 1.0, (0, 1, 3, 100))  # class 3 is not there
    corners = [_corner(cropper(sample, np.random.default_rng(seed))[0]) for seed in range(1200)]
    rare = [corner for corner in corners if corner[0] >= 40]
    assert len(rare) / len(corners) == pytest.approx(0.75, abs=0.05)
    assert set(rare) == {(40, column) for column in range(0, 60, 2)} | {(50, 3)}
    assert rare.count((50, 3)) / len(rare) == pytest.approx(1 / 31, abs=0.02)
    common = np.array([corner for corner in corners if corner[0] < 40])
    assert common[:, 0].max() < 30
    np.testing.assert_allclose(common.mean(axis=0), (14.5, 29.5), atol=3.5)


@pytest.mark.parametrize("labels", [0, VOID])
def test_a_picture_without_any_class_that_counts_gives_parts_from_anywhere(labels: int) -> None:
    sample = _sample(20, 20)
    sample.labels[:] = labels
    cropper = Cropper((5, 5), 1.0, (0, 1, 1))
    assert len({_corner(cropper(sample, np.random.default_rng(seed))[0]) for seed in range(50)}) > 30


def test_labels_that_are_no_block_of_memory_of_their_own_are_taken_too() -> None:
    sample = _with(_sample(40, 40), (20, 20, RARE))
    labels = sample.labels[::-1, ::2]
    labels.setflags(write=False)
    part = Cropper((5, 5), 1.0, (0, 0, 1))(Sample("view", sample.image[::-1, ::2], labels), np.random.default_rng(0))
    assert RARE in part[1]
