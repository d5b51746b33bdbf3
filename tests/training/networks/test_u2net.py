from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from segship.training.networks.u2net import U2Net, U2Net5P, U2NetP

Shape = tuple[int, ...]

OFFICIAL_U2NET: dict[str, Shape] = {  # of u2net.pth as published, with one class
    "stage1.rebnconvin.conv_s1.weight": (64, 3, 3, 3),
    "stage1.rebnconvin.bn_s1.running_mean": (64,),
    "stage1.rebnconv1.conv_s1.weight": (32, 64, 3, 3),
    "stage1.rebnconv7.conv_s1.weight": (32, 32, 3, 3),
    "stage1.rebnconv6d.conv_s1.weight": (32, 64, 3, 3),
    "stage1.rebnconv1d.conv_s1.weight": (64, 64, 3, 3),
    "stage2.rebnconvin.conv_s1.weight": (128, 64, 3, 3),
    "stage2.rebnconv6.bn_s1.weight": (32,),
    "stage3.rebnconvin.conv_s1.weight": (256, 128, 3, 3),
    "stage3.rebnconv5.conv_s1.bias": (64,),
    "stage4.rebnconvin.conv_s1.weight": (512, 256, 3, 3),
    "stage4.rebnconv4.conv_s1.weight": (128, 128, 3, 3),
    "stage5.rebnconv4.conv_s1.weight": (256, 256, 3, 3),
    "stage6.rebnconv3d.conv_s1.weight": (256, 512, 3, 3),
    "stage5d.rebnconvin.conv_s1.weight": (512, 1024, 3, 3),
    "stage5d.rebnconv1d.conv_s1.weight": (512, 512, 3, 3),
    "stage4d.rebnconvin.conv_s1.weight": (256, 1024, 3, 3),
    "stage4d.rebnconv4.bn_s1.num_batches_tracked": (),
    "stage3d.rebnconvin.conv_s1.weight": (128, 512, 3, 3),
    "stage2d.rebnconvin.conv_s1.weight": (64, 256, 3, 3),
    "stage2d.rebnconv1.conv_s1.weight": (32, 64, 3, 3),
    "stage1d.rebnconvin.conv_s1.weight": (64, 128, 3, 3),
    "stage1d.rebnconv1.conv_s1.weight": (16, 64, 3, 3),
    "side1.weight": (1, 64, 3, 3),
    "side3.weight": (1, 128, 3, 3),
    "side4.weight": (1, 256, 3, 3),
    "side5.weight": (1, 512, 3, 3),
    "side6.weight": (1, 512, 3, 3),
    "outconv.weight": (1, 6, 1, 1),
}

OFFICIAL_U2NETP: dict[str, Shape] = {  # of u2netp.pth
    "stage1.rebnconvin.conv_s1.weight": (64, 3, 3, 3),
    "stage1.rebnconvin.bn_s1.running_mean": (64,),
    "stage1.rebnconv1.conv_s1.weight": (16, 64, 3, 3),
    "stage1.rebnconv7.conv_s1.weight": (16, 16, 3, 3),
    "stage1.rebnconv6d.conv_s1.weight": (16, 32, 3, 3),
    "stage1.rebnconv1d.conv_s1.weight": (64, 32, 3, 3),
    "stage2.rebnconv6.bn_s1.weight": (16,),
    "stage3.rebnconv5.conv_s1.bias": (16,),
    "stage4.rebnconv4.conv_s1.weight": (16, 16, 3, 3),
    "stage5.rebnconv4.conv_s1.weight": (16, 16, 3, 3),
    "stage6.rebnconv3d.conv_s1.weight": (16, 32, 3, 3),
    "stage5d.rebnconvin.conv_s1.weight": (64, 128, 3, 3),
    "stage5d.rebnconv1d.conv_s1.weight": (64, 32, 3, 3),
    "stage4d.rebnconv4.bn_s1.num_batches_tracked": (),
    "stage1d.rebnconvin.conv_s1.weight": (64, 128, 3, 3),
    "side1.weight": (1, 64, 3, 3),
    "side6.weight": (1, 64, 3, 3),
    "side6.bias": (1,),
    "outconv.weight": (1, 6, 1, 1),
    "outconv.bias": (1,),
}

HEIGHTS = {"1": 7, "2": 6, "3": 5, "4": 4, "5": 4, "6": 4, "5d": 4, "4d": 4, "3d": 5, "2d": 6, "1d": 7}


def _on_meta(network: type[U2Net], num_classes: int = 1) -> U2Net:
    with torch.device("meta"):
        return network(num_classes)


@pytest.mark.parametrize(("network", "count"), [(U2Net, 44_009_869), (U2NetP, 1_131_181), (U2Net5P, 931_115)])
def test_it_has_the_parameters_it_should(network: type[U2Net], count: int) -> None:
    assert sum(parameter.numel() for parameter in _on_meta(network).parameters()) == count


@pytest.mark.parametrize(("network", "official"), [(U2Net, OFFICIAL_U2NET), (U2NetP, OFFICIAL_U2NETP)])
def test_the_weights_have_the_names_and_shapes_of_the_published_ones(
    network: type[U2Net], official: dict[str, Shape]
) -> None:
    weights = {name: tuple(tensor.shape) for name, tensor in _on_meta(network).state_dict().items()}
    assert official.items() <= weights.items()
    assert set(weights) == _names(HEIGHTS, sides=6)


def test_the_five_stage_network_is_the_small_one_without_its_sixth() -> None:
    heights = {stage: height for stage, height in HEIGHTS.items() if stage not in ("6", "5d")}
    small, smallest = _on_meta(U2NetP).state_dict(), _on_meta(U2Net5P).state_dict()
    assert set(smallest) == _names(heights, sides=5)
    assert all(small[name].shape == tensor.shape for name, tensor in smallest.items() if name != "outconv.weight")


@pytest.mark.parametrize(("network", "sides"), [(U2Net, 6), (U2NetP, 6), (U2Net5P, 5)])
def test_the_fusing_convolution_takes_the_classes_of_every_side(network: type[U2Net], sides: int) -> None:
    assert _on_meta(network, 7).outconv.weight.shape == (7, 7 * sides, 1, 1)


def test_dilated_blocks_dilate_by_powers_of_two_and_the_others_only_at_their_bottom() -> None:
    network = _on_meta(U2NetP)

    def dilations(stage: str, levels: range) -> list[int]:
        convolutions = [network.get_submodule(f"{stage}.rebnconv{level}.conv_s1") for level in levels]
        return [cast("nn.Conv2d", convolution).dilation[0] for convolution in convolutions]

    for stage in ("stage5", "stage6", "stage5d"):
        assert dilations(stage, range(1, 5)) == [1, 2, 4, 8]
    assert dilations("stage1", range(1, 8)) == [1, 1, 1, 1, 1, 1, 2]
    assert dilations("stage4d", range(1, 5)) == [1, 1, 1, 2]


@pytest.mark.parametrize(("arch", "depth"), [("u2netp", 6), ("u2net5p", 5)])
def test_each_stage_works_at_half_the_scale_of_the_one_before(
    arch: str, depth: int, build_small: Callable[..., nn.Module]
) -> None:
    network = build_small(arch).eval()
    scales: dict[str, int] = {}
    for name, module in network.named_children():
        if name.startswith("stage"):
            module.register_forward_hook(lambda _m, _i, out, name=name: scales.update({name: 96 // out.shape[2]}))
    with torch.inference_mode():
        network(torch.zeros(1, 3, 96, 96))
    down = {f"stage{number}": 2 ** (number - 1) for number in range(1, depth + 1)}
    assert scales == down | {f"stage{number}d": 2 ** (number - 1) for number in range(1, depth)}


@pytest.mark.parametrize(("arch", "sides"), [("u2netp", 6), ("u2net5p", 5)])
def test_the_first_output_fuses_the_others(arch: str, sides: int, build_small: Callable[..., nn.Module]) -> None:
    network = cast("U2Net", build_small(arch).eval())
    with torch.inference_mode():
        fused, *others = network(torch.randn(1, 3, 40, 56))
        assert len(others) == sides
        expected: Tensor = network.outconv(torch.cat(others, dim=1))
    torch.testing.assert_close(fused, expected)


def _names(heights: dict[str, int], sides: int) -> set[str]:
    blocks = [
        f"stage{stage}.rebnconv{level}"
        for stage, height in heights.items()
        for level in ["in", *range(1, height + 1), *(f"{n}d" for n in range(1, height))]
    ]
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    leaves = [f"{layer}.{leaf}" for layer in ("conv_s1", "bn_s1") for leaf in ("weight", "bias")]
    leaves += [f"bn_s1.{leaf}" for leaf in statistics]
    heads = [*(f"side{scale}" for scale in range(1, sides + 1)), "outconv"]
    names = {f"{block}.{leaf}" for block in blocks for leaf in leaves}
    return names | {f"{head}.{leaf}" for head in heads for leaf in ("weight", "bias")}
