from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segship.runtime.card import Network
from segship.runtime.errors import CheckpointError
from segship.training.networks import build_network
from segship.training.networks.fcn import FCN, FCN8s, UpBlock, vgg_features

BuildSmall = Callable[..., nn.Module]

TORCHVISION = {  # where the convolutions lie in its ``features``, and how many parameters these have
    "vgg11": ([0, 3, 6, 8, 11, 13, 16, 18], 9_220_480),
    "vgg13": ([0, 2, 5, 7, 10, 12, 15, 17, 20, 22], 9_404_992),
    "vgg16": ([0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28], 14_714_688),
    "vgg19": ([0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34], 20_024_384),
}


def test_fcn8s_on_vgg19_has_the_parameters_it_should() -> None:
    with torch.device("meta"):
        network = FCN8s(41, backbone="vgg19")
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_954_729


@pytest.mark.parametrize("backbone", list(TORCHVISION))
def test_the_backbones_weights_have_the_names_and_shapes_of_torchvision(backbone: str) -> None:
    indices, count = TORCHVISION[backbone]
    with torch.device("meta"):
        network = FCN8s(2, backbone=backbone)
    weights = {name: t for name, t in network.state_dict().items() if name.startswith("features.")}
    assert set(weights) == {f"features.{index}.{leaf}" for index in indices for leaf in ("weight", "bias")}
    assert weights["features.0.weight"].shape == (64, 3, 3, 3)
    assert weights[f"features.{indices[-1]}.weight"].shape == (512, 512, 3, 3)
    assert sum(tensor.numel() for tensor in weights.values()) == count


@pytest.mark.parametrize("arch", ["fcn32s", "fcn16s", "fcn8s", "fcns"])
def test_a_backbone_that_is_not_known_is_refused_naming_the_known_ones(arch: str) -> None:
    for unknown in ("resnet50", 16):
        with pytest.raises(CheckpointError, match=rf"{unknown!r}; known are vgg11, vgg13, vgg16, vgg19"):
            build_network(Network(arch, {"backbone": unknown}), num_classes=2, in_channels=3)


@pytest.mark.parametrize(("arch", "sums"), [("fcn32s", 0), ("fcn16s", 1), ("fcn8s", 2), ("fcns", 4)])
def test_each_variant_adds_the_pooled_maps_that_are_its_own(arch: str, sums: int, build_small: BuildSmall) -> None:
    network = cast("FCN", build_small(arch).eval())
    pools = network.pooled(torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)))
    assert [tuple(pool.shape[1:]) for pool in pools] == [
        (64, 32, 48), (128, 16, 24), (256, 8, 12), (512, 4, 6), (512, 2, 3)
    ]  # fmt: skip
    added: list[Tensor | None] = []
    for block in (network.up1, network.up2, network.up3, network.up4, network.up5):
        block.register_forward_pre_hook(lambda _module, inputs: added.append((*inputs, None)[1]))
    with torch.inference_mode():
        network(torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)))
    for given, pool in zip(added[:sums], reversed(pools[:4]), strict=False):
        assert given is not None
        assert torch.equal(given, pool)
    assert added[sums:] == [None] * (5 - sums)


def test_a_doubling_is_activated_before_the_sum_and_normalised_after_it() -> None:
    torch.manual_seed(0)
    block = UpBlock(6, 4).train()
    x, skip = torch.randn(2, 6, 5, 7), torch.randn(2, 4, 10, 14)
    doubled = F.conv_transpose2d(x, block.up.weight, block.up.bias, stride=2, padding=1, output_padding=1)
    for given in (skip, None):
        expected = F.batch_norm(doubled.relu() + (0 if given is None else given), None, None, training=True)
        torch.testing.assert_close(block(x, given), expected)


@pytest.mark.parametrize(("size", "padded"), [((37, 53), (64, 64)), ((32, 64), (32, 64))])
def test_a_picture_is_padded_with_zeros_right_and_below_to_the_next_multiple_of_32(
    size: tuple[int, int], padded: tuple[int, int], build_small: BuildSmall
) -> None:
    network = build_small("fcns").eval()
    picture = torch.randn(1, 3, *size)
    with torch.inference_mode():
        logits = network(picture)[0]
        whole = network(F.pad(picture, (0, padded[1] - size[1], 0, padded[0] - size[0])))[0]
    assert torch.equal(logits, whole[:, :, : size[0], : size[1]])


def test_what_comes_in_does_not_fade_in_fresh_features() -> None:
    torch.manual_seed(0)
    features = vgg_features("vgg19", 3).eval()
    with torch.inference_mode():
        scale = float(features(torch.randn(1, 3, 64, 64)).std())
    assert 0.03 < scale < 3
