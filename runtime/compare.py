"""When two roads from a picture to its labels count as the same: statistics, tolerances and the near-tie rule.

Two engines add the same products in another order, so their logits differ in the last digits, and where two classes
are all but equal the label may flip. Such a flip is explained by its near tie; any other is a fault.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segship.runtime.card import ModelCard
from segship.runtime.labels import labels_from_logits, resize_labels, upscale
from segship.runtime.segmenter import Result

ABSOLUTE_TOLERANCE: Final = 1e-4
RELATIVE_TOLERANCE: Final = 1e-3
MIN_LABEL_AGREEMENT: Final = 0.9999


@dataclass(frozen=True)
class Comparison:
    """How far a candidate is from its reference, over one or more pictures.

    Attributes:
        pictures: compared.
        max_abs: largest absolute difference of logits; NaN where the candidate returns labels.
        p99_abs: 99th percentile of the absolute differences, the largest over the pictures; NaN likewise.
        beyond_tolerance: logits with |Δ| > 1e-4 + 1e-3 · |reference|.
        pixels: compared, at the pictures' own sizes.
        differing_pixels: with another label.
        unexplained_flips: of those, the ones that are no near tie in the reference.
    """

    pictures: int
    max_abs: float
    p99_abs: float
    beyond_tolerance: int
    pixels: int
    differing_pixels: int
    unexplained_flips: int

    @property
    def label_agreement(self) -> float:
        """Share of the pixels that have the same label, 0…1."""
        return 1 - self.differing_pixels / self.pixels

    @property
    def passes(self) -> bool:
        """Whether the candidate counts as computing the same in 32-bit floating point."""
        return not (self.beyond_tolerance or self.unexplained_flips or self.label_agreement < MIN_LABEL_AGREEMENT)

    @classmethod
    def merged(cls, comparisons: Iterable["Comparison"]) -> "Comparison":
        """Add up the comparisons of several pictures."""
        every = list(comparisons)
        return cls(
            pictures=sum(one.pictures for one in every),
            max_abs=max(one.max_abs for one in every),
            p99_abs=max(one.p99_abs for one in every),
            beyond_tolerance=sum(one.beyond_tolerance for one in every),
            pixels=sum(one.pixels for one in every),
            differing_pixels=sum(one.differing_pixels for one in every),
            unexplained_flips=sum(one.unexplained_flips for one in every),
        )


def compare(reference: Result, candidate: Result) -> Comparison:
    """Compare what two engines say about one picture.

    Args:
        reference: with logits.
        candidate: with logits or with labels only; labels are compared with those of the reference taken in the same
            way, before they are upscaled.

    Raises:
        ValueError: if the reference has no logits, or the pictures differ in size.
    """
    if reference.logits is None or reference.labels.shape != candidate.labels.shape:
        raise ValueError("a reference needs logits, and a picture of the candidate's size")
    size = (candidate.labels.shape[0], candidate.labels.shape[1])
    card = reference.card
    if candidate.logits is None:
        network_size = (reference.logits.shape[1], reference.logits.shape[2])
        expected = resize_labels(labels_from_logits(reference.logits, network_size, card), size)
        ties = near_tie_map(reference.logits, network_size, card)
        near_ties = resize_labels(ties.astype(np.uint8), size).astype(bool)
        max_abs, p99_abs, beyond = float("nan"), float("nan"), 0
    else:
        expected = reference.labels
        near_ties = near_tie_map(reference.logits, size, card)
        difference = np.abs(candidate.logits - reference.logits)
        max_abs, p99_abs = float(difference.max()), float(np.percentile(difference, 99))
        beyond = int((~(difference <= tolerance(reference.logits))).sum())  # NaN is beyond
    differing = candidate.labels != expected
    unexplained = int((differing & ~near_ties).sum())
    return Comparison(1, max_abs, p99_abs, beyond, expected.size, int(differing.sum()), unexplained)


def tolerance(reference: NDArray[Any]) -> NDArray[Any]:
    """Return how far a logit may be from each reference value: 1e-4 + 1e-3 · |reference|."""
    return np.asarray(ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * np.abs(reference))


def near_tie_map(logits: NDArray[np.float32], size: tuple[int, int], card: ModelCard) -> NDArray[np.bool_]:
    """Tell where, at ``size``, the logits (K, h, w) are so close to another label that rounding may flip it.

    That is where the two largest are at most 2 · (1e-4 + 1e-3 · |largest|) apart: each of them may move by the
    tolerance. The only logit of a binary network may be the tolerance away from the threshold, which does not move.
    """
    largest = upscale(logits[0], size).copy()
    if card.task == "binary":
        return np.asarray(np.abs(largest - card.logit_threshold) <= tolerance(largest))
    second = np.full(size, -np.inf, np.float32)
    for plane in logits[1:]:
        upscaled = upscale(plane, size)
        np.maximum(second, np.minimum(upscaled, largest), out=second)
        np.maximum(largest, upscaled, out=largest)
    return np.asarray(largest - second <= 2 * tolerance(largest))
