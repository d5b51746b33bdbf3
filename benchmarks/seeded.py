"""Networks of seeded random weights that say something: for comparisons of engines, where no training is needed."""

import torch
from torch import nn

from segship.runtime.card import ModelCard
from segship.training.networks import build_network


def seeded_network(card: ModelCard, lift: float = 0.0) -> nn.Module:
    """Build the network of a card, in evaluation mode, with weights that are the same each time.

    Its batch norms have seen some noise: else every scale fades, logits come near 0, and labels are all the same.

    Args:
        card: names the network.
        lift: bias of the batch norms. Above 0 most activations pass; at 0, U²-Net's hundred layers of random weights
            enlarge the rounding of float32 a thousandfold, and no two engines agree.
    """
    if card.network is None:
        raise ValueError("a network is built from a card that names one")
    torch.manual_seed(0)
    network = build_network(card.network, num_classes=card.num_logits, in_channels=card.preprocess.channels)
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean of what it sees
            nn.init.constant_(module.bias, lift)
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(2, card.preprocess.channels, *card.preprocess.size))
    return network.eval()
