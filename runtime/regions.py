"""Connected regions of one class in a picture of labels."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.runtime.labels import Labels


@dataclass(frozen=True)
class Regions:
    """Regions 1…n of a picture; 0 is what lies in none.

    They are in the order of their classes and, within one, of their first pixels row by row.

    Attributes:
        ids: (H, W) int32, the region of each pixel.
        classes: (n + 1,) the class of each region, −1 of what lies in none.
        areas_px: (n + 1,) pixels of each.
    """

    ids: NDArray[np.int32]
    classes: NDArray[np.int64]
    areas_px: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.classes) - 1


def find_regions(labels: Labels, classes: Collection[int], *, connectivity: Literal[4, 8] = 8) -> Regions:
    """Find the connected regions of each class.

    Args:
        labels: (H, W).
        classes: to look for; pixels of others lie in no region.
        connectivity: 8: pixels that touch at a corner are connected, too; 4: only those that share a side.
    """
    ids = np.zeros(labels.shape, np.int32)
    classes_of, areas = [-1], [0]
    for class_id in sorted(set(classes) & present_ids(labels)):
        mask = (labels == class_id).view(np.uint8)
        left, top, width, height = cv2.boundingRect(mask)
        box = np.s_[top : top + height, left : left + width]
        count, found, statistics, _ = cv2.connectedComponentsWithStats(mask[box], connectivity=connectivity)
        offset = len(classes_of) - 1
        np.add(found, offset, out=found)
        np.copyto(ids[box], found, where=mask[box].view(np.bool_))
        classes_of += [class_id] * (count - 1)
        areas += statistics[1:, cv2.CC_STAT_AREA].tolist()
    areas[0] = labels.size - sum(areas)
    return Regions(ids, np.array(classes_of, np.int64), np.array(areas, np.int64))


def present_ids(labels: Labels) -> set[int]:
    """Return the ids that occur in labels, void among them."""
    if labels.dtype == np.uint8:
        return set(np.flatnonzero(cv2.calcHist([labels], [0], None, [256], [0, 256])).tolist())
    return set(np.unique(labels).tolist())
