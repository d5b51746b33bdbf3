"""Every architecture at its smallest, and its checkpoint."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from segship.runtime.card import ModelCard, Network
from segship.runtime.palettes import DEMO
from segship.runtime.preprocess import Preprocess
from segship.training.checkpoint import save_checkpoint
from segship.training.networks import build_network, network_options

SMALLEST: dict[str, int | str] = {"base_channels": 4, "backbone": "vgg11"}

BuildSmall = Callable[..., nn.Module]


def smallest(arch: str) -> Network:
    return Network(arch, {name: SMALLEST[name] for name in network_options(arch)})


@pytest.fixture(scope="session")
def build_small() -> BuildSmall:
    """Build an architecture with seeded weights and its smallest options."""

    def build(arch: str, *, num_classes: int = 5, in_channels: int = 3) -> nn.Module:
        torch.manual_seed(0)
        return build_network(smallest(arch), num_classes=num_classes, in_channels=in_channels)

    return build


@pytest.fixture
def write_checkpoint(build_small: BuildSmall, tmp_path: Path) -> Iterator[Callable[[str, tuple[int, int]], Path]]:
    """Write an architecture's checkpoint for pictures of a size into a folder that is emptied afterwards.

    Its batch norms have seen noise, or else every scale fades and the logits with it. Their biases are 1, which opens
    the ReLUs: with 0, a random network as deep as U²-Net is chaotic, and PyTorch's own last digit becomes its third.
    """

    def write(arch: str, size: tuple[int, int]) -> Path:
        network = build_small(arch, num_classes=len(DEMO.names))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.bias)
                module.momentum = None  # the plain mean of what it sees
        with torch.no_grad():
            network.train()(torch.randn(4, 3, *size))
        form = Preprocess(size, 3, "uint8", color_order="RGB", mean=(0.4, 0.45, 0.5), std=(0.2, 0.21, 0.22))
        path = tmp_path / f"{arch}.safetensors"
        save_checkpoint(path, network, ModelCard(DEMO.names, DEMO.palette, form, network=smallest(arch)))
        return path

    yield write
    shutil.rmtree(tmp_path)  # the files of one large network have hundreds of megabytes
