"""What a network says of one picture."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from segship.runtime.card import ModelCard
from segship.runtime.errors import ModelError
from segship.runtime.labels import Labels, probabilities_from_logits
from segship.runtime.outputs import OutputKind, OutputOptions, output_paths, write_outputs
from segship.runtime.preprocess import Image
from segship.runtime.render import DEFAULT_ALPHA, RgbImage, color_image, overlay_image
from segship.runtime.source_item import SourceItem, page_place

if TYPE_CHECKING:
    from segship.runtime.processing import Upscale

_PAGE: Final = re.compile(r"(.+\.tiff?)\[page (\d+)\]", re.IGNORECASE | re.DOTALL)
"""How a page of a TIFF is called where the object that it was read from is not there any more."""


@dataclass(frozen=True)
class Result:
    """What a network says about one picture.

    Attributes:
        source: where the picture came from: its path, or what kind of object it was.
        image: the picture, upright, (H, W, 1 or 3), uint8 or uint16, red, green, blue.
        labels: class ids (H, W) at the picture's own size, uint8 (uint16 above 256 classes); the card's ignore index
            where the segmenter was told to tell of other classes only.
        logits: (K, h, w) float32 of the graph's size, or of the picture's own where it was cut into tiles; K is 1
            for a binary network. None where the graph returns labels. Where it returns probabilities, logits that
            have these.
        card: of the model.
        timings: milliseconds by stage: ``decode_ms``, ``prepare_ms``, ``network_ms``, ``labels_ms``; in a stream also
            ``read_ms``, what the source took, and after ``then`` ``outputs_ms``, what that took.
        tag: what came with the picture in a stream; without a tag, its number from 0. None of a single call.
        upscale: what was brought to the picture's size, ``logits`` or ``labels``.
    """

    source: str
    image: Image
    labels: Labels
    logits: NDArray[np.float32] | None
    card: ModelCard
    timings: dict[str, float] = field(default_factory=dict)
    tag: Any = None
    upscale: "Upscale" = "logits"

    @cached_property
    def areas_px(self) -> dict[str, int]:
        """Pixels that each class has, by name."""
        counts = np.bincount(self.labels.ravel(), minlength=self.card.num_classes)
        return {name: int(counts[i]) for i, name in enumerate(self.card.class_names)}

    @property
    def areas(self) -> dict[str, float]:
        """Share of the picture that each class has, 0…1, by name."""
        return {name: pixels / self.labels.size for name, pixels in self.areas_px.items()}

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """Softmax over the classes at the picture's size, (C, H, W), 0…1.

        Raises:
            ModelError: if the graph returns labels, from which no probabilities can be told.
        """
        if self.logits is None:
            raise ModelError("this model returns labels, so there are no probabilities; export it with --head logits")
        return probabilities_from_logits(self.logits, (self.labels.shape[0], self.labels.shape[1]), self.card)

    def color(self) -> RgbImage:
        """Return the labels in the card's colours, (H, W, 3) uint8 RGB."""
        return color_image(self.labels, self.card)

    def overlay(self, alpha: float = DEFAULT_ALPHA) -> RgbImage:
        """Return the picture under the labels' colours of opacity ``alpha`` (0…1), (H, W, 3) uint8 RGB."""
        return overlay_image(self.image, self.labels, self.card, alpha)

    def save(
        self,
        out: str | Path,
        kinds: Sequence[OutputKind] = ("mask", "overlay"),
        *,
        name: str | Path | None = None,
        options: OutputOptions | None = None,
    ) -> dict[OutputKind, Path]:
        """Write files ``out/KIND/name.SUFFIX`` of the result, each whole or not at all, over what is there.

        Args:
            out: folder to write below.
            kinds: of :data:`~segship.runtime.outputs.OutputKind`.
            name: without suffix, may lead into folders; None: the place of the item that it is the result of
                (``video/frame-000001``), else the name of the source, and of its page (``scan/page-0003``).
            options: how they are drawn and written; None: as by default.

        Returns:
            Where each kind was written.

        Raises:
            OutputError: if a place cannot be written.
            ModelError: if the graph returns labels and a kind needs probabilities.
        """
        chosen = options or OutputOptions()
        paths = output_paths(Path(out), kinds, self._own_name() if name is None else name, chosen)
        write_outputs(self, paths, chosen)
        return paths

    def _own_name(self) -> Path:
        if isinstance(self.tag, SourceItem):
            return self.tag.place.with_suffix("")
        page = _PAGE.fullmatch(self.source)
        return Path(Path(self.source).stem) if page is None else page_place(Path(Path(page[1]).stem), int(page[2]))
