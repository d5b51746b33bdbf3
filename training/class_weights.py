"""Class weights for the loss: given ones, or from how often the classes occur. No torch."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from segship.runtime.errors import DatasetError, TrainingError
from segship.training.data import IGNORE_INDEX, Dataset
from segship.training.data.parallel import in_parallel


def resolve_class_weights(
    setting: str, dataset: Dataset, advance: Callable[[], None] = lambda: None
) -> tuple[float, ...] | None:
    """Return the class weights that a setting stands for.

    Args:
        setting: ``none``, ``auto`` (:func:`median_frequency_weights`) or numbers (:func:`parse_weights`).
        dataset: the training part; only ``auto`` reads it.
        advance: called after each sample that was read.

    Returns:
        One weight for each class, or None: all alike.

    Raises:
        TrainingError: if the setting is none of these.
        DatasetError: if the training part cannot be read, or has nothing but void.
    """
    if setting == "none":
        return None
    if setting == "auto":
        return median_frequency_weights(dataset, advance)
    return parse_weights(setting, len(dataset.classes))


def median_frequency_weights(dataset: Dataset, advance: Callable[[], None] = lambda: None) -> tuple[float, ...]:
    """Weigh classes by median frequency balancing.

    The frequency of a class is its share of the valid pixels of those pictures that it occurs in; its weight is the
    median of all frequencies divided by its own (Eigen and Fergus, Predicting Depth, Surface Normals and Semantic
    Labels with a Common Multi-Scale Convolutional Architecture, 2015). A class that never occurs has no pixel to weigh,
    is left out of the median and gets 0; where another class is taken for it, that class's weight counts.

    Args:
        dataset: the training part; every sample is read.
        advance: called after each.

    Raises:
        DatasetError: if a sample cannot be read, or all pixels are void.
    """
    num_classes = len(dataset.classes)

    def count(index: int) -> NDArray[np.intp]:
        labels = dataset[index].labels
        return np.bincount(labels[labels != IGNORE_INDEX], minlength=num_classes)

    pixels, of_its_pictures = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    for counts in in_parallel(count, range(len(dataset))):
        pixels += counts
        of_its_pictures[counts > 0] += counts.sum()
        advance()
    occurs = pixels > 0
    if not occurs.any():
        raise DatasetError(
            "class_weights is auto, and every pixel of the training part is void; expected some with a class"
        )
    frequency = pixels[occurs] / of_its_pictures[occurs]
    weights = np.zeros(num_classes)
    weights[occurs] = np.median(frequency) / frequency
    return tuple(float(weight) for weight in weights)


def parse_weights(text: str, num_classes: int) -> tuple[float, ...]:
    """Read class weights such as ``1,2,0.5``.

    Args:
        text: numbers separated by commas.
        num_classes: how many there must be; 2 for a binary network.

    Raises:
        TrainingError: if they are no numbers, not as many, negative, not finite, or all 0.
    """
    expected = f"expected none, auto, or {num_classes} numbers separated by commas, one for each class"
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise TrainingError(f"class_weights is {text!r}; {expected}") from error
    if len(weights) != num_classes:
        raise TrainingError(f"class_weights is {text!r}, a list of {len(weights)}; {expected}")
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise TrainingError(f"class_weights is {text!r}; expected numbers of 0 or more, not all 0")
    return weights
