"""Counts of a picture under two models, small enough to be kept of each picture, and what can be said of their sums."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segship.benchmarks.update_facts import FEWEST_PICTURES
from segship.training.data import IGNORE_INDEX
from segship.training.metrics import ConfusionMatrix

RESAMPLES: Final = 2000
CONFIDENCE: Final = 0.95
_AT_ONCE: Final = 100  # resamples: memory is theirs times the pictures


@dataclass(frozen=True)
class PictureCounts:
    """Pixels of one picture.

    Attributes:
        sums: (5, C): of the truth; of the old model right and answered; of the new one right and answered. Of its
            two confusion matrices that is all that an IoU is made of, and takes C times less memory.
        flips: (3, C) by the true class: became wrong, became right, became wrong in another way.
    """

    sums: NDArray[np.int64]
    flips: NDArray[np.int64]

    @classmethod
    def of(cls, truth: NDArray[Any], old: NDArray[Any], new: NDArray[Any], num_classes: int) -> "PictureCounts":
        """Count a picture's labels (H, W); void pixels of the truth count nowhere."""
        sums = []
        for labels in (old, new):
            matrix = ConfusionMatrix(num_classes, IGNORE_INDEX)
            matrix.add(truth, labels)
            sums += [np.diag(matrix.counts), matrix.counts.sum(axis=0)]
        in_truth = matrix.counts.sum(axis=1)
        changed = (old != new) & (truth != IGNORE_INDEX)
        kinds = (old == truth, new == truth, (old != truth) & (new != truth))
        flips = [np.bincount(truth[changed & kind], minlength=num_classes) for kind in kinds]
        return cls(np.stack([in_truth, *sums]), np.stack(flips))


def ious(sums: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the IoU of each class, old and new, of sums (…, 5, C); NaN where neither truth nor answers show it."""
    in_truth, old_right, old_answered, new_right, new_answered = np.moveaxis(sums, -2, 0)
    with np.errstate(invalid="ignore"):
        return old_right / (in_truth + old_answered - old_right), new_right / (in_truth + new_answered - new_right)


def miou_interval(pictures: Sequence[PictureCounts]) -> tuple[float, float] | None:
    """Return the 95 % interval of the new mIoU minus the old one; None of fewer than ten pictures.

    A paired bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, percentile interval): pictures are
    drawn with replacement, the same ones for both models, and the mIoU of each draw is computed from their sums. It is
    seeded, so that the same pictures give the same interval.
    """
    count = len(pictures)
    if count < FEWEST_PICTURES:
        return None
    sums = np.stack([picture.sums for picture in pictures]).astype(np.float64)
    flat, rng = sums.reshape(count, -1), np.random.default_rng(0)
    differences = []
    for _ in range(0, RESAMPLES, _AT_ONCE):
        drawn = rng.multinomial(count, np.full(count, 1 / count), _AT_ONCE)  # how often each picture
        old, new = ious((drawn @ flat).reshape(_AT_ONCE, *sums.shape[1:]))
        has_truth = ~np.isnan(old).all(axis=1) & ~np.isnan(new).all(axis=1)
        differences.append(np.nanmean(new[has_truth], axis=1) - np.nanmean(old[has_truth], axis=1))
    low, high = np.percentile(np.concatenate(differences), (50 - 50 * CONFIDENCE, 50 + 50 * CONFIDENCE))
    return float(low), float(high)
