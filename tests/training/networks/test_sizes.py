import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from segship.training.networks.sizes import pad_to_multiple, resize, resize_like

sides = st.integers(1, 9)


@settings(max_examples=50, deadline=None)
@given(height=sides, width=sides, to_height=sides, to_width=sides)
def test_resizing_is_bilinear_whatever_the_sides(height: int, width: int, to_height: int, to_width: int) -> None:
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(x, size=(to_height, to_width), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize(x, (to_height, to_width)), expected)
    assert torch.equal(resize_like(x, expected), resize(x, (to_height, to_width)))


@pytest.mark.parametrize(("size", "padded"), [((1, 33), (32, 64)), ((32, 64), (32, 64)), ((40, 95), (64, 96))])
def test_padding_adds_zeros_right_and_below(size: tuple[int, int], padded: tuple[int, int]) -> None:
    x = torch.ones(1, 2, *size)
    y = pad_to_multiple(x, 32)
    assert y.shape == (1, 2, *padded)
    assert y[:, :, : size[0], : size[1]].all()
    assert y.sum() == x.sum()
