"""What changes when a new model takes the place of an old one: of all pictures, of each class, of each picture."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

FEWEST_PICTURES: Final = 10
"""That an interval is made of: fewer, drawn anew, say too little of those that are not among them."""


@dataclass(frozen=True)
class Flips:
    """Pixels with a truth whose answer changed.

    Attributes:
        pixels: with a truth, changed or not.
        to_wrong: that were right and are wrong.
        to_right: that were wrong and are right.
        to_other_wrong: that were wrong, and are wrong in another way.
    """

    pixels: int
    to_wrong: int
    to_right: int
    to_other_wrong: int

    @property
    def changed(self) -> int:
        """Pixels that changed their answer."""
        return self.to_wrong + self.to_right + self.to_other_wrong

    @property
    def share(self) -> float:
        """Their share, 0…1; 0 where there is no pixel."""
        return self.changed / self.pixels if self.pixels else 0.0


@dataclass(frozen=True)
class ClassUpdate:
    """A class.

    Attributes:
        name: of the class.
        flips: of the pixels whose truth it is.
        old_iou: 0…1; None where neither the truth nor the answers show it.
        new_iou: likewise.
    """

    name: str
    flips: Flips
    old_iou: float | None
    new_iou: float | None


@dataclass(frozen=True)
class ImageUpdate:
    """A picture.

    Attributes:
        index: in the dataset.
        name: of the sample.
        flips: of its pixels.
        old_accuracy: share of its pixels that the old model has right, 0…1; None where no pixel has a truth.
        new_accuracy: likewise of the new one.
    """

    index: int
    name: str
    flips: Flips
    old_accuracy: float | None
    new_accuracy: float | None


@dataclass(frozen=True)
class ModelUpdate:
    """What changes when the new model takes the place of the old one.

    Attributes:
        old: the old model and what ran it.
        new: likewise.
        flips: of all pixels with a truth.
        old_miou: mean IoU, 0…1.
        new_miou: likewise.
        old_pixel_accuracy: share of the pixels that are right, 0…1.
        new_pixel_accuracy: likewise.
        interval: of ``new_miou`` − ``old_miou``, 95 %: what other pictures of this kind may give. None of fewer than
            ten pictures.
        classes: in the model's order.
        images: in the dataset's order.
    """

    old: str
    new: str
    flips: Flips
    old_miou: float
    new_miou: float
    old_pixel_accuracy: float
    new_pixel_accuracy: float
    interval: tuple[float, float] | None
    classes: tuple[ClassUpdate, ...]
    images: tuple[ImageUpdate, ...]

    @property
    def miou_difference(self) -> float:
        """New minus old."""
        return self.new_miou - self.old_miou

    @property
    def verdict(self) -> str:
        """Whether the difference of the mIoU is more than chance, in words."""
        if self.interval is None:
            return f"not decided: fewer than {FEWEST_PICTURES} pictures"
        low, high = self.interval
        return "better" if low > 0 else "worse" if high < 0 else "no more than chance"

    def most_changed(self, count: int) -> list[ImageUpdate]:
        """Return the pictures that changed most, by the share of their pixels, those that changed at all."""
        order = sorted(self.images, key=lambda image: -image.flips.share)
        return [image for image in order[:count] if image.flips.changed]

    def is_worse(self, tolerance: float = 0.0) -> bool:
        """Tell whether the new model loses more than ``tolerance`` of mIoU (0…1) on these very pictures.

        That is what was measured, chance or not: a gate that let pass what is not proven to be worse would let pass
        everything on few pictures.
        """
        return self.miou_difference < -tolerance

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain values, for JSON."""
        return dataclasses.asdict(self) | {"miou_difference": self.miou_difference, "verdict": self.verdict}
