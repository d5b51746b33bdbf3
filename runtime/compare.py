"""How far what an engine says is from what PyTorch says: the statistics, the tolerances, and what a near tie is.

The export compares the file it has written with its checkpoint by this module, and ``seg-check`` compares engines with
golden outputs by it, so a figure means the same in both.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from segship.runtime.card import ModelCard, Precision
from segship.runtime.labels import Labels, labels_from_logits, probabilities_from_logits, resize_labels, upscale
from segship.runtime.processing import Stages
from segship.runtime.result import Result
from segship.runtime.segmenter import Segmenter

ABSOLUTE_TOLERANCE: Final = 1e-4
RELATIVE_TOLERANCE: Final = 1e-3

Stage = Literal["decode", "resize", "normalise", "network", "argmax", "upscale"]
"""A step of the road from a file to its mask. What a graph does of it itself counts as the network here."""


@dataclass(frozen=True)
class Gate:
    """What an engine must keep to.

    Attributes:
        within_tolerance: every value within 1e-4 + 1e-3 · |reference|, and no flip of a label but near ties.
        min_agreement: smallest share of pixels that must have the same label, 0…1.
        budget: points that may be lost on pictures of the user's; None: nothing is asked there.
        unit: of these points: of mIoU, or percent of the labels.
    """

    within_tolerance: bool
    min_agreement: float
    budget: float | None = None
    unit: str = ""

    def __str__(self) -> str:
        asked = ["|Δ| ≤ 1e-4 + 1e-3·|ref|, flips only of near ties"] if self.within_tolerance else []
        asked += [f"≥ {100 * self.min_agreement:g} % same labels"] if self.min_agreement else []
        asked += [] if self.budget is None else [f"≤ {self.budget:g} {self.unit} lost"]
        return ", ".join(asked)


STRICT: Final = Gate(within_tolerance=True, min_agreement=0.9999)
"""Of float32."""
LOOSE: Final = Gate(within_tolerance=False, min_agreement=0.999)
"""Of 16 bits, and of frames that a graph resizes by another rounding than the trainer's."""


@dataclass(frozen=True)
class Expected:
    """What PyTorch says of one picture, in the form in which an exported graph says it.

    Attributes:
        stages: the picture on its way to the network.
        logits: (K, h, w) float32, or None where a graph's labels alone are to be compared.
        labels: class ids (h, w) at the size of the graph's output.
        gap: (h, w) float32, how far the label is from becoming another one, in units of what rounding may move: at
            most 1 is a near tie.
    """

    stages: Stages
    logits: NDArray[np.float32] | None
    labels: Labels
    gap: NDArray[np.float32]

    @classmethod
    def of(cls, reference: Result, stages: Stages, card: ModelCard) -> "Expected":
        """Bring what a checkpoint says into the form of a card's graph.

        Args:
            reference: with logits.
            stages: of the same picture.
            card: of the exported file.
        """
        if reference.logits is None:
            raise ValueError("a reference needs logits")
        logits = reference.logits
        if card.frame is not None:
            logits = np.stack([upscale(plane, card.frame) for plane in logits])
        size = (logits.shape[1], logits.shape[2])
        labels, gap = labels_from_logits(logits, size, card), gap_map(logits, size, card)
        return cls(stages, None if card.head == "labels" else logits, labels, gap)


@dataclass(frozen=True)
class Comparison:
    """How far a candidate is from its reference, over one or more pictures.

    Attributes:
        pictures: compared.
        max_abs: largest absolute difference of logits or probabilities; None where the candidate returns labels.
        p99_abs: 99th percentile of the absolute differences, the largest over the pictures; None likewise.
        cosine: between the two, the smallest over the pictures; None likewise.
        beyond_tolerance: values with |Δ| > 1e-4 + 1e-3 · |reference|.
        pixels: compared, at the pictures' own sizes.
        differing_pixels: with another label.
        unexplained_flips: of those, the ones that are no near tie in the reference.
        shared: pixels of each class that both give it.
        either: pixels of each class that one of them or both give it.
        lost: points that the candidate loses on pictures of the user's; None where that was not measured.
    """

    pictures: int
    max_abs: float | None
    p99_abs: float | None
    cosine: float | None
    beyond_tolerance: int
    pixels: int
    differing_pixels: int
    unexplained_flips: int
    shared: tuple[int, ...]
    either: tuple[int, ...]
    lost: float | None = None

    @property
    def label_agreement(self) -> float:
        """Share of the pixels that have the same label, 0…1."""
        return 1 - self.differing_pixels / self.pixels

    @property
    def miou(self) -> float:
        """Mean IoU between the two masks, over the classes that either of them shows, 0…1."""
        ious = [both / either for both, either in zip(self.shared, self.either, strict=True) if either]
        return sum(ious) / len(ious)

    def passes(self, gate: Gate) -> bool:
        """Tell whether the candidate keeps to a gate."""
        if gate.within_tolerance and (self.beyond_tolerance or self.unexplained_flips):
            return False
        if gate.budget is not None and (self.lost is None or self.lost > gate.budget):
            return False
        return self.label_agreement >= gate.min_agreement

    @classmethod
    def merged(cls, comparisons: Iterable["Comparison"]) -> "Comparison":
        """Add up the comparisons of several pictures."""
        every = list(comparisons)
        return cls(
            pictures=sum(one.pictures for one in every),
            max_abs=max((one.max_abs for one in every if one.max_abs is not None), default=None),
            p99_abs=max((one.p99_abs for one in every if one.p99_abs is not None), default=None),
            cosine=min((one.cosine for one in every if one.cosine is not None), default=None),
            beyond_tolerance=sum(one.beyond_tolerance for one in every),
            pixels=sum(one.pixels for one in every),
            differing_pixels=sum(one.differing_pixels for one in every),
            unexplained_flips=sum(one.unexplained_flips for one in every),
            shared=tuple(map(sum, zip(*(one.shared for one in every), strict=True))),
            either=tuple(map(sum, zip(*(one.either for one in every), strict=True))),
        )


def gate_of(precision: Precision | str) -> Gate:
    """Return what is asked of a precision without further agreement: int8 has a budget of its own."""
    return STRICT if precision == "fp32" else LOOSE


def compare(expected: Expected, candidate: Result) -> Comparison:
    """Compare what an engine says about a picture with what is expected.

    Labels are compared at the picture's own size, taken from the reference in the way that the candidate takes them:
    from upscaled logits or, where its graph returns labels, by upscaling these.

    Raises:
        ValueError: if a candidate has logits and the reference none, or their sizes differ.
    """
    height, width = candidate.labels.shape
    card, size = candidate.card, (height, width)
    if expected.stages.decoded.shape[:2] != size:
        raise ValueError(f"a picture of {expected.stages.decoded.shape[:2]} is compared with one of {size}")
    if candidate.logits is None:
        labels = resize_labels(expected.labels, size)
        near_ties = resize_labels((expected.gap <= 1).astype(np.uint8), size).astype(bool)
        figures: tuple[float | None, float | None, float | None, int] = (None, None, None, 0)
    elif expected.logits is None:
        raise ValueError("logits cannot be compared with labels")
    else:
        labels = labels_from_logits(expected.logits, size, card)
        near_ties = near_tie_map(expected.logits, size, card)
        figures = _value_figures(expected.logits, candidate.logits, card)
    differing = candidate.labels != labels
    counts = _overlap(labels, candidate.labels, card.num_classes)
    return Comparison(1, *figures, labels.size, int(differing.sum()), int((differing & ~near_ties).sum()), *counts)


def first_differing_stage(expected: Expected, candidate: Segmenter, result: Result) -> Stage:
    """Name the first step of the road at which a candidate that differs does so.

    Args:
        expected: what PyTorch says of a picture.
        candidate: the other engine, or the same on another machine.
        result: what it says of the picture, which it was given in the form in which the reference got it.
    """
    reference, own = expected.stages, candidate.processing.stages(result.image)
    if not np.array_equal(reference.decoded, own.decoded):
        return "decode"
    if _differ(reference.resized, own.resized):
        return "resize"
    if _differ(reference.normalised, own.normalised):
        return "normalise"
    comparison = compare(expected, result)
    if result.logits is None or comparison.beyond_tolerance:
        return "network"
    network_size = (result.logits.shape[1], result.logits.shape[2])
    own_labels = labels_from_logits(result.logits, network_size, result.card)
    flips = (own_labels != expected.labels) & (expected.gap > 1)
    return "argmax" if flips.any() else "upscale"


def tolerance(reference: NDArray[Any]) -> NDArray[Any]:
    """Return how far a value may be from each reference value: 1e-4 + 1e-3 · |reference|."""
    return np.asarray(ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * np.abs(reference))


def near_tie_map(logits: NDArray[np.float32], size: tuple[int, int], card: ModelCard) -> NDArray[np.bool_]:
    """Tell where, at ``size``, the logits (K, h, w) are so close to another label that rounding may flip it."""
    return np.asarray(gap_map(logits, size, card) <= 1)


def gap_map(logits: NDArray[np.float32], size: tuple[int, int], card: ModelCard) -> NDArray[np.float32]:
    """Return how far, at ``size``, the logits (K, h, w) are from another label, in units of what rounding may move.

    The two largest may come 2 · (1e-4 + 1e-3 · |largest|) closer: each of them may move by the tolerance. The only
    logit of a binary network may come closer to the threshold, which does not move, by the tolerance alone.

    Returns:
        (height, width) float32: at most 1 is a near tie.
    """
    largest = upscale(logits[0], size).copy()
    if card.task == "binary":
        return np.asarray(np.abs(largest - card.logit_threshold) / tolerance(largest), np.float32)
    second = np.full(size, -np.inf, np.float32)
    for plane in logits[1:]:
        upscaled = upscale(plane, size)
        np.maximum(second, np.minimum(upscaled, largest), out=second)
        np.maximum(largest, upscaled, out=largest)
    return np.asarray((largest - second) / (2 * tolerance(largest)), np.float32)


def figures(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as plain values, with what follows from them, and without the counts of single classes."""
    plain = dataclasses.asdict(comparison)
    del plain["shared"], plain["either"]
    return plain | {"label_agreement": comparison.label_agreement, "miou": comparison.miou}


def _value_figures(
    expected: NDArray[np.float32], logits: NDArray[np.float32], card: ModelCard
) -> tuple[float, float, float, int]:
    """Return the largest and 99th-percentile difference, the cosine, and the number of values beyond tolerance."""
    if card.head == "probabilities":
        size = (logits.shape[1], logits.shape[2])
        expected, logits = (probabilities_from_logits(values, size, card) for values in (expected, logits))
    difference = np.abs(logits - expected)
    beyond = int((~(difference <= tolerance(expected))).sum())  # NaN is beyond
    a, b = expected.ravel().astype(np.float64), logits.ravel().astype(np.float64)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / norms if norms else float(np.array_equal(a, b))
    return float(difference.max()), float(np.percentile(difference, 99)), cosine, beyond


def _overlap(reference: Labels, candidate: Labels, num_classes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Count, for each class, the pixels that both give it, and those that at least one does."""
    shared = np.bincount(reference[reference == candidate].ravel(), minlength=num_classes)
    both = [np.bincount(labels.ravel(), minlength=num_classes) for labels in (reference, candidate)]
    return tuple(shared.tolist()), tuple((both[0] + both[1] - shared).tolist())


def _differ(reference: NDArray[Any] | None, own: NDArray[Any] | None) -> bool:
    """Tell whether two arrays differ by more than the rounding of float32; what is inside a graph is not asked."""
    if reference is None or own is None:
        return False
    return reference.shape != own.shape or not np.allclose(own, reference, rtol=1e-6, atol=1e-6)
