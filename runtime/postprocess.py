"""What may be done to labels after the network: off by default, since training and proof know nothing of it."""

from collections.abc import Collection
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.runtime.card import ModelCard
from segship.runtime.class_choice import object_ids
from segship.runtime.labels import Labels
from segship.runtime.regions import find_regions, present_ids


@dataclass(frozen=True, kw_only=True)
class PostProcess:
    """Steps that tidy labels up, in this order; 0 leaves a step out.

    They work on objects, that is on all classes but the background (class 0 of a binary network, and classes called
    "background"); a model without background has objects only. Pixels of no class stay as they are, and so does
    whatever has nothing around it to become.

    Attributes:
        open_px: opening by a disc of this radius around a pixel: parts of an object that no such disc fits into take
            the class of the nearest pixel that is of another class and stays. Objects go on beyond the picture's edge.
        close_px: closing by a disc of this radius: gaps between parts of one class that no such disc fits into take
            that class; where several classes claim a gap, the one with the lowest id. The edge closes no gap.
        fill_holes_px: what one object encloses wholly takes its class if it has fewer pixels than this, of
            whatever classes. Pixels of the object are connected at corners, too, those of the hole are not.
        min_area_px: objects of fewer pixels than this, connected at corners too, take the class that most of their
            neighbours (at sides and corners) outside such small objects have, of equal ones the lowest id.
    """

    open_px: int = 0
    close_px: int = 0
    fill_holes_px: int = 0
    min_area_px: int = 0

    def __post_init__(self) -> None:
        """Refuse negative numbers.

        Raises:
            ValueError: naming the field.
        """
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"{name} is {value}; expected 0 or more pixels")

    def __bool__(self) -> bool:
        """Tell whether anything is to be done at all."""
        return any(vars(self).values())

    def apply(self, labels: Labels, card: ModelCard) -> Labels:
        """Return tidied labels (H, W) of the same type; those given stay as they are."""
        objects = object_ids(card)
        if self.open_px:
            labels = _opened(labels, objects, _disc(self.open_px), card.num_classes)
        if self.close_px:
            labels = _closed(labels, objects, _disc(self.close_px), card.num_classes)
        if self.fill_holes_px:
            labels = _filled(labels, objects, self.fill_holes_px, card.num_classes)
        if self.min_area_px:
            labels = _without_small(labels, objects, self.min_area_px, card.num_classes)
        return labels


def keep_only(labels: Labels, ids: Collection[int], card: ModelCard) -> Labels:
    """Return labels (H, W) in which all classes but those of ``ids`` have become the id of no class.

    That is :func:`no_class_id`; labels become uint16 where uint8 cannot hold it.
    """
    void = no_class_id(card)
    wide = labels if labels.dtype == np.uint16 or void <= 255 else labels.astype(np.uint16)
    table = np.full(65536 if wide.dtype == np.uint16 else 256, void, wide.dtype)
    kept = sorted(ids)
    table[kept] = kept
    return np.asarray(cv2.LUT(wide, table) if wide.dtype == np.uint8 else table[wide])


def no_class_id(card: ModelCard) -> int:
    """Return the id of pixels that are of no class: the card's ignore index, or the largest where no picture holds it.

    The largest is 255, above 255 classes 65535.
    """
    if 0 <= card.ignore_index <= 65535:
        return card.ignore_index
    return 255 if card.num_classes <= 255 else 65535


def _disc(radius_px: int) -> NDArray[np.uint8]:
    steps = np.arange(-radius_px, radius_px + 1) ** 2
    return (steps[:, None] + steps <= (radius_px + 0.5) ** 2).astype(np.uint8)


def _mask(labels: Labels, class_id: int) -> NDArray[np.uint8]:
    return np.asarray(labels == class_id).view(np.uint8)


def _opened(labels: Labels, objects: Collection[int], disc: NDArray[np.uint8], num_classes: int) -> Labels:
    freed = np.zeros(labels.shape, np.uint8)
    for class_id in present_ids(labels) & set(objects):
        mask = _mask(labels, class_id)
        freed |= mask ^ np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, disc), np.uint8)
    stays = (freed == 0) & (labels < num_classes)
    opened = labels.copy()
    for class_id in np.unique(labels[freed != 0]).tolist():
        others = stays & (labels != class_id)
        if others.any():
            lost = (freed != 0) & (labels == class_id)
            opened[lost] = _nearest(labels, others)[lost]
    return opened


def _nearest(labels: Labels, among: NDArray[np.bool_]) -> Labels:
    """Return for each pixel the label of the nearest one of those among which to choose."""
    _, cells = cv2.distanceTransformWithLabels(
        (~among).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    label_of = np.zeros(int(cells.max()) + 1, labels.dtype)
    label_of[cells[among]] = labels[among]
    return np.asarray(label_of[cells])


def _closed(labels: Labels, objects: Collection[int], disc: NDArray[np.uint8], num_classes: int) -> Labels:
    closed, edge = labels.copy(), len(disc) // 2
    for class_id in sorted(present_ids(labels) & set(objects), reverse=True):  # the lowest id comes last, and wins
        mask = np.pad(_mask(labels, class_id), edge)  # OpenCV would take what lies beyond the edge for the object
        whole = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, disc))[edge:-edge, edge:-edge]
        closed[whole.view(np.bool_) & (labels != class_id) & (labels < num_classes)] = class_id
    return closed


def _filled(labels: Labels, objects: Collection[int], below_px: int, num_classes: int) -> Labels:
    filled = labels.copy()
    for class_id in sorted(present_ids(labels) & set(objects)):
        outside = np.pad(_mask(filled, class_id) ^ 1, 1, constant_values=1)  # the frame connects what reaches the edge
        _, parts, statistics, _ = cv2.connectedComponentsWithStats(outside, connectivity=4)
        is_hole = statistics[:, cv2.CC_STAT_AREA] < below_px
        is_hole[[0, parts[0, 0]]] = False
        if is_hole.any():
            filled[is_hole[parts[1:-1, 1:-1]] & (labels < num_classes)] = class_id
    return filled


def _without_small(labels: Labels, objects: Collection[int], below_px: int, num_classes: int) -> Labels:
    regions = find_regions(labels, objects)
    is_small = regions.areas_px < below_px
    is_small[0] = False
    tidy = np.pad(labels, 1)
    waits = np.pad(is_small[regions.ids], 1, constant_values=True)  # so far of no new class; the frame has none, ever
    while True:  # each round reaches the small objects beside those of the round before
        rows, columns = np.nonzero(waits[1:-1, 1:-1])
        own = regions.ids[rows, columns]
        won = _winners(tidy, waits, own, rows + 1, columns + 1, num_classes)[own]
        if (won < 0).all():
            return tidy[1:-1, 1:-1].copy()
        rows, columns, won = rows[won >= 0] + 1, columns[won >= 0] + 1, won[won >= 0]
        tidy[rows, columns] = won
        waits[rows, columns] = False


def _winners(
    labels: Labels,
    waits: NDArray[np.bool_],
    own: NDArray[np.int32],
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    num_classes: int,
) -> NDArray[np.int64]:
    """Return, for each region of these pixels, the class that most neighbours that stay have; −1 if there are none."""
    ballots = []
    for down, right in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)):
        classes = labels[rows + down, columns + right].astype(np.int64)
        counts = ~waits[rows + down, columns + right] & (classes < num_classes)
        ballots.append(own[counts].astype(np.int64) * num_classes + classes[counts])
    found, number = np.unique(np.concatenate(ballots), return_counts=True)
    regions, classes = np.divmod(found, num_classes)
    order = np.lexsort((-classes, number, regions))
    winners = np.full(int(own.max(initial=0)) + 1, -1)
    winners[regions[order]] = classes[order]  # of what is assigned to one place, the last stays
    return winners
