"""Validation: by the runtime's own functions, so that it measures what a deployment computes."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from segship.runtime.card import ModelCard
from segship.runtime.errors import TrainingError
from segship.runtime.labels import Labels, labels_from_logits
from segship.runtime.prepare import logits_of_picture
from segship.runtime.preprocess import Image
from segship.training.data import Dataset
from segship.training.metrics import ConfusionMatrix, Scores


def predict_logits(network: nn.Module, card: ModelCard, image: Image, device: torch.device) -> NDArray[np.float32]:
    """Return a network's main output for a picture in the card's form.

    Logits (K, h, w), of the network's size, or of the picture's own where the card says to cut it into tiles.

    Raises:
        TrainingError: if they are no numbers; a deployment refuses them too.
    """

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = network(torch.from_numpy(batch).to(device))[0].float().cpu().numpy()
        return logits

    with torch.inference_mode():
        logits = logits_of_picture(card, image, run)
    if not np.isfinite(logits).all():
        raise TrainingError(
            "in validation the network returned values that are no numbers (NaN or infinite): the training diverged; "
            "lower --lr"
        )
    return logits


def predict_labels(network: nn.Module, card: ModelCard, image: Image, device: torch.device) -> Labels:
    """Return a network's labels (H, W) at the picture's own size."""
    return labels_from_logits(predict_logits(network, card, image, device), (image.shape[0], image.shape[1]), card)


def validate(
    network: nn.Module, card: ModelCard, dataset: Dataset, device: torch.device, advance: Callable[[], None]
) -> Scores:
    """Return the accuracy on all pictures of a dataset, as :func:`measure` counts it."""
    return measure(network, card, dataset, device, advance).scores()


def measure(
    network: nn.Module,
    card: ModelCard,
    dataset: Dataset,
    device: torch.device,
    advance: Callable[[], None],
    indices: Sequence[int] | None = None,
) -> ConfusionMatrix:
    """Count what a network, in float32 and evaluation mode, says of pictures at their own size.

    Args:
        network: left in evaluation mode.
        card: gives preprocessing and classes.
        dataset: to measure on.
        device: that the network is on.
        advance: called after each picture.
        indices: of the pictures to measure on; None: all.

    Raises:
        TrainingError: if the network returns what is no number.
    """
    network.eval()
    matrix = ConfusionMatrix(card.num_classes, card.ignore_index)
    for index in range(len(dataset)) if indices is None else indices:
        sample = dataset[index]
        matrix.add(sample.labels, predict_labels(network, card, sample.image, device))
        advance()
    return matrix
