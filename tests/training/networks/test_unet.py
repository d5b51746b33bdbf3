from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segship.runtime.card import Network
from segship.runtime.errors import CheckpointError
from segship.training.networks import build_network
from segship.training.networks.unet import UNet


def test_base_channels_scale_every_stage() -> None:
    with torch.device("meta"):
        widths = [network.bottleneck[0].out_channels for network in (UNet(2), UNet(2, base_channels=8))]
    assert widths == [1024, 128]


@pytest.mark.parametrize(("size", "padded"), [((37, 53), (48, 64)), ((48, 64), (48, 64)), ((1, 17), (16, 32))])
def test_a_picture_is_padded_with_zeros_right_and_below_to_the_next_multiple_of_16(
    size: tuple[int, int], padded: tuple[int, int], build_small: Callable[..., nn.Module]
) -> None:
    network = cast("UNet", build_small("unet").eval())
    entered: list[Tensor] = []
    network.down1.register_forward_pre_hook(lambda _module, inputs: entered.append(inputs[0]))
    picture = torch.randn(1, 3, *size)
    with torch.inference_mode():
        logits = network(picture)[0]
        whole = network(F.pad(picture, (0, padded[1] - size[1], 0, padded[0] - size[0])))[0]
    assert entered[0].shape[2:] == padded
    assert torch.equal(entered[0][:, :, : size[0], : size[1]], picture)
    assert entered[0].count_nonzero() == picture.count_nonzero()
    assert torch.equal(logits, whole[:, :, : size[0], : size[1]])


@pytest.mark.parametrize("base_channels", [0, -1, "two", 1.5])
def test_base_channels_that_are_no_whole_number_from_1_are_refused(base_channels: object) -> None:
    with pytest.raises(
        CheckpointError, match=rf"'unet' cannot be built .*base_channels is '?{base_channels}'?; expected"
    ):
        build_network(Network("unet", {"base_channels": base_channels}), num_classes=2, in_channels=3)  # type: ignore[dict-item]
