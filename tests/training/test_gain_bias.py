import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segship.runtime.preprocess import FULL_SCALE, ColorOrder, Depth, Preprocess, Scale
from segship.training.gain_bias import GainBias

MEAN, STD = (0.4119, 0.4255, 0.4327), (0.3023, 0.3012, 0.2899)


def _preprocess(depth: Depth, order: ColorOrder, scale: Scale, size: tuple[int, int] = (7, 9)) -> Preprocess:
    channels = 1 if order == "grey" else 3
    return Preprocess(size, channels, depth, color_order=order, scale=scale, mean=MEAN[:channels], std=STD[:channels])


def _random_image(form: Preprocess, seed: int) -> NDArray[np.integer]:
    """Noise whose brightest value lies somewhere below full scale."""
    rng = np.random.default_rng(seed)
    top = int(rng.integers(0, FULL_SCALE[form.depth], endpoint=True))
    return rng.integers(0, top, (*form.size, form.channels), form.depth, endpoint=True)


def _batch(images: list[NDArray[np.integer]]) -> torch.Tensor:
    """What the training loader makes of them: (N, C, H, W), uint8 or, for 16-bit pictures, int32."""
    stacked = np.stack(images).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(stacked if stacked.dtype == np.uint8 else stacked.astype(np.int32)))


@pytest.mark.parametrize("scale", ["full_scale", "image_max"])
@pytest.mark.parametrize("order", ["grey", "RGB", "BGR"])
@pytest.mark.parametrize("depth", ["uint8", "uint16"])
@given(seed=st.integers(0, 2**32 - 3))
@settings(max_examples=10, deadline=None)
def test_torch_and_numpy_give_the_same_numbers_bit_for_bit(
    depth: Depth, order: ColorOrder, scale: Scale, seed: int
) -> None:
    form = _preprocess(depth, order, scale)
    images = [_random_image(form, seed + offset) for offset in range(3)]
    expected = np.concatenate([form.normalise(image) for image in images])
    result = GainBias(form)(_batch(images)).numpy()
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("scale", ["full_scale", "image_max"])
@pytest.mark.parametrize("depth", ["uint8", "uint16"])
def test_every_value_of_a_depth_is_the_same_in_both(depth: Depth, scale: Scale) -> None:
    values = np.arange(FULL_SCALE[depth] + 1).astype(depth)
    image = np.repeat(values.reshape(16, -1, 1), 3, axis=2)
    form = _preprocess(depth, "RGB", scale, size=(16, image.shape[1]))
    np.testing.assert_array_equal(GainBias(form)(_batch([image])).numpy(), form.normalise(image))


@pytest.mark.parametrize("scale", ["full_scale", "image_max"])
def test_a_black_picture_is_the_same_finite_bias_in_both(scale: Scale) -> None:
    form = _preprocess("uint8", "RGB", scale)
    black = np.zeros((*form.size, 3), np.uint8)
    result = GainBias(form)(_batch([black])).numpy()
    np.testing.assert_array_equal(result, form.normalise(black))
    np.testing.assert_allclose(result[0, :, 0, 0], [-m / s for m, s in zip(MEAN, STD, strict=True)], rtol=1e-6)


def test_image_max_looks_at_each_picture_of_a_batch_for_itself() -> None:
    form = _preprocess("uint8", "RGB", "image_max")
    dark, bright = (np.full((*form.size, 3), value, np.uint8) for value in (10, 250))
    result = GainBias(form)(_batch([dark, bright]))
    torch.testing.assert_close(result[0], result[1], rtol=1e-6, atol=0)


def test_bgr_swaps_the_channels_and_not_the_statistics() -> None:
    red = np.zeros((7, 9, 3), np.uint8)
    red[..., 0] = 255
    result = GainBias(_preprocess("uint8", "BGR", "full_scale"))(_batch([red]))[0, :, 0, 0]
    black, white = ([(v - m) / s for m, s in zip(MEAN, STD, strict=True)] for v in (0, 1))
    assert result.tolist() == pytest.approx([black[0], black[1], white[2]], rel=1e-5)


def test_it_adds_nothing_to_a_state_dict() -> None:
    assert GainBias(_preprocess("uint8", "RGB", "full_scale")).state_dict() == {}
