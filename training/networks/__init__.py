"""The networks. Each maps pictures (N, C, H, W) to a tuple of logits (N, num_classes, H, W), the main one first.

What follows the main output are auxiliary ones that only training looks at.
"""

from collections.abc import Callable
from typing import Final

from torch import nn

from segship.runtime.card import Network
from segship.runtime.errors import CheckpointError, one_line
from segship.training.networks.u2net import U2NetP
from segship.training.networks.unet import UNet

ARCHITECTURES: Final[dict[str, Callable[..., nn.Module]]] = {"unet": UNet, "u2netp": U2NetP}


def build_network(network: Network, *, num_classes: int, in_channels: int) -> nn.Module:
    """Build a network with fresh weights.

    Raises:
        CheckpointError: if there is no such architecture, or it does not have such an option.
    """
    if network.arch not in ARCHITECTURES:
        raise CheckpointError(f"no architecture is called {network.arch!r}; known are {', '.join(ARCHITECTURES)}")
    try:
        return ARCHITECTURES[network.arch](num_classes=num_classes, in_channels=in_channels, **network.options)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: sizes below zero, or above what torch counts
        raise CheckpointError(
            f"architecture {network.arch!r} cannot be built with {network.options} ({one_line(error)})"
        ) from error
