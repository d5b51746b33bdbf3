"""From the network's output to class ids at the picture's own size; training's validation uses the same functions."""

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # a card holds a Preprocess, which brings labels to size with this module
    from segship.runtime.card import ModelCard

Labels = NDArray[Any]
"""Class ids (H, W): uint8 up to 256 classes, uint16 above."""


def labels_dtype(num_classes: int) -> type[np.uint8] | type[np.uint16]:
    """Return the type of class ids for so many classes."""
    return np.uint8 if num_classes <= 256 else np.uint16


def upscale(
    plane: NDArray[np.float32], size: tuple[int, int], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Bring one plane of logits (h, w) to ``size`` (height, width), linearly, pixel centres aligned.

    Args:
        plane: of one class; it is returned itself where it has that size.
        size: wanted.
        out: of that size, to write into.
    """
    if plane.shape == size:
        return plane
    return np.asarray(cv2.resize(plane, (size[1], size[0]), dst=out, interpolation=cv2.INTER_LINEAR))


def labels_from_logits(logits: NDArray[np.float32], size: tuple[int, int], card: "ModelCard") -> Labels:
    """Upscale logits (K, h, w) to ``size`` (height, width) and take the class that wins at each pixel.

    Of a binary network that is the second one where its only logit is above the threshold; otherwise the one with the
    largest logit, of equal ones the lower class. One plane at a time, so that memory does not grow with their number.
    """
    if card.task == "binary":
        return (upscale(logits[0], size) > card.logit_threshold).astype(np.uint8)
    labels = np.zeros(size, labels_dtype(len(logits)))
    first = logits[0]
    largest = upscale(first, size)
    if largest is first:  # it is written over below, and logits stay what they are
        largest = first.copy()
    space, won = np.empty(size, np.float32), np.empty(size, np.uint8)
    for class_id in range(1, len(logits)):
        plane = upscale(logits[class_id], size, space)
        if labels.dtype == np.uint8:  # the same as below, in vector instructions: ids only grow, so max is "overwrite"
            cv2.compare(plane, largest, cv2.CMP_GT, dst=won)
            won &= np.uint8(class_id)
            cv2.max(labels, won, dst=labels)
        else:
            np.putmask(labels, plane > largest, class_id)
        cv2.max(largest, plane, dst=largest)
    return labels


def labels_by_nearest(logits: NDArray[np.float32], size: tuple[int, int], card: "ModelCard") -> Labels:
    """Take the class that wins at each pixel of logits (K, h, w), and bring labels to ``size`` (height, width)."""
    return resize_labels(labels_from_logits(logits, (logits.shape[1], logits.shape[2]), card), size)


def logits_from_probabilities(probabilities: NDArray[np.float32], card: "ModelCard") -> NDArray[np.float32]:
    """Return logits (K, h, w) that have these probabilities (K, h, w): logarithms, of the odds for a binary network.

    The network's own differ from them by one number a pixel, the same for all classes; upscaled linearly, it stays the
    same for all classes, so labels come out as from the network's own logits.
    """
    smallest = np.finfo(np.float32).tiny
    logits = np.log(np.maximum(probabilities, smallest))
    return logits - np.log(np.maximum(1 - probabilities, smallest)) if card.task == "binary" else logits


def resize_labels(labels: Labels, size: tuple[int, int]) -> Labels:
    """Bring labels (h, w) to ``size`` (height, width) by the nearest pixel."""
    if labels.shape == size:
        return labels
    return np.asarray(cv2.resize(labels, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT))


def probabilities_from_logits(
    logits: NDArray[np.float32], size: tuple[int, int], card: "ModelCard"
) -> NDArray[np.float32]:
    """Upscale logits (K, h, w) to ``size`` and return the softmax over the classes, (C, height, width), in 0…1.

    The sigmoid of a binary network's only logit is the softmax of a 0 and this logit.
    """
    background = [np.zeros(size, np.float32)] if card.task == "binary" else []
    upscaled = np.stack(background + [upscale(plane, size) for plane in logits])
    upscaled -= upscaled.max(axis=0)
    np.exp(upscaled, out=upscaled)
    upscaled /= upscaled.sum(axis=0)
    return upscaled
