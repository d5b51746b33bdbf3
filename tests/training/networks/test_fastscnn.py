from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from segship.training.networks.fastscnn import FastSCNN, PyramidPooling, pool_to_bins

sides = st.integers(1, 40)


def test_what_remains_after_training_has_the_1_1_million_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        network = FastSCNN(19)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    assert sum(size for name, size in sizes.items() if not name.startswith("auxiliary")) == 1_137_795


def test_both_branches_are_classified_in_training_only(build_small: Callable[..., nn.Module]) -> None:
    network = build_small("fastscnn")
    pictures = torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        assert [output.shape[2:] for output in network.train()(pictures)] == [(40, 56), (5, 7), (2, 2)]
        assert len(network.eval()(pictures)) == 1


def test_the_detail_stays_at_an_eighth_and_the_context_goes_to_a_thirty_second(
    build_small: Callable[..., nn.Module],
) -> None:
    network = build_small("fastscnn").eval()
    shapes: list[tuple[int, ...]] = []
    for name in ("learning_to_downsample", "global_features", "fusion"):
        network.get_submodule(name).register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape)))
    with torch.inference_mode():
        network(torch.randn(1, 3, 64, 96))
    assert shapes == [(1, 64, 8, 12), (1, 128, 2, 3), (1, 128, 8, 12)]


@settings(max_examples=50, deadline=None)
@given(bins=st.sampled_from(PyramidPooling.BINS), rows=st.integers(1, 6), columns=st.integers(1, 6))
def test_where_the_bins_divide_the_sides_the_pyramid_pools_adaptively(bins: int, rows: int, columns: int) -> None:
    x = torch.randn(1, 2, bins * rows, bins * columns, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pool_to_bins(x, bins), F.adaptive_avg_pool2d(x, bins))


@settings(max_examples=50, deadline=None)
@given(bins=st.sampled_from(PyramidPooling.BINS), height=sides, width=sides)
def test_there_are_as_many_bins_as_fit_and_they_see_every_pixel(bins: int, height: int, width: int) -> None:
    x = torch.ones(1, 1, height, width, requires_grad=True)
    pooled = pool_to_bins(x, bins)
    assert pooled.shape == (1, 1, min(bins, height), min(bins, width))
    torch.testing.assert_close(pooled, torch.ones_like(pooled))
    (seen,) = torch.autograd.grad(pooled.sum(), x)
    assert (seen > 0).all()
    torch.testing.assert_close(seen, seen.flip(2))
    torch.testing.assert_close(seen, seen.flip(3))


@pytest.mark.parametrize("size", [(12, 15), (1, 1), (2, 7)])
def test_the_pyramid_keeps_the_size_of_its_features(size: tuple[int, int]) -> None:
    assert PyramidPooling(8).eval()(torch.randn(1, 8, *size)).shape == (1, 8, *size)
