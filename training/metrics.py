"""Accuracy of segmentation, all from one confusion matrix, in numpy.

Definitions: pixel accuracy, mean class accuracy, mean IoU and frequency-weighted IoU as in Long et al., "Fully
Convolutional Networks for Semantic Segmentation", 2015; F1 (the Dice coefficient) from the same counts. Void pixels
count nowhere. A class that is neither in the truth nor in the prediction is NaN, and left out of the means.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

TOTALS: Final = ("pixel_accuracy", "mean_class_accuracy", "miou", "frequency_weighted_iou", "mean_f1")
"""Those of the scores that stand for the whole set of pictures."""


@dataclass(frozen=True)
class Scores:
    """Accuracy of a set of pictures, each number in 0…1 or NaN.

    Attributes:
        pixel_accuracy: share of the pixels that have the right class.
        class_accuracy: recall of each class (C,); NaN where the class is not in the truth.
        mean_class_accuracy: its mean.
        precision: share of the pixels predicted as each class that are of it (C,); NaN where none was.
        iou: intersection over union of each class (C,).
        miou: its mean.
        frequency_weighted_iou: IoU weighted by the classes' share of the truth.
        f1: F1 of each class (C,).
        mean_f1: its mean.
    """

    pixel_accuracy: float
    class_accuracy: NDArray[np.float64]
    mean_class_accuracy: float
    precision: NDArray[np.float64]
    iou: NDArray[np.float64]
    miou: float
    frequency_weighted_iou: float
    f1: NDArray[np.float64]
    mean_f1: float

    def summary(self) -> dict[str, float]:
        """Return the figures that stand for the whole set, by name."""
        return {name: float(getattr(self, name)) for name in TOTALS}

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain values, as JSON holds them: arrays as lists, every float exactly, NaN as None."""
        arrays = {name: np.asarray(value, np.float64) for name, value in dataclasses.asdict(self).items()}
        return {name: _without_nan(array.tolist()) for name, array in arrays.items()}

    @classmethod
    def from_dict(cls, figures: Mapping[str, Any]) -> Self:
        """Return the scores that ``to_dict`` was called on.

        Raises:
            TypeError: if names or types are not those of scores.
            ValueError: if a value is no number.
        """
        arrays = {name: np.array(value, np.float64) for name, value in dict(figures).items()}  # NaN where it is None
        values: dict[str, Any] = {name: array if array.ndim else float(array) for name, array in arrays.items()}
        return cls(**values)


class ConfusionMatrix:
    """Counts of (true class, predicted class) over any number of pictures.

    Args:
        num_classes: C.
        ignore_index: label of pixels that count nowhere.
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts: NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)

    def add(self, truth: NDArray[Any], prediction: NDArray[Any]) -> None:
        """Count one picture.

        Args:
            truth: class ids and the ignore index, any shape.
            prediction: class ids 0…C−1, the same shape.

        Raises:
            ValueError: if shapes differ, or a counted pixel has an id outside the classes.
        """
        if truth.shape != prediction.shape:
            raise ValueError(f"truth has shape {truth.shape}, prediction {prediction.shape}; expected the same")
        counted = truth != self.ignore_index
        true, predicted = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
        for name, ids in (("truth", true), ("prediction", predicted)):
            if ids.size and not (ids.min() >= 0 and ids.max() < self.num_classes):
                raise ValueError(f"{name} has ids {ids.min()}…{ids.max()}; expected 0…{self.num_classes - 1}")
        flat = np.bincount(true * self.num_classes + predicted, minlength=self.num_classes**2)
        self.counts += flat.reshape(self.counts.shape)

    def scores(self) -> Scores:
        """Return the accuracy of everything counted so far."""
        hits = np.diag(self.counts).astype(np.float64)
        in_truth = self.counts.sum(axis=1).astype(np.float64)
        in_prediction = self.counts.sum(axis=0).astype(np.float64)
        total = in_truth.sum()
        with np.errstate(invalid="ignore", divide="ignore"):
            class_accuracy = hits / in_truth
            precision = hits / in_prediction
            iou = hits / (in_truth + in_prediction - hits)
            f1 = 2 * hits / (in_truth + in_prediction)
            pixel_accuracy = float(hits.sum() / total)
            weighted = float(np.nansum(in_truth * iou) / total)
        return Scores(
            pixel_accuracy=pixel_accuracy,
            class_accuracy=class_accuracy,
            mean_class_accuracy=_mean(class_accuracy),
            precision=precision,
            iou=iou,
            miou=_mean(iou),
            frequency_weighted_iou=weighted,
            f1=f1,
            mean_f1=_mean(f1),
        )


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if math.isnan(value) else value


def _mean(values: NDArray[np.float64]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy warns where all are NaN, which NaN says well enough
        return float(np.nanmean(values))
