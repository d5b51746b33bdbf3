"""The networks. Each maps pictures (N, C, H, W) to a tuple of logits (N, num_classes, H, W), the main one first.

What follows the main output are auxiliary ones that only training looks at; these may be smaller than the picture.
"""

import inspect
from typing import Any, Final, Protocol

from torch import nn

from segship.runtime.card import Network
from segship.runtime.errors import CheckpointError, ExportError, one_line
from segship.training.networks.bisenetv2 import BiSeNetV2
from segship.training.networks.fastscnn import FastSCNN
from segship.training.networks.fcn import FCN8s, FCN16s, FCN32s, FCNs
from segship.training.networks.u2net import U2Net, U2Net5P, U2NetP
from segship.training.networks.unet import UNet


class Architecture(Protocol):
    """The class of a network."""

    @property
    def STRIDE(self) -> int | None:  # noqa: N802  # a constant of the class
        """Of what sides are multiples where nothing is padded or rounded; None if a graph cannot leave them open."""

    def __call__(self, *arguments: Any, **options: Any) -> nn.Module:
        """Build it with fresh weights."""


ARCHITECTURES: Final[dict[str, Architecture]] = {
    "unet": UNet,
    "u2net": U2Net,
    "u2netp": U2NetP,
    "u2net5p": U2Net5P,
    "fcn32s": FCN32s,
    "fcn16s": FCN16s,
    "fcn8s": FCN8s,
    "fcns": FCNs,
    "fastscnn": FastSCNN,
    "bisenetv2": BiSeNetV2,
}


def build_network(network: Network, *, num_classes: int, in_channels: int) -> nn.Module:
    """Build a network with fresh weights.

    Raises:
        CheckpointError: if there is no such architecture, or it does not have such an option.
    """
    constructor = _constructor(network.arch)
    try:
        return constructor(num_classes=num_classes, in_channels=in_channels, **network.options)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: sizes below zero, or above what torch counts
        raise CheckpointError(
            f"architecture {network.arch!r} cannot be built with {network.options} ({one_line(error)})"
        ) from error


def network_options(arch: str) -> dict[str, int | str]:
    """Return the options that an architecture takes and their defaults, such as ``{"base_channels": 64}``.

    Raises:
        CheckpointError: if there is no such architecture.
    """
    parameters = inspect.signature(_constructor(arch)).parameters
    return {name: p.default for name, p in parameters.items() if name not in ("num_classes", "in_channels")}


def dynamic_stride(network: Network) -> int:
    """Return what a picture's sides must be a multiple of where a graph of this network leaves its size open.

    Raises:
        CheckpointError: if there is no such architecture.
        ExportError: if its size cannot be left open.
    """
    stride = _constructor(network.arch).STRIDE
    if stride is None:
        raise ExportError(
            f"the size of {network.arch} cannot be left open: its pyramid pools with windows that follow from the "
            "picture's size, and in ONNX a window is a constant; export it without --dynamic size, once for each size"
        )
    return stride


def _constructor(arch: str) -> Architecture:
    if arch not in ARCHITECTURES:
        raise CheckpointError(f"no architecture is called {arch!r}; known are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[arch]
