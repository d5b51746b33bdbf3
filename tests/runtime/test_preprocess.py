from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

from segship.runtime.errors import CardError, ImageError
from segship.runtime.labels import resize_labels
from segship.runtime.preprocess import FULL_SCALE, Depth, Preprocess

DEPTHS: list[Depth] = ["uint8", "uint16"]
GREY = {"channels": 1, "color_order": "grey", "mean": (0.25,), "std": (0.5,)}


@st.composite
def forms_and_pictures(draw: st.DrawFn) -> tuple[Preprocess, NDArray[Any]]:
    channels = draw(st.sampled_from([1, 3]))
    depth: Depth = draw(st.sampled_from(DEPTHS))
    number = st.floats(-2, 2).map(lambda value: round(value, 3))
    form = Preprocess(
        size=(draw(st.integers(1, 20)), draw(st.integers(1, 20))),
        channels=channels,
        depth=depth,
        color_order="grey" if channels == 1 else draw(st.sampled_from(["RGB", "BGR"])),
        scale=draw(st.sampled_from(["full_scale", "image_max"])),
        mean=tuple(draw(number) for _ in range(channels)),
        std=tuple(draw(st.floats(0.05, 4)) for _ in range(channels)),
    )
    shape = (draw(st.integers(1, 24)), draw(st.integers(1, 24)), channels)
    return form, draw(st_numpy.arrays(depth, shape))


@settings(max_examples=80, deadline=None)
@given(forms_and_pictures())
def test_the_input_is_what_the_card_says_in_64_bit(case: tuple[Preprocess, NDArray[Any]]) -> None:
    form, picture = case
    height, width = form.size
    resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR_EXACT).reshape(height, width, -1)
    divisor = FULL_SCALE[form.depth] if form.scale == "full_scale" else max(int(resized.max()), 1)
    values = resized.astype(np.float64)[..., :: -1 if form.color_order == "BGR" else 1] / divisor
    expected = ((values - form.mean) / form.std).transpose(2, 0, 1)[None]

    batch = form(picture)

    assert batch.dtype == np.float32
    assert batch.shape == (1, form.channels, *form.size)
    np.testing.assert_allclose(batch, expected, rtol=1e-5, atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(forms_and_pictures())
def test_preprocessing_leaves_its_picture_alone(case: tuple[Preprocess, NDArray[Any]]) -> None:
    form, picture = case
    before = picture.copy()
    form(picture)
    np.testing.assert_array_equal(picture, before)


def test_a_picture_of_the_networks_size_is_not_resized() -> None:
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert Preprocess((2, 3)).geometry(picture) is picture


def test_a_grey_picture_keeps_its_channel_axis_when_resized() -> None:
    picture = np.full((5, 9, 1), 700, np.uint16)
    resized = Preprocess((4, 6), depth="uint16", **GREY).geometry(picture)  # type: ignore[arg-type]
    assert resized.shape == (4, 6, 1)
    assert resized.dtype == np.uint16
    assert (resized == 700).all()


def test_views_that_run_backwards_give_what_their_copies_give() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    form = Preprocess((6, 5))
    for view in (picture[::-1], picture[:, ::-1], picture[..., ::-1], picture[::2, ::3], picture.transpose(1, 0, 2)):
        np.testing.assert_array_equal(form(view), form(np.ascontiguousarray(view)))


def test_sixteen_bits_reach_the_network() -> None:
    form = Preprocess((4, 4), depth="uint16", **GREY)  # type: ignore[arg-type]
    coarse = np.full((4, 4, 1), 0x3700, np.uint16)
    assert (form(coarse) != form(coarse + np.uint16(1))).all()


def test_black_stays_black_where_the_largest_value_scales() -> None:
    form = Preprocess((4, 4), scale="image_max")
    assert (form(np.zeros((4, 4, 3), np.uint8)) == 0).all()


def test_the_pictures_largest_value_becomes_one() -> None:
    picture = np.array([[[10, 20, 40]]], np.uint8)
    np.testing.assert_allclose(Preprocess((1, 1), scale="image_max")(picture).ravel(), [0.25, 0.5, 1])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 30), st.integers(1, 30), st_numpy.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20)))
)
def test_resized_labels_hold_no_new_ids(height: int, width: int, labels: NDArray[np.uint8]) -> None:
    resized = Preprocess((height, width)).geometry_of_labels(labels, 255)
    assert resized.shape == (height, width)
    assert resized.dtype == labels.dtype
    assert set(np.unique(resized)) <= set(np.unique(labels))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": (0, 5)}, r"preprocess.size is \(0, 5\)"),
        ({"size": (5, 16385)}, "1…16384 pixels"),
        ({"channels": 1}, "preprocess.channels is 1 and color_order 'RGB'"),
        ({"color_order": "grey"}, "expected 3 with RGB or BGR, 1 with grey"),
        ({"mean": (0.5,)}, r"preprocess.mean is \(0.5,\); expected 3 finite numbers"),
        ({"mean": (0.5, float("nan"), 0)}, "expected 3 finite numbers"),
        ({"std": (1, 1, float("inf"))}, "preprocess.std.*3 finite"),
        ({"std": (1, 0, 1)}, "every value must be above 0"),
        ({"resize": "pad", "fill": 256}, "preprocess.fill is 256; expected 0…255"),
        ({"resize": "pad", "fill": -1}, "preprocess.fill is -1"),
        ({"fill": 114}, "fill is 114 and resize is stretch, which adds nothing"),
        ({"resize": "letterbox", "fill": 114, "scale": "image_max"}, "count the filling as a part of the picture"),
    ],
)
def test_values_that_contradict_each_other_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(CardError, match=words):
        Preprocess(**{"size": (4, 4)} | values)


SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=60, deadline=None)
@given(forms_and_pictures())
def test_normalising_is_one_product_and_one_sum_in_float32(case: tuple[Preprocess, NDArray[Any]]) -> None:
    form, picture = case
    picture = form.geometry(picture)
    gain, bias = form.gain_and_bias(picture.max())
    values = picture[..., :: -1 if form.color_order == "BGR" else 1].astype(np.float32) * gain + bias
    np.testing.assert_array_equal(form.normalise(picture), values.transpose(2, 0, 1)[None])


@settings(max_examples=100, deadline=None)
@given(SHAPES, SHAPES)
def test_a_letterboxed_picture_lies_in_the_middle_with_its_aspect_ratio_and_touches_two_sides(
    size: tuple[int, int], shape: tuple[int, int]
) -> None:
    form = Preprocess(size, resize="letterbox")
    lengths, scale = form.content_size(shape), min(size[0] / shape[0], size[1] / shape[1])
    assert any(length == side for length, side in zip(lengths, size, strict=True))
    for place, length, side, own in zip(form.content(shape), lengths, size, shape, strict=True):
        before, after = place.start, side - place.stop
        assert 0 <= before <= after <= before + 1
        assert 1 <= length <= side
        assert length == 1 or abs(length - scale * own) <= 0.5 + 1e-9


@settings(max_examples=60, deadline=None)
@given(SHAPES, SHAPES, st.sampled_from([1, 3]), st.sampled_from(DEPTHS))
def test_a_letterboxed_picture_is_the_stretched_one_among_filling(
    size: tuple[int, int], shape: tuple[int, int], channels: int, depth: Depth
) -> None:
    kind: Any = GREY if channels == 1 else {}
    fill = 114 if depth == "uint8" else 40000
    form = Preprocess(size, depth=depth, resize="letterbox", fill=fill, **kind)
    picture = np.random.default_rng(1).integers(0, FULL_SCALE[depth], (*shape, channels), depth)
    boxed, content = form.geometry(picture), form.content(shape)
    stretched = Preprocess(form.content_size(shape), depth=depth, **kind).geometry(picture)
    assert boxed.shape == (*size, channels)
    assert boxed.dtype == depth
    np.testing.assert_array_equal(boxed[content], stretched)
    rest = np.ones(size, bool)
    rest[content] = False
    assert (boxed[rest] == fill).all()


def test_letterboxing_rounds_halves_to_the_even_number_and_puts_the_odd_row_below() -> None:
    assert Preprocess((10, 10), resize="letterbox").content((5, 20)) == (slice(4, 6), slice(0, 10))  # 2.5 rows
    assert Preprocess((10, 10), resize="letterbox").content((7, 20)) == (slice(3, 7), slice(0, 10))  # 3.5 rows
    assert Preprocess((640, 640), resize="letterbox").content((1, 4000, 3)) == (slice(319, 320), slice(0, 640))
    assert Preprocess((9, 4), resize="letterbox").content((4, 4)) == (slice(2, 6), slice(0, 4))


def test_a_padded_picture_lies_at_the_top_left_as_it_is() -> None:
    form = Preprocess((6, 8), resize="pad", fill=9, interpolation="linear_float")
    picture = np.random.default_rng(2).integers(10, 256, (4, 8, 3), np.uint8)
    padded = form.geometry(picture)
    np.testing.assert_array_equal(padded[:4], picture)
    assert (padded[4:] == 9).all()
    assert form.content(picture.shape) == (slice(0, 4), slice(0, 8))


@pytest.mark.parametrize("shape", [(7, 8), (6, 9), (70, 80)])
def test_a_picture_that_is_too_large_cannot_be_padded(shape: tuple[int, int]) -> None:
    form = Preprocess((6, 8), resize="pad")
    with pytest.raises(ImageError, match=rf"{shape[0]}×{shape[1]} pixels .* does not fit into the 6×8"):
        form.geometry(np.zeros((*shape, 3), np.uint8))
    with pytest.raises(ImageError, match="does not fit"):
        form.geometry_of_labels(np.zeros(shape, np.uint8), 255)


@settings(max_examples=40, deadline=None)
@given(SHAPES, st_numpy.arrays(np.uint8, SHAPES, elements=st.integers(0, 4)), st.sampled_from(["letterbox", "pad"]))
def test_labels_go_where_their_picture_goes_and_the_rest_is_void(
    size: tuple[int, int], labels: NDArray[np.uint8], resize: Any
) -> None:
    form = Preprocess(tuple(map(max, size, labels.shape)) if resize == "pad" else size, resize=resize)
    moved, content = form.geometry_of_labels(labels, 200), form.content(labels.shape)
    np.testing.assert_array_equal(moved[content], resize_labels(labels, form.content_size(labels.shape)))
    assert np.count_nonzero(moved == 200) == moved.size - moved[content].size
    assert moved.dtype == np.uint8


def test_the_largest_value_is_the_pictures_own_whatever_is_added() -> None:
    picture = np.full((4, 8, 3), 50, np.uint8)
    boxed = Preprocess((8, 8), resize="letterbox", scale="image_max")(picture)
    assert (boxed[:, :, 2:6] == 1).all()
    assert (boxed[:, :, :2] == 0).all()
