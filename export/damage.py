"""How much worse a graph segments than the one in float32, in points: of mIoU, or of labels that differ."""

from collections.abc import Callable
from typing import Final

import numpy as np
import onnx

from segship.export.calibration import Calibration, Pictures
from segship.export.trial import segmenting
from segship.runtime.card import ModelCard
from segship.runtime.labels import Labels
from segship.runtime.segmenter import Segmenter
from segship.training.metrics import ConfusionMatrix

PROBES: Final = 4
"""How many pictures the damage of a single layer is measured on."""


class Meter:
    """Measures candidates for a graph against it.

    With labels, damage is the loss of mIoU on all pictures. The damage of a single layer is always the share of the
    labels that differ: hundreds of thousands of pixels tell a hundredth of a point there, where mIoU, which gives its
    rarest class the weight of its largest, tells one layer's loss from another's luck only on hundreds of pictures.

    Args:
        model: float32, the reference.
        card: of it and of all candidates.
        pictures: those that damage is measured on.
        advance: called after each picture.

    Attributes:
        unit: of damage, in words.
        reference_miou: of the graph in float32, in points; None without labels.
    """

    def __init__(
        self, model: onnx.ModelProto, card: ModelCard, pictures: Calibration, advance: Callable[[], None]
    ) -> None:
        self._card = card
        self._pictures = pictures.measured
        self._labelled = pictures.labelled
        self._advance = advance
        self._probes = pictures.measured.some(PROBES)
        self.unit = "points of mIoU" if self._labelled else "% of the labels"
        with segmenting(model, card) as segmenter:
            self._probe_labels = self._segmented_by(segmenter, self._probes)
            self._labels = [] if self._labelled else self._segmented_by(segmenter, self._pictures)
            self.reference_miou = self._miou(segmenter) if self._labelled else None

    def damage(self, model: onnx.ModelProto) -> float:
        """Return the points that a candidate loses, over all pictures; below 0 if it segments better."""
        with segmenting(model, self._card) as segmenter:
            return self.lost_by(segmenter)

    def lost_by(self, segmenter: Segmenter) -> float:
        """Return the points that an engine with a candidate loses, over all pictures; below 0 if it segments better."""
        if self.reference_miou is None:
            return _differing(self._labels, self._segmented_by(segmenter, self._pictures))
        return self.reference_miou - self._miou(segmenter)

    def probe(self, model: onnx.ModelProto) -> float:
        """Return the share of the labels of a few pictures that a candidate changes, in percent."""
        return _differing(self._probe_labels, self._segment(model, self._probes))

    def _segment(self, model: onnx.ModelProto, pictures: Pictures) -> list[Labels]:
        with segmenting(model, self._card) as segmenter:
            return self._segmented_by(segmenter, pictures)

    def _segmented_by(self, segmenter: Segmenter, pictures: Pictures) -> list[Labels]:
        labels = []
        for image, _ in pictures:
            labels.append(segmenter(image).labels)
            self._advance()
        return labels

    def _miou(self, segmenter: Segmenter) -> float:
        matrix = ConfusionMatrix(self._card.num_classes, self._card.ignore_index)
        for image, truth in self._pictures:
            if truth is not None:
                matrix.add(truth, segmenter(image).labels)
            self._advance()
        return 100 * matrix.scores().miou


def _differing(expected: list[Labels], found: list[Labels]) -> float:
    differing = sum(int(np.count_nonzero(a != b)) for a, b in zip(expected, found, strict=True))
    return 100 * differing / sum(labels.size for labels in expected)
