"""What an engine returns, in one form for all graphs, and held against what the card promises."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.runtime.backends import Backend
from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError
from segship.runtime.graph_layout import expected_shape, from_graph, to_graph
from segship.runtime.labels import Labels, labels_dtype, logits_from_probabilities


def run_checked(backend: Backend, card: ModelCard, batch: NDArray[Any]) -> NDArray[Any]:
    """Map the network's input, of one or more pictures, to what the network says of them.

    Args:
        backend: that has loaded the network.
        card: of the network.
        batch: (N, C, h, w) float32, or pixels (N, h, w, C), as the card describes it.

    Returns:
        Logits (N, K, h, w), float32, also where the graph returns their probabilities; or labels (N, h, w).

    Raises:
        BackendError: if the engine fails or returns what the card does not promise.
    """
    output = from_graph(backend.run(to_graph(batch, card)), card)
    expected = expected_shape(card, len(batch))
    if card.head == "labels":
        return _checked_labels(output, expected, card)
    logits = _checked_values(output, expected, card)
    return logits_from_probabilities(logits, card) if card.head == "probabilities" else logits


def _checked_values(output: NDArray[Any], expected: tuple[int, ...], card: ModelCard) -> NDArray[np.float32]:
    if output.shape != expected or output.dtype != np.float32:
        raise BackendError(f"the graph returned {_described(output)}; its card promises {card.head} {expected} float32")
    limit = np.finfo(np.float32).max  # which OpenCV 5 makes of NaN
    if not (-limit < output.min() and output.max() < limit):
        raise BackendError("the network returned values that are no numbers (NaN or infinite); its weights are bad")
    return output


def _checked_labels(output: NDArray[Any], expected: tuple[int, ...], card: ModelCard) -> Labels:
    labels = output.astype(labels_dtype(card.num_classes))  # OpenCV 4 returns them as float32
    if output.shape != expected or (labels != output).any() or labels.max() >= card.num_classes:
        raise BackendError(
            f"the graph returned {_described(output)}; its card promises labels {expected} of 0…{card.num_classes - 1}"
        )
    return labels


def _described(output: NDArray[Any]) -> str:
    values = f", {output.min()}…{output.max()}" if output.size else ", empty"
    return f"{output.shape} {output.dtype}{values}"
