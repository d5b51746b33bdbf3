import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from segship.training.networks.sizes import crop, pad_to_multiple, resize, resize_like, size_of, symbolic_sizes

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


@pytest.mark.parametrize(("size", "cropped"), [((4, 6), (4, 6)), ((3, 5), (3, 5)), ((4, 2), (4, 2))])
def test_cropping_keeps_the_top_left(size: tuple[int, int], cropped: tuple[int, int]) -> None:
    x = torch.arange(24.0).view(1, 1, 4, 6)
    assert torch.equal(crop(x, size), x[:, :, : cropped[0], : cropped[1]])


@settings(max_examples=50, deadline=None)
@given(height=sides, width=sides, to_height=sides, to_width=sides)
def test_symbolic_sizes_give_the_same(height: int, width: int, to_height: int, to_width: int) -> None:
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    with symbolic_sizes():
        resized = resize(x, (to_height, to_width))
        assert size_of(resized) == (to_height, to_width)
    torch.testing.assert_close(resized, resize(x, (to_height, to_width)))


def test_symbolic_sizes_end_with_their_block_even_if_it_fails() -> None:
    def fail() -> None:
        with symbolic_sizes():
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not _traced_graph_reads_sizes()
    with symbolic_sizes():
        assert _traced_graph_reads_sizes()


def test_a_compiler_sees_one_graph() -> None:
    explanation = torch._dynamo.explain(lambda x: resize(pad_to_multiple(x, 4), (9, 12)))(torch.zeros(1, 1, 5, 6))
    assert (explanation.graph_count, explanation.graph_break_count) == (1, 0)


class _Sum(torch.nn.Module):
    """Adds height and width of its input to it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = size_of(x)
        return x + height + width


def _traced_graph_reads_sizes() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.simplefilter("ignore", DeprecationWarning)
        graph = torch.jit.trace(_Sum(), torch.zeros(1, 1, 2, 3)).graph
    return "aten::size" in str(graph)
