"""Probabilities as pictures: of an object, of the class that won, of the foreground."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.runtime.errors import ModelError
from segship.runtime.files import replacing
from segship.runtime.labels import Labels, labels_by_nearest, labels_from_logits, upscale

if TYPE_CHECKING:
    from segship.runtime.result import Result

Plane = NDArray[np.float32]
"""(H, W) float32, 0…1."""


def probability_image(result: "Result") -> NDArray[np.uint16]:
    """Return what a grey picture shows of the probabilities, (H, W) uint16, 65535 meaning 1.

    Of a binary network that is the probability of its second class, everywhere; of any other the probability of the
    class that the labels name, and 0 where they name none.

    Raises:
        ModelError: if the graph returns labels, from which no probabilities can be told.
    """
    logits = logits_of(result)
    plane = _second_class(logits, result.labels) if result.card.task == "binary" else confidence(result)
    return np.asarray(plane * 65535 + 0.5).astype(np.uint16)


def confidence(result: "Result") -> Plane:
    """Return the probability of the class that the labels name, (H, W) float32, 0…1; 0 where they name none.

    One class at a time, so that memory does not grow with their number.

    Raises:
        ModelError: if the graph returns labels, from which no probabilities can be told.
    """
    logits, labels = logits_of(result), result.labels
    if result.card.task == "binary":
        second = _second_class(logits, labels)
        return np.where(labels == 1, second, np.where(labels == 0, 1 - second, np.float32(0)))
    return _softmax_sum(logits, labels, lambda class_id: labels == class_id)


def foreground_opacity(result: "Result", foreground: Collection[int]) -> NDArray[np.uint8]:
    """Return how much of each pixel is foreground, (H, W) uint8, 255 meaning all of it.

    That is the probability of the foreground classes together, which makes soft edges; where the graph returns labels,
    0 or 255. Labels that were changed after the network overrule it: what they took out is 0, with its soft edge, and
    what they put in is 255.

    Args:
        result: of one picture.
        foreground: ids of the classes that are.
    """
    labels, card = result.labels, result.card
    is_kept = _is_one_of(labels, foreground)
    if result.logits is None:
        return np.where(is_kept, np.uint8(255), np.uint8(0))
    if card.task == "binary":
        second = _second_class(result.logits, labels)
        share = second * np.float32(1 in foreground) + (1 - second) * np.float32(0 in foreground)
    else:
        share = _softmax_sum(result.logits, labels, lambda class_id: class_id in foreground)
    opacity = np.asarray(share * 255 + 0.5).astype(np.uint8)
    to_labels = labels_by_nearest if result.upscale == "labels" else labels_from_logits
    found = to_labels(result.logits, (labels.shape[0], labels.shape[1]), card)
    return _overruled(opacity, _is_one_of(found, foreground), is_kept)


def write_probabilities(path: Path, result: "Result") -> None:
    """Write the probabilities of all classes as npz: ``probabilities`` (C, H, W) float16, and ``class_names`` (C,).

    Raises:
        ModelError: if the graph returns labels, from which no probabilities can be told.
    """
    values = result.probabilities.astype(np.float16)
    with replacing(path) as temporary:
        np.savez_compressed(temporary, probabilities=values, class_names=np.array(result.card.class_names))


def logits_of(result: "Result") -> NDArray[np.float32]:
    """Return the logits of a result.

    Raises:
        ModelError: if the graph returns labels.
    """
    if result.logits is None:
        raise ModelError("this model returns labels, so there are no probabilities; export it with --head logits")
    return result.logits


def _second_class(logits: NDArray[np.float32], labels: Labels) -> Plane:
    """Return the sigmoid of a binary network's only logit, written so that it does not overflow."""
    half = upscale(logits[0], (labels.shape[0], labels.shape[1])) * np.float32(0.5)
    return np.asarray(np.tanh(half, out=half) * np.float32(0.5) + np.float32(0.5))


def _softmax_sum(
    logits: NDArray[np.float32], labels: Labels, chosen: Callable[[int], bool | NDArray[np.bool_]]
) -> Plane:
    """Return the sum of the softmax over the classes, of those that are chosen at each pixel."""
    size = (labels.shape[0], labels.shape[1])
    largest = upscale(logits[0], size).copy()
    for plane in logits[1:]:
        cv2.max(largest, upscale(plane, size), dst=largest)
    total, part = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for class_id, plane in enumerate(logits):
        weight = np.exp(upscale(plane, size) - largest)
        total += weight
        np.add(part, weight, out=part, where=chosen(class_id))
    return np.asarray(np.minimum(part / total, np.float32(1)))


def _is_one_of(labels: Labels, ids: Collection[int]) -> NDArray[np.bool_]:
    table = np.zeros(np.iinfo(labels.dtype).max + 1, np.bool_)
    table[list(ids)] = True
    return np.asarray(table[labels])


def _overruled(opacity: NDArray[np.uint8], found: NDArray[np.bool_], kept: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Let what is kept overrule what was found; a soft edge goes with the part that it is nearest to."""
    if np.array_equal(found, kept):
        return opacity
    _, nearest = cv2.distanceTransformWithLabels(
        np.logical_not(found).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_CCOMP
    )
    stays = np.zeros(int(nearest.max()) + 1, np.bool_)
    stays[nearest[found & kept]] = True
    opacity = np.where(stays[nearest] & ~(found & ~kept), opacity, np.uint8(0))
    return np.where(kept & ~found, np.uint8(255), opacity)
