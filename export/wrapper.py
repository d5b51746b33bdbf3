"""What a graph holds besides the network: the way from pixels to its input, and from its logits to the head.

Each stage is a submodule, and the names of the graph's nodes begin with its name: ``/normalise/``, ``/network/`` and
so on, by which a difference between two engines is traced to its stage.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segship.runtime.card import ModelCard
from segship.runtime.labels import labels_dtype
from segship.training.gain_bias import GainBias


def deployable(network: nn.Module, card: ModelCard) -> nn.Module:
    """Return the module that a graph is traced from: it takes and returns what ``card`` says, ready for evaluation.

    Args:
        network: maps pictures (N, C, h, w) to a tuple of logits, or to logits alone; of a tuple, the first is used.
        card: with head, input form and frame as they are wanted.
    """
    return Deployable(network, card).eval()


class Deployable(nn.Module):
    """The stages that a card asks for, in their order: planes, resize, normalise, network, upscale, head."""

    def __init__(self, network: nn.Module, card: ModelCard) -> None:
        super().__init__()
        takes_pixels = card.input_form == "pixels"
        self.planes = Planes() if takes_pixels else None
        is_resized = card.frame not in (None, card.preprocess.size)
        self.resize = Resize(card.preprocess.size) if is_resized else None
        self.normalise = GainBias(card.preprocess) if takes_pixels else None
        self.network = network
        self.upscale = Resize(card.frame) if card.frame and is_resized else None
        self.head = _head(card)

    def forward(self, image: Tensor) -> Tensor:
        """Map the graph's input to its output; the shapes are the card's ``input_shape`` and ``output_shape``."""
        if self.planes is not None:
            image = self.planes(image)
        if self.resize is not None:
            image = self.resize(image)
        if self.normalise is not None:
            image = self.normalise(image)
        outputs = self.network(image)
        result: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
        if self.upscale is not None:
            result = self.upscale(result)
        return result if self.head is None else self.head(result)


class Planes(nn.Module):
    """Pixels side by side become planes."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, h, w, C), of any integer type, to planes (N, C, h, w), float32 with the same values."""
        return pixels.permute(0, 3, 1, 2).float()


class Resize(nn.Module):
    """Bilinear, pixel centres aligned, without antialiasing: the ``linear_float`` of a :class:`Preprocess`."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, planes: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, *size)."""
        return F.interpolate(planes, size=self.size, mode="bilinear", align_corners=False)


class Probabilities(nn.Module):
    """The softmax over the classes."""

    def forward(self, logits: Tensor) -> Tensor:
        """Map logits (N, K, H, W) to probabilities (N, K, H, W), 0…1."""
        return logits.softmax(dim=1)


class BinaryProbabilities(nn.Module):
    """The sigmoid of a binary network's only logit."""

    def forward(self, logits: Tensor) -> Tensor:
        """Map logits (N, 1, H, W) to probabilities (N, 1, H, W) of the second class, 0…1."""
        return logits.sigmoid()


class Labels(nn.Module):
    """The class of the largest logit, of equal ones the lowest.

    Up to 256 classes they are uint8. Above, they are int32 here, since the tracer has no uint16, and uint16 in a graph.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.dtype = torch.uint8 if labels_dtype(num_classes) is np.uint8 else torch.int32

    def forward(self, logits: Tensor) -> Tensor:
        """Map logits (N, K, H, W) to class ids (N, H, W)."""
        return logits.argmax(dim=1).to(self.dtype)


class BinaryLabels(nn.Module):
    """1 where a binary network's only logit is above the threshold, otherwise 0."""

    def __init__(self, logit_threshold: float) -> None:
        super().__init__()
        self.logit_threshold = logit_threshold

    def forward(self, logits: Tensor) -> Tensor:
        """Map logits (N, 1, H, W) to class ids (N, H, W), uint8."""
        return (logits.squeeze(1) > self.logit_threshold).to(torch.uint8)


def _head(card: ModelCard) -> nn.Module | None:
    if card.head == "logits":
        return None
    if card.head == "probabilities":
        return BinaryProbabilities() if card.task == "binary" else Probabilities()
    return BinaryLabels(card.logit_threshold) if card.task == "binary" else Labels(card.num_classes)
